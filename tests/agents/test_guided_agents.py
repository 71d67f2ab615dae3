"""Agents with a prior: what it does to each, the first ratio, resuming, and who takes none."""

import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import text_probes
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from tensordict import TensorDict
from training import fit, make_trainer

from rl_lightning import (
    A2C,
    BC,
    DQN,
    PPO,
    REINFORCE,
    ActorCritic,
    Agent,
    DictEncoder,
    DiscreteNetwork,
    DiscreteSAC,
    GuidedEncoder,
    LLMEncoder,
    MLPEncoder,
    QNetwork,
    ReplayDataModule,
    RewardModel,
    RolloutDataModule,
    RolloutPolicy,
    TextActionEncoder,
)
from rl_lightning.agents.guides import check_guides
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.exploration import Boltzmann, EpsilonGreedy, ValueExploration
from rl_lightning.maths import losses
from rl_lightning.maths.distributions import Categorical

NAMES = ["north", "east"]
WALLS = ("There is a wall to the north.", "There is a wall to the east.")
ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("llama"), layers=2)


class Opinionated(GuidedEncoder):
    """Has its own idea of walls: with `trust` 3, the wrong action is 20 times likelier."""

    trust = 3.0

    def _says(self, obs):
        said = super()._says(obs)
        if not bool(said.any()):
            return said
        wrong = torch.tensor([0 if "north" in text else 1 for text in obs])
        return (self.trust * torch.nn.functional.one_hot(wrong, 2)).float().log_softmax(-1)


def guided(model, env="TextNamed-v0", kind=GuidedEncoder, **kwargs):
    own = {"actions": NAMES} if env == "TextNamed-v0" else {}
    prior = partial(TextActionEncoder, model=model, max_length=40, **own)
    reads = partial(LLMEncoder, model=model, max_length=40)
    if env == "TextListed-v0":
        reads = partial(DictEncoder, encoders={"observation": reads}, ignore=["actions"])
    return partial(kind, encoder=reads, prior=prior, **kwargs)


def small(cls=ActorCritic, **kwargs):
    return partial(cls, hidden=(16,), **kwargs)


def rollouts(env="TextNamed-v0", **kwargs):
    defaults = {"num_envs": 16, "rollout_steps": 4, "minibatch_size": 32, "passes": 2}
    return RolloutDataModule(env, **{**defaults, "seed": 3, **kwargs})


def replay(env="TextNamed-v0", **kwargs):
    defaults = {"warmup_frames": 16, "batch_size": 16, "total_frames": 96, "frames_per_epoch": 32}
    return ReplayDataModule(env, 4, **{**defaults, "seed": 3, **kwargs})


# --- policies over rollouts


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_the_policy_is_its_own_times_the_prior(model, recurrent, start):
    data = rollouts()
    data.spec.action_space = gym.spaces.Discrete(2, start=start)
    agent = PPO(data.spec, guided(model, weight=0.7), small(recurrent=recurrent))
    policy, x = agent.policy, agent.preprocess(WALLS)
    torch.nn.init.normal_(policy.action_head.linear.weight)
    with torch.no_grad():
        hidden = policy.actor(policy._features(x, None)[0])
        expected = (policy.action_head.logits(hidden) + 0.7 * x["prior"]).softmax(-1)
        plain = policy.action_head(hidden).probabilities()
        told = policy.inspect(x)["probabilities"]
        torch.testing.assert_close(told, expected)
        assert not torch.allclose(told, plain)
        assert torch.equal(policy.act(x, False)["action"], expected.argmax(-1) + start)
        agent.encoder.anneal(0.5)  # and at the end it is its own, to the bit
        assert torch.equal(policy.inspect(x)["probabilities"], plain)


def test_masks_hold(model):
    agent = PPO(rollouts().spec, guided(model), small())
    x = agent.preprocess(WALLS)
    mask = torch.tensor([[True, False], [False, True]])
    torch.testing.assert_close(agent.policy.inspect(x, mask=mask)["probabilities"], mask.float())
    assert agent.policy.act(x, mask=mask)["action"].tolist() == [0, 1]


@pytest.fixture
def ratios(monkeypatch):
    """|ρ − 1| of each update's rows, where acting notes log π and the loss evaluates it."""
    seen = []
    original = losses.ppo_policy_loss

    def spy(log_ratio, *args, **kwargs):
        seen.append((log_ratio.detach().exp() - 1).abs().max().item())
        return original(log_ratio, *args, **kwargs)

    monkeypatch.setattr(losses, "ppo_policy_loss", spy)
    return seen


class Noting(ActorCritic):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluates_while_acting = True


@pytest.mark.parametrize("env", ["TextNamed-v0", "TextListed-v0"])
@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_the_first_ratio_of_each_rollout_is_one_while_the_weight_falls(
    model, ratios, env, recurrent
):
    data = rollouts(env, total_frames=256)
    agent = PPO(data.spec, guided(model, env, fraction=1.0, kl_coef=0.1),
                small(Noting, recurrent=recurrent), optimizer=ADAM)  # fmt: skip
    fit(agent, data)
    assert len(ratios) == 16
    assert max(ratios[::4]) < 1e-5
    assert min(ratios[3::4]) > 1e-4
    # Told after collecting: the third rollout is the first that knows that a quarter is over.
    assert agent.encoder.weight_now.item() == pytest.approx(0.5)
    assert agent.progress == 0.75


@pytest.mark.parametrize("agent", [A2C, REINFORCE, partial(REINFORCE, baseline=False)])
def test_others_learn_with_it(model, agent):
    data = rollouts(total_frames=128, passes=1, minibatch_size=None)
    made = agent(data.spec, guided(model, kl_coef=0.1), small(), optimizer=ADAM)
    fit(made, data)
    assert made.frames == 128


def test_straying_from_the_prior_costs(model):
    agent = PPO(rollouts().spec, guided(model, kl_coef=0.5, kl_coef_end=0.25), small())
    policy = agent.policy
    x = dict(agent.preprocess(WALLS))
    x["prior"] = torch.tensor([[0.8, 0.2], [0.1, 0.9]]).log()
    steps = TensorDict(
        {
            "obs": TensorDict(x, [2])[None],
            "action": torch.tensor([[1, 1]]),
            "log_prob": torch.tensor([[0.4, 0.9]]).log(),
            "value": torch.zeros(1, 2),
            "reward": torch.tensor([[1.0, 2.0]]),
        },
        [1, 2],
    )
    cost = np.log([0.4 / 0.2, 1.0])
    np.testing.assert_allclose(policy.rewards(steps)[0], [1.0 - 0.5 * cost[0], 2.0], rtol=1e-5)
    assert policy.metrics() == {"policy/kl_to_prior": pytest.approx(cost.mean())}
    assert policy.metrics() == {}
    agent.encoder.anneal(0.5)
    np.testing.assert_allclose(policy.rewards(steps)[0], [1.0 - 0.25 * cost[0], 2.0], rtol=1e-5)
    steps["valid"] = torch.tensor([[False, True]])
    policy.rewards(steps)
    assert policy.metrics()["policy/kl_to_prior"] == pytest.approx(0.0, abs=1e-6)
    del steps["valid"]
    steps["action_mask"] = torch.tensor([[[False, True], [True, True]]])
    np.testing.assert_allclose(
        policy.rewards(steps)[0], [1.0 - 0.25 * np.log(0.4), 2.0], rtol=1e-5
    )  # of what is allowed, the prior has it for certain
    plain = PPO(rollouts().spec, guided(model), small()).policy
    assert plain.rewards(steps) is steps["reward"]
    assert plain.metrics() == {}


def test_it_is_recalled_where_acting_has_not_noted_it(model):
    """Without weight, kl = log π − log prior of the actor's own π."""
    agent = PPO(rollouts().spec, guided(model, weight=0.0, kl_coef=1.0), small())
    x = agent.preprocess(WALLS)
    action = torch.tensor([0, 1])
    steps = TensorDict({"obs": TensorDict(x, [2]), "action": action,
                        "reward": torch.zeros(2)}, [2])  # fmt: skip
    steps = steps[None]
    with torch.no_grad():
        log_prob = agent.policy.inspect(x)["probabilities"].log()[[0, 1], action]
        reward = agent.policy.rewards(steps)
    torch.testing.assert_close(reward[0], x["prior"][[0, 1], action] - log_prob)


@pytest.mark.parametrize("cost", [0.0, 0.2])
def test_a_resumed_run_is_the_uninterrupted_one(model, cost, tmp_path):
    def run(epochs, ckpt_path=None):
        torch.manual_seed(0)
        data = rollouts(total_frames=256)
        agent = PPO(data.spec, guided(model, fraction=1.0, kl_coef=cost), small(), optimizer=ADAM)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(agent, data, ckpt_path=ckpt_path)
        return agent, trainer

    whole, _ = run(4)
    _, trainer = run(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(4, tmp_path / "half.ckpt")
    assert whole.encoder.weight_now.item() == 0.5
    for name, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_knows_its_agent_and_its_weight(model, tmp_path):
    data = rollouts(total_frames=256)
    agent = PPO(data.spec, guided(model, fraction=1.0), small(), optimizer=ADAM)
    trainer = make_trainer()
    trainer.fit(agent, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Agent.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.encoder.weight_now.item() == 0.5
    with torch.no_grad():
        a, b = (one.inspect(one.preprocess(WALLS)) for one in (agent.eval(), loaded.eval()))
    torch.testing.assert_close(a["probabilities"], b["probabilities"])
    assert agent.predict(WALLS).tolist() == loaded.predict(WALLS).tolist()


# --- agents over replay


def test_exploration_draws_from_the_prior(model):
    def drawn(exploration, weight=1.0, explore=True):
        agent = DQN(replay().spec, guided(model, kind=Opinionated, weight=weight), small(QNetwork),
                    exploration=exploration)  # fmt: skip
        x = agent.preprocess(WALLS[:1] * 4000)
        with torch.no_grad():
            action = agent.act(x, explore)["action"]
            return (action == 0).float().mean().item(), agent.inspect(x)["values"][0]

    always = partial(EpsilonGreedy, 1.0, 1.0)
    likely = 1 / (1 + np.exp(-3.0))  # as the prior has it
    assert drawn(always)[0] == pytest.approx(likely, abs=0.02)
    assert drawn(always, 0.0)[0] == pytest.approx(0.5, abs=0.04)
    assert drawn(always, 0.5)[0] == pytest.approx(1 / (1 + np.exp(-1.5)), abs=0.03)
    share, q = drawn(partial(Boltzmann, 0.5, 0.5))
    mixed = (q / 0.5 + torch.tensor([3.0, 0.0])).softmax(0)
    assert share == pytest.approx(mixed[0].item(), abs=0.02)
    share, q = drawn(always, explore=False)  # Q alone
    assert share == float(q.argmax() == 0)


def test_a_strategy_draws_from_logits_and_masks_them():
    values = torch.tensor([1.0, 0.0, 0.5]).expand(4000, 3)
    logits = torch.tensor([0.3, 0.2, 0.5]).log().expand(4000, 3)
    mask = torch.tensor([True, True, False]).expand(4000, 3)
    for make, expected in (
        (EpsilonGreedy(1.0, 1.0), [0.6, 0.4, 0.0]),
        (Boltzmann(1.0, 1.0), [0.3 * np.e / (0.3 * np.e + 0.2), 0.2 / (0.3 * np.e + 0.2), 0.0]),
    ):
        got = make.choose(lambda: values, logits, 0.0, mask)
        share = torch.bincount(got, minlength=3) / 4000
        np.testing.assert_allclose(share, expected, atol=0.03)


def test_soft_values_by_hand(model):
    agent = DiscreteSAC(
        replay().spec, guided(model, weight=0.5), small(DiscreteNetwork), temperature=0.2
    )
    x = agent.preprocess(WALLS[:1])
    x = {**x, "prior": torch.tensor([[0.8, 0.2]]).log()}
    with torch.no_grad():
        features = agent.policy.features(x)
        logits = agent.policy.actor(features)[0]
        policy = agent.policy.policy(features, None, x)
        p = (logits + 0.5 * x["prior"]).softmax(-1)
        torch.testing.assert_close(policy.probabilities(), p)
        q = torch.tensor([[1.0, 2.0]])
        soft = (p * (q - 0.2 * p.log() + 0.2 * 0.5 * x["prior"])).sum(-1)
        torch.testing.assert_close(agent._soft_value(q, policy, x), soft)
        told = agent.inspect(x)
        torch.testing.assert_close(told["probabilities"], p)
        torch.testing.assert_close(told["value"], agent._soft_value(told["values"], policy, x))
        # Logits of Q / α are best, whatever the weight: soft value = α log Σ priorʷ exp(Q / α).
        best = torch.distributions.Categorical(logits=q / 0.2 + 0.5 * x["prior"])
        top = 0.2 * (q / 0.2 + 0.5 * x["prior"]).logsumexp(-1)
        torch.testing.assert_close(agent._soft_value(q, Categorical(best.logits), x), top)


@pytest.mark.parametrize("env", ["TextNamed-v0", "TextListed-v0"])
@pytest.mark.parametrize("kind", [DQN, DiscreteSAC])
def test_replay_runs_while_the_weight_falls_at_each_step(model, kind, env):
    data = replay(env, prioritized=True)
    network = small(QNetwork) if kind is DQN else small(DiscreteNetwork)
    agent = kind(data.spec, guided(model, env, fraction=1.0), network, optimizer=ADAM)
    weights = []
    original = agent.after_update

    def spy():
        original()
        weights.append(agent.encoder.weight_now.item())

    agent.after_update = spy
    fit(agent, data)
    assert weights == sorted(weights, reverse=True)
    assert len(set(weights)) > 10
    assert weights[-1] == pytest.approx(1.0 - agent.progress)


def test_losses_by_hand(model):
    agent = DiscreteSAC(
        replay().spec,
        guided(model, kind=Opinionated, weight=0.5),
        small(DiscreteNetwork),
        temperature=0.2,
    )
    x, after = agent.preprocess(WALLS), agent.preprocess(WALLS[::-1])
    action, reward = torch.tensor([0, 1]), torch.tensor([1.0, -1.0])
    batch = TensorDict({"obs": x, "next_obs": after, "action": action, "reward": reward,
                        "discount": torch.tensor([0.9, 0.5])}, [2])  # fmt: skip

    @torch.no_grad()
    def soft(x, critics):
        features = agent.policy.features(x)
        p = (agent.policy.actor(features)[0] + 0.5 * x["prior"]).softmax(-1)
        q = critics.q(features).amin(0)
        return (p * (q - 0.2 * p.log() + 0.2 * 0.5 * x["prior"])).sum(-1)

    told = agent.loss(batch).metrics
    target = reward + torch.tensor([0.9, 0.5]) * soft(after, agent.target)
    with torch.no_grad():
        taken = agent.policy.q(agent.policy.features(x))[:, [0, 1], action]  # (2, N)
    torch.testing.assert_close(
        told["loss/q"].detach(), (0.5 * (taken - target).square().sum(0)).mean()
    )
    torch.testing.assert_close(told["loss/policy"].detach(), -soft(x, agent.policy).mean())


@pytest.mark.parametrize("kind", [DQN, DiscreteSAC])
def test_replay_resumes_to_the_bit(model, kind, tmp_path):
    def run(epochs, ckpt_path=None):
        torch.manual_seed(0)
        data = replay(total_frames=144)
        network = small(QNetwork) if kind is DQN else small(DiscreteNetwork)
        agent = kind(data.spec, guided(model, fraction=1.0), network, optimizer=ADAM)
        saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True,
                                enable_version_counter=False)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_trainer(max_epochs=epochs, callbacks=[saver], enable_checkpointing=True,
                         gradient_clip_val=None).fit(agent, data, ckpt_path=ckpt_path)  # fmt: skip
        return agent

    run(2)
    resumed = run(4, tmp_path / "last.ckpt")
    whole = run(4)
    assert 0.0 < whole.encoder.weight_now.item() < 0.5
    for name, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed.state_dict()[name]), name


# --- a wrong prior


@pytest.mark.learning
@pytest.mark.parametrize("kind", ["ppo", "dqn", "sac"])
def test_a_wrong_prior_does_not_stop_learning(model, kind):
    torch.manual_seed(0)
    encoder = guided(model, kind=Opinionated)
    if kind == "ppo":
        data = rollouts(total_frames=64 * 40)
        agent = PPO(data.spec, encoder, small(), optimizer=ADAM, gamma=0.5)
    else:
        data = replay(total_frames=1000, frames_per_epoch=100, warmup_frames=8)
        shared = {"optimizer": ADAM, "gamma": 0.0}
        if kind == "dqn":
            agent = DQN(data.spec, encoder, small(QNetwork), target_update_frames=50,
                        exploration=partial(EpsilonGreedy, fraction=0.5), **shared)  # fmt: skip
        else:
            agent = DiscreteSAC(
                data.spec, encoder, small(DiscreteNetwork), temperature=0.1, **shared
            )
    x = agent.preprocess(WALLS)
    assert x["prior"].argmax(-1).tolist() == [0, 1]  # as walls are
    if kind != "dqn":
        assert agent.predict(WALLS).tolist() == [0, 1]
    fit(agent, data)
    assert agent.encoder.weight_now.item() == 0.0
    assert agent.predict(WALLS).tolist() == [1, 0]


# --- who takes none


class Deaf(RolloutPolicy):
    """Does not ask the prior."""

    def __init__(self, spec, encoder):
        super().__init__()
        self.encoder = encoder(spec)
        self.head = torch.nn.Linear(self.encoder.out_dim, 2)

    def value(self, x, state=None):
        return self.head(self.encoder(x))[:, 0]


class Own(ValueExploration):
    def __init__(self):
        super().__init__(1.0, 1.0, 0.5)

    def __call__(self, values, progress, mask=None):
        return values.argmax(-1)


def refusals(model):
    spec, listed = rollouts().spec, rollouts("TextListed-v0").spec
    listed.action_names = None
    inner = partial(DictEncoder, encoders={"observation": partial(
        GuidedEncoder, encoder=partial(LLMEncoder, model=model, max_length=40),
        prior=partial(TextActionEncoder, model=model, max_length=40,
                      actions=list(text_probes.LINES[:6])))}, ignore=["actions"])  # fmt: skip
    return {
        "policy": (lambda: PPO(spec, guided(model), Deaf), "Deaf takes no prior"),
        "bc": (lambda: BC(spec, guided(model)), "model.encoder: BC takes no prior"),
        "judge": (lambda: RewardModel(spec, guided(model)), "RewardModel takes no prior"),
        "nested": (lambda: PPO(listed, inner), "is a part of another encoder"),
        "dqn-kl": (lambda: DQN(spec, guided(model, kl_coef=0.1)), "kl_coef is paid in the rewards"),
        "sac-kl": (
            lambda: DiscreteSAC(spec, guided(model, kl_coef_end=0.1)),
            "kl_coef is paid in the rewards",
        ),
        "nothing": (
            lambda: DQN(spec, guided(model), exploration=None),
            "leaves nothing that a GuidedEncoder's prior could guide",
        ),
        "own": (lambda: DQN(spec, guided(model), exploration=Own), "Own takes no prior"),
    }


@pytest.mark.parametrize(
    "name", ["policy", "bc", "judge", "nested", "dqn-kl", "sac-kl", "nothing", "own"]
)
def test_who_takes_none_says_so(model, name):
    make, said = refusals(model)[name]
    with pytest.raises(ConfigurationError, match=said):
        check_guides(make())


def test_it_is_said_before_training(model):
    data = rollouts(total_frames=64)
    with pytest.raises(ConfigurationError, match="Deaf takes no prior"):
        fit(PPO(data.spec, guided(model), Deaf), data)


def test_who_takes_one_is_let_through(model):
    spec = rollouts().spec
    for agent in (
        PPO(spec, guided(model)),
        PPO(spec, guided(model), small(share_encoder=False)),
        DQN(spec, guided(model)),
        DiscreteSAC(spec, guided(model)),
        PPO(spec, partial(LLMEncoder, model=model, max_length=40)),
    ):
        check_guides(agent)
    agent = PPO(spec, guided(model), small())
    agent.policy.encoder = torch.compile(agent.policy.encoder)
    check_guides(agent)
    assert agent.policy.guide is agent.encoder._orig_mod


# --- vectors, guided by their description


@pytest.mark.parametrize("kind", [PPO, DQN, DiscreteSAC])
def test_vectors_are_guided_by_their_description(model, kind):
    wrappers = [{"Describe": {"keep": True}}]
    make = rollouts if kind is PPO else replay
    data = make("CartPole-v1", total_frames=64, wrappers=wrappers)
    encoder = partial(
        GuidedEncoder,
        encoder=partial(
            DictEncoder,
            encoders={"observation": partial(MLPEncoder, hidden=(8,))},
            ignore=["text"],
        ),
        prior=partial(TextActionEncoder, model=model, actions=["left", "right"], max_length=100),
    )
    network = {PPO: small(share_encoder=False), DQN: small(QNetwork)}
    agent = kind(data.spec, encoder, network.get(kind, small(DiscreteNetwork)))
    weight = agent.encoder.own.parts[0].trunk[0].weight.detach().clone()
    fit(agent, data)
    assert agent.frames >= 64
    assert not torch.equal(agent.encoder.own.parts[0].trunk[0].weight, weight)
    other = agent.policy.critic_encoder if kind is PPO else agent.target.encoder
    assert other is not agent.encoder
    assert other.prior.cache is agent.encoder.prior.cache
    assert other.prior.backbone.model is agent.encoder.prior.backbone.model
