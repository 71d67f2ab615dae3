"""Distill: students say what teachers say, on the states that were to be visited."""

import copy
import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from every_agent import AGENTS
from llm_tiny import tiny_model
from probes import OBSERVATIONS, batch
from training import ACTIONS, fit, make_trainer

from rl_lightning import (
    DQN,
    PPO,
    SAC,
    TD3,
    ActorCritic,
    Agent,
    CountBonus,
    DictEncoder,
    Distill,
    GeneratingPolicy,
    GuidedEncoder,
    HashedWordsEncoder,
    LLMEncoder,
    MLPEncoder,
    QNetwork,
    ReplayDataModule,
    RewardModel,
    RolloutDataModule,
    TextActionEncoder,
    agents,
)
from rl_lightning.agents.agent import adam
from rl_lightning.agents.lesson import form_of
from rl_lightning.agents.teacher import Teacher
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")
SMALL = partial(ActorCritic, hidden=(16,))


def probe(action="discrete", observation="vector", task="match", **kwargs):
    """16 probes in rollouts of 4 steps; `env` are arguments of theirs."""
    env = {"task": task, "observation": observation, **kwargs.pop("env", {})}
    env["action"] = action.removeprefix("clipped_").removeprefix("squashed_")
    settings = {
        "num_envs": 16,
        "rollout_steps": 4,
        "total_frames": 64 * 10,
        "passes": 16,
        "seed": 0,
    }
    return RolloutDataModule("Probe-v0", env_kwargs=env, **{**settings, **kwargs})


def save(agent, path):
    trainer = make_trainer()
    trainer.strategy.connect(agent)
    trainer.save_checkpoint(path, weights_only=True)
    return str(path)


def teach(path, make=PPO, data=None, scale=1.0, **kwargs):
    """The checkpoint of an agent whose opinions depend on what it sees."""
    torch.manual_seed(1)
    agent = make((data or probe()).spec, **kwargs)
    for name, parameter in agent.policy.named_parameters():
        if "action_head.linear" in name or "advantage" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return save(agent, path)


def learn(path, data=None, lr=1e-2, trainer=None, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    data = data or probe()
    kwargs = {"network": SMALL, **kwargs}
    agent = Distill(data.spec, path, optimizer=partial(adam, lr=lr), **kwargs)
    return fit(agent, data, ckpt_path=ckpt_path, **(trainer or {}))


@torch.no_grad()
def said(agent, observation="vector", states=(0, 1)):
    agent = agent.eval()
    return agent.inspect(agent.preprocess(batch(observation, *states)))


# --- what is learned --------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_a_student_says_what_its_teacher_says(action, tmp_path):
    network = partial(SMALL, squash=action == "squashed_box", log_std_init=-1.0)
    data = probe(action)
    path = teach(tmp_path / "t.ckpt", data=data, network=network)
    student = learn(path, data, network=partial(SMALL, squash=action == "squashed_box"))
    theirs, own = said(Agent.load_from_checkpoint(path)), said(student)
    for name in {"probabilities", "mean", "std"} & theirs.keys():
        torch.testing.assert_close(own[name], theirs[name], rtol=0.05, atol=0.03)
    assert student.policy.critic is None


def test_other_encoders_and_a_value(tmp_path):
    """A language model that was tuned teaches hashed words, both of a text in a dictionary."""
    reader = partial(LLMEncoder, model=tiny_model("bert", tmp_path / "bert"), tune="lora")
    words, data = partial(HashedWordsEncoder, dim=8, buckets=64), probe(observation="mixed")
    theirs, own = (partial(DictEncoder, encoders={"text": text}) for text in (reader, words))
    path = teach(tmp_path / "t.ckpt", data=data, encoder=theirs, network=SMALL)
    student = learn(path, data, encoder=own, value_coef=0.5, lr=3e-2)
    told, answer = said(Agent.load_from_checkpoint(path), "mixed"), said(student, "mixed")
    for name in ("probabilities", "value"):
        torch.testing.assert_close(answer[name], told[name], rtol=0, atol=0.05)


def test_values_of_a_dqn(tmp_path):
    path = teach(tmp_path / "t.ckpt", DQN, scale=0.15)
    values = said(Agent.load_from_checkpoint(path))["values"]
    normal = partial(MLPEncoder, normalize=True)
    for encoder in (MLPEncoder, normal):
        student = learn(path, encoder=encoder, network=partial(QNetwork, hidden=(16,)), loss="mse")
        torch.testing.assert_close(said(student)["values"], values, rtol=0, atol=0.05)
        acted = student.predict(batch("vector", 0, 1))
        assert acted.tolist() == values.argmax(-1).tolist()
    for temperature in (1.0, 0.5):
        student = learn(path, temperature=temperature)
        chances = said(student)["probabilities"]
        torch.testing.assert_close(chances, (values / temperature).softmax(-1), atol=0.03, rtol=0)


def test_the_label_is_the_likeliest_action_and_temperature_sharpens(tmp_path):
    path = teach(tmp_path / "t.ckpt", network=SMALL, scale=0.3)
    chances = said(Agent.load_from_checkpoint(path))["probabilities"]
    assert chances.max() < 0.95
    label = said(learn(path, loss="cross_entropy"))["probabilities"]
    assert (label.gather(1, chances.argmax(1, keepdim=True)) > 0.97).all()
    even = said(learn(path, temperature=4.0))["probabilities"]
    torch.testing.assert_close(even, (chances.log() / 4).softmax(-1), rtol=0, atol=0.02)


@pytest.mark.parametrize("make", [SAC, TD3])
def test_continuous_teachers(make, tmp_path):
    data = probe("box")
    path = teach(tmp_path / "t.ckpt", make, data=data)
    with torch.no_grad():  # far enough from 0 that a tanh matters
        teacher = Agent.load_from_checkpoint(path)
        for parameter in teacher.policy.actor[-1].parameters():
            parameter.mul_(4)
    save(teacher, path)
    expected = teacher.predict(batch("vector", 0, 1))
    for squash in (False, True):
        student = learn(path, data, loss="mse", network=partial(SMALL, squash=squash))
        np.testing.assert_allclose(student.predict(batch("vector", 0, 1)), expected, atol=0.05)
    if make is TD3:
        with pytest.raises(ConfigurationError, match=r"TD3 in .* a standard deviation .*loss: mse"):
            learn(path, data, network=partial(SMALL, squash=True))
        return
    student = learn(path, data, network=partial(SMALL, squash=True), visit="student")
    np.testing.assert_allclose(student.predict(batch("vector", 0, 1)), expected, atol=0.1)
    with pytest.raises(ConfigurationError, match=r"squashed by tanh, .* squash: true"):
        learn(path, data)


@pytest.mark.parametrize("worth", [{"rewards": [CountBonus]}, {"env_reward_weight": 0.5}])
def test_rewards_would_do_nothing_and_are_refused(worth, tmp_path):
    path = teach(tmp_path / "t.ckpt")
    with pytest.raises(ConfigurationError, match="Distill learns from no reward"):
        learn(path, probe(**worth))


KINDS = {  # by whose checkpoint: which losses, on Discrete and on Box actions
    **dict.fromkeys(("PPO", "A2C", "REINFORCE", "BC", "IQL"), ("kl cross_entropy", "kl mse")),
    "Distill": ("kl cross_entropy", "kl mse"),
    "DiscreteSAC": ("kl cross_entropy", None),
    "DQN": ("kl cross_entropy mse", None),
    "QTable": ("kl cross_entropy mse", None),
    "SAC": (None, "kl mse"),
    "TD3": (None, "mse"),
    "DDPG": (None, "mse"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("A2C", "REINFORCE", "DDPG") else name
        for name in AGENTS
    ],
)
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_who_can_teach_what(name, action, tmp_path):
    losses, observation = KINDS[name][action == "box"], "discrete" if name == "QTable" else "vector"
    if losses is None:
        return
    spec = probe(action, observation).spec
    path = teach(tmp_path / "t.ckpt", getattr(agents, name), probe(action, observation))
    for loss in ("kl", "cross_entropy", "mse"):
        if (loss, action) == ("cross_entropy", "box"):
            continue  # refused of every teacher
        form = form_of(spec.action_space, loss, 1.0, 0.0)
        teacher = Teacher(path, spec, form, squashed=name == "SAC")
        teacher.look(batch(observation, 0, 1, 0))
        if loss not in losses:
            with pytest.raises(ConfigurationError, match=f"{name} in .* does not say"):
                teacher.answer(None)
            continue
        told = teacher.answer(None)
        greedy = teacher.agent.predict(batch(observation, 0, 1, 0))
        np.testing.assert_allclose(teacher.act(told, False).numpy(), greedy, rtol=1e-5, atol=1e-6)
        for _ in range(3):
            for drawn in teacher.act(told, True).numpy():
                assert spec.action_space.contains(drawn.astype(spec.action_space.dtype))


# --- who is asked, who acts -------------------------------------------------------------------


def test_the_teacher_is_asked_once_a_state(tmp_path, monkeypatch):
    asked = []
    answer = Teacher.answer
    monkeypatch.setattr(Teacher, "answer", lambda *a: asked.append(1) or answer(*a))
    data = probe(val_episodes=16, val_explore=True, total_frames=64 * 5)
    path = teach(tmp_path / "t.ckpt", network=SMALL)
    student = learn(path, data, trainer={"limit_val_batches": 1.0, "num_sanity_val_steps": 1})
    assert len(asked) == 5 * data.rollout_steps  # whole batches: no update and no evaluation asks
    assert student.updates == 5 * data.passes
    student.predict(batch("vector", 0), explore=True)
    assert len(asked) == 5 * data.rollout_steps


def rollout_of(agent, data):
    """The rows of one rollout, as they are learned from."""
    rows = []
    prepare = agent.prepare
    agent.prepare = lambda rollout: rows.append(rollout.steps.clone()) or prepare(rollout)
    fit(agent, data)
    return rows


@pytest.mark.parametrize("visit", ["teacher", "student", "both"])
def test_who_acts(visit, tmp_path):
    """A teacher that goes right and a student that begins by going left, both for sure."""
    path = teach(tmp_path / "t.ckpt", network=SMALL)
    teacher = Agent.load_from_checkpoint(path)
    frames = {"total_frames": 1600, "num_envs": 100, "rollout_steps": 4}
    data = probe(**frames)
    torch.manual_seed(0)
    student = Distill(
        data.spec, path, network=SMALL, visit=visit, optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    for agent, way in ((teacher, [-50.0, 50.0]), (student, [50.0, -50.0])):
        agent.policy.action_head.linear.bias.data = torch.tensor(way)
    save(teacher, path)
    shares = [steps["action"].float().mean().item() for steps in rollout_of(student, data)]
    # β is that of the rollout before: progress is told with the frames.
    expected = {"teacher": [1] * 4, "student": [0] * 4, "both": [1, 1, 0.5, 0]}[visit]
    assert shares == pytest.approx(expected, abs=0.1)


def test_the_mixture_follows_the_clock():
    spec = probe().spec
    agent = Distill(spec, "t.ckpt", mix=0.8, mix_fraction=0.25)
    for progress, beta in ((0.0, 0.8), (0.125, 0.4), (0.25, 0.0), (1.0, 0.0)):
        agent.progress = progress
        assert agent.beta == pytest.approx(beta)
    assert Distill(spec, "t.ckpt").beta == 1
    assert [Distill(spec, "t", visit=v).beta for v in ("teacher", "student")] == [1, 0]
    for name in ("mix", "mix_fraction"):
        with pytest.raises(ConfigurationError, match="visit: student leaves nothing to mix"):
            Distill(spec, "t.ckpt", visit="student", **{name: 0.5})


def test_whoever_acts_explores_on_request(tmp_path):
    path = teach(tmp_path / "t.ckpt", network=SMALL, scale=0.3)
    for visit in ("teacher", "student"):
        for explore in (True, False):
            data = probe(total_frames=400, num_envs=100)
            student = Distill(data.spec, path, network=SMALL, visit=visit, explore=explore)
            (steps,) = rollout_of(student, data)
            seen, action = steps["obs"][..., 0], steps["action"]
            varied = [len(set(action[seen == s].tolist())) for s in (-1, 1)]
            assert varied == ([2, 2] if explore else [1, 1])


def test_masked_actions_carry_no_weight(tmp_path):
    for make, network, loss in ((PPO, SMALL, "kl"), (DQN, QNetwork, "mse")):
        data = probe(task="truncated", env={"mask": True}, total_frames=64)
        path = teach(tmp_path / "t.ckpt", make, data)
        student = Distill(data.spec, path, network=network, loss=loss)
        (steps,) = rollout_of(student, data)  # the environment raises at a forbidden action
        mask, told = steps["action_mask"], steps["teacher"]
        if loss == "mse":
            assert told["allowed"].equal(mask)
        else:
            assert not told["probabilities"][~mask].any()
        rows = steps.reshape(-1)
        before = student.loss(rows)
        forbidden = ~rows["action_mask"]
        key = "values" if loss == "mse" else "probabilities"
        if loss == "mse":
            rows["teacher"][key][forbidden] = 1e6
        assert student.loss(rows).value.isfinite()
        assert student.loss(rows).value == before.value
        assert student.loss(rows).metrics["policy/agreement"] == 1  # one action is allowed


def test_what_a_native_environment_spends_on_resets_is_left_out(tmp_path):
    path = teach(tmp_path / "t.ckpt", network=SMALL)
    data = probe(vectorization="native", total_frames=64)
    student = Distill(data.spec, path, network=SMALL)
    rows = rollout_of(student, data)[0].reshape(-1)
    before = student.loss(rows).value
    assert not rows["valid"].all()
    rows["teacher"]["probabilities"][~rows["valid"]] = torch.tensor([1.0, 0.0])
    assert student.loss(rows).value == before


# --- checkpoints ------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_student_alone(tmp_path):
    path = teach(tmp_path / "t.ckpt", network=SMALL)
    student = learn(path, probe(total_frames=64))
    assert {id(p) for p in student.parameters()}.isdisjoint(
        id(p) for p in student.teacher.agent.parameters()
    )
    trained = student.parameter_groups()[0]["params"]
    assert len(trained) == len(list(student.policy.parameters()))
    saved = save(student, tmp_path / "s.ckpt")
    checkpoint = torch.load(saved, weights_only=True)
    assert all(name.startswith("policy.") for name in checkpoint["state_dict"])
    assert not any("critic" in name for name in checkpoint["state_dict"])
    assert checkpoint["hyper_parameters"]["teacher"] == path
    assert checkpoint["teacher_digest"] == student.teacher.digest
    assert not any(p.requires_grad for p in student.teacher.agent.parameters())
    assert not student.teacher.agent.training
    clone = copy.deepcopy(student)
    assert clone.teacher is None
    assert said(clone)["probabilities"].equal(said(student)["probabilities"])

    (tmp_path / "t.ckpt").unlink()
    loaded = Distill.load_from_checkpoint(saved)
    assert said(loaded)["probabilities"].equal(said(student)["probabilities"])
    assert loaded.predict(batch("vector", 0)[0]) in (0, 1)
    make_trainer(limit_val_batches=1.0).validate(loaded, probe(), verbose=False)
    with pytest.raises(ConfigurationError, match=r"t\.ckpt: the file does not exist"):
        fit(loaded, probe())


def test_stopping_and_going_on_is_not_stopping(tmp_path):
    """Bit for bit, with a frozen language model's texts and states that are drawn."""
    reader = partial(LLMEncoder, model=tiny_model("bert", tmp_path / "bert"))
    kwargs = {"encoder": partial(HashedWordsEncoder, dim=8, buckets=64), "value_coef": 0.5}

    def data(rollouts):
        minibatches = {"minibatch_size": 32, "passes": 2}
        return probe(
            observation="text", task="policy", total_frames=64 * rollouts, seed=3, **minibatches
        )

    def train(path, epochs, ckpt_path=None):
        torch.manual_seed(5)
        made = data(8)
        agent = Distill(made.spec, teacher, network=SMALL, lr_schedule="linear", **kwargs)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(agent, made, ckpt_path=ckpt_path)
        trainer.save_checkpoint(path)
        return torch.load(path, weights_only=True)

    teacher = teach(tmp_path / "t.ckpt", data=data(1), encoder=reader, network=SMALL)
    train(tmp_path / "half.ckpt", 3)
    parts = train(tmp_path / "parts.ckpt", 6, tmp_path / "half.ckpt")
    whole = train(tmp_path / "whole.ckpt", 6)
    for name, weight in whole["state_dict"].items():
        assert weight.equal(parts["state_dict"][name]), name
    moments = whole["optimizer_states"][0]["state"][0]["exp_avg"]
    assert moments.equal(parts["optimizer_states"][0]["state"][0]["exp_avg"])
    assert whole["frames"] == parts["frames"] == 6 * 64

    teach(tmp_path / "t.ckpt", data=data(1), encoder=reader, network=SMALL, scale=2.0)
    with pytest.raises(ConfigurationError, match="another file than the one that this run"):
        train(tmp_path / "x.ckpt", 6, tmp_path / "half.ckpt")
    Distill.load_from_checkpoint(tmp_path / "half.ckpt")  # to act, any will do


def test_metrics(tmp_path):
    path = teach(tmp_path / "t.ckpt", network=SMALL)
    agent = Distill(probe().spec, path, network=SMALL, value_coef=0.5)
    data = probe(total_frames=64)
    trainer = make_trainer(log_every_n_steps=1)
    trainer.fit(agent, data)
    logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert {"loss/distill", "loss/value", "policy/agreement", "distill/mix"} <= logged.keys()
    assert 0 <= logged["policy/agreement"] <= 1
    assert logged["distill/mix"] == 1


# --- what cannot be ---------------------------------------------------------------------------


def test_teachers_that_cannot_teach(tmp_path):
    with pytest.raises(ConfigurationError, match=r"model\.teacher: give the checkpoint"):
        learn(None)
    with pytest.raises(ConfigurationError, match="does not exist"):
        learn(str(tmp_path / "gone.ckpt"))
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ConfigurationError, match="this is no checkpoint"):
        learn(str(tmp_path / "text.ckpt"))
    cases = {
        r"reads observations of .*and Probe-v0 has .*data\.env": teach(
            tmp_path / "a.ckpt", data=probe(observation="image")
        ),
        r"acts in MultiDiscrete.*and Probe-v0 takes Discrete": teach(
            tmp_path / "b.ckpt", data=probe("multi_discrete")
        ),
        r"PPO in .* remembers earlier steps": teach(
            tmp_path / "c.ckpt", network=partial(ActorCritic, recurrent="gru")
        ),
        r"holds a RewardModel, which has no policy": save(
            RewardModel(probe().spec), tmp_path / "d.ckpt"
        ),
    }
    for message, path in cases.items():
        with pytest.raises(ConfigurationError, match=message):
            learn(path)
    path = teach(tmp_path / "e.ckpt", DQN)
    with pytest.raises(ConfigurationError, match=r"DQN in .* does not say V\(s\).*value_coef: 0"):
        learn(path, value_coef=0.5)
    path = teach(tmp_path / "f.ckpt")
    with pytest.raises(ConfigurationError, match=r"PPO in .* does not say Q-values.*loss: kl"):
        learn(path, loss="mse", network=QNetwork)


def test_students_that_cannot_learn(tmp_path):
    box, discrete = probe("box").spec, probe().spec
    text = EnvSpec(OBSERVATIONS["text"], gym.spaces.Discrete(2), "Words", ["left", "right"])
    model = tiny_model("llama", tmp_path / "llama")
    scores = partial(TextActionEncoder, model=model, tune="lora", max_length=64)
    paid = partial(
        GuidedEncoder,
        encoder=HashedWordsEncoder,
        prior=partial(TextActionEncoder, model=model, max_length=64),
        kl_coef=0.1,
    )
    writer = {"encoder": scores, "network": GeneratingPolicy}
    for make, message in (
        (lambda: Distill(text, "t", encoder=MLPEncoder), "MLPEncoder cannot read Text"),
        (lambda: Distill(text, "t", **writer), "a GeneratingPolicy writes one"),
        (lambda: Distill(text, "t", encoder=paid), "kl_coef of a GuidedEncoder"),
        (lambda: Distill(discrete, "t", loss="l1"), r"model\.loss='l1': use one of kl"),
        (lambda: Distill(discrete, "t", visit="both."), r"model\.visit='both\.': use one of"),
        (lambda: Distill(discrete, "t", loss="mse"), "`outputs`, .*give QNetwork"),
        (lambda: Distill(discrete, "t", network=QNetwork), "`critic`, .*give ActorCritic"),
        (lambda: Distill(box, "t", loss="cross_entropy"), "use kl or mse"),
        (lambda: Distill(box, "t", loss="mse", temperature=0.5), "does nothing to a mean"),
        (lambda: Distill(probe("multi_binary").spec, "t", loss="mse"), "use kl or cross_entropy"),
        (
            lambda: Distill(discrete, "t", loss="mse", network=QNetwork, value_coef=1.0),
            "needs a critic, which a Q-network",
        ),
        (
            lambda: Distill(discrete, "t", network=partial(ActorCritic, recurrent="gru")),
            "no memory can be",
        ),
        (lambda: Distill(discrete, "t", temperature=0.0), "temperature must be at least"),
        (lambda: Distill(discrete, "t", value_coef=math.nan), "value_coef must be"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make()


def test_replay_keeps_nothing_that_a_teacher_says(tmp_path):
    data = ReplayDataModule("CartPole-v1", warmup_frames=8, total_frames=16, frames_per_epoch=8)
    path = teach(tmp_path / "t.ckpt", data=data)
    with pytest.raises(ConfigurationError, match=r"Distill does not learn from replay: .*Rollout"):
        fit(Distill(data.spec, path), data)
