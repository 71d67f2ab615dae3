"""A language model that writes what it does."""

from functools import partial

import pytest
import torch
from llm_tiny import tiny_model
from text_probes import Listed, Named
from training import fit, make_trainer

from rl_lightning import (
    A2C,
    DQN,
    PPO,
    REINFORCE,
    EnvSpec,
    GeneratingPolicy,
    ReplayDataModule,
    RolloutDataModule,
    TextActionEncoder,
)
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.maths import losses
from rl_lightning.policies.parsing import ActionParser

NAMES = ["north", "east"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("llama"), layers=2)


def encoder(model, tune="lora", **kwargs):
    return partial(TextActionEncoder, model=model, tune=tune, max_length=40, **kwargs)


def policy(model, env=Named, names=NAMES, **kwargs):
    spec = EnvSpec(env().observation_space, env().action_space, "Probe-v0")
    own = {} if names is None else {"actions": names}
    return GeneratingPolicy(spec, encoder(model, **own), **kwargs).eval()


def writes(made, monkeypatch, *rounds):
    """Have a policy write these texts, a list for every time it is asked."""
    tokens = made.encoder.backbone.tokens
    said = iter(rounds)

    def write(prompt, length, temperature):
        from rl_lightning.llm.generation import Generated

        ids = [tokens.plain(text) for text in next(said)][: len(prompt)]
        width = made.max_new_tokens
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
        ended = torch.ones(len(ids), dtype=torch.bool)
        return Generated(padded, lengths, torch.zeros(len(ids), width), ended)

    monkeypatch.setattr(made, "_write", write)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("north", 0),
        (" North.\n", 0),
        ('"go to the  east"', 1),
        ("north, because there is no wall", 0),
        ("northern", None),
        ("go to the east door", 2),
        ("go to the east", 1),
        ("go", None),
        ("", None),
        ("south", None),
    ],
)
def test_an_action_is_found_in_a_text(text, expected):
    assert ActionParser()(text, ["north", " go to the east", "go to the east door"]) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["<", ">"], "the action '<' is nothing else"),
        (["N", "n"], "the action 'N' differs from another one by these alone"),
        (["go", "Go!"], "'go' differs"),
    ],
)
def test_names_that_reading_cannot_tell_apart_are_refused(model, names, message):
    with pytest.raises(ConfigurationError, match=message):
        policy(model, names=names)
    with pytest.raises(RunError, match=message):
        ActionParser()("go", names)


def test_where_there_is_no_choice_nothing_is_played(model, monkeypatch):
    made = policy(model, Listed, None)
    writes(made, monkeypatch, ["go"], ["go"])
    x = made.encoder.preprocess({"observation": ("x",), "actions": ("",)})
    with pytest.raises(RunError, match="there is no candidate to choose from"):
        made.act(x)
    x = made.encoder.preprocess({"observation": ("x",), "actions": ("go",)})
    with pytest.raises(RunError, match="there is no candidate to choose from"):
        made.act(x, mask=torch.zeros(1, made.mask_dim, dtype=torch.bool))


def test_an_answer_behind_thoughts():
    parse = ActionParser("<answer>(.*?)</answer>")
    assert parse("north is bad <answer> East </answer>", NAMES) == 1
    assert parse("<answer>north</answer> no, <answer>east</answer>", NAMES) == 1
    assert parse("east", NAMES) is None
    assert ActionParser("east|north")("I go north now", NAMES) == 0
    with pytest.raises(ConfigurationError, match="answer='\\(' is no regular expression"):
        ActionParser("(")


def test_legal_texts_are_played_and_illegal_ones_counted(model, monkeypatch):
    made = policy(model)
    writes(made, monkeypatch, ["east", "the box", "north", "a wall"])
    x = made.encoder.preprocess(["There is a wall"] * 4)
    torch.manual_seed(0)
    out = made.act(x)
    assert out["illegal"].tolist() == [False, True, False, True]
    assert out["action"][[0, 2]].tolist() == [1, 0]
    assert set(out["action"].tolist()) <= {0, 1}
    assert made.metrics() == {"policy/illegal": 0.5}
    assert made.metrics() == {}


def test_what_is_masked_or_not_offered_is_illegal(model, monkeypatch):
    made = policy(model)
    x = made.encoder.preprocess(["There is a wall"] * 2)
    mask = torch.tensor([[True, False], [False, True]])
    writes(made, monkeypatch, ["east", "east"])
    out = made.act(x, mask=mask)
    assert out["illegal"].tolist() == [True, False]
    assert out["action"].tolist() == [0, 1]
    made = policy(model, Listed, None)
    obs = {"observation": ("x", "x"), "actions": ("go to the door\npick up the key", "go\nwait")}
    x = made.encoder.preprocess(obs)
    writes(made, monkeypatch, ["pick up the key", "pick up the key"])
    out = made.act(x)
    assert out["illegal"].tolist() == [False, True]
    assert out["action"][0] == 1
    assert out["action"][1] in (0, 1)


def test_illegal_texts_are_written_anew_where_asked(model, monkeypatch):
    made = policy(model, on_illegal="resample", retries=2)
    writes(made, monkeypatch, ["box", "east", "box"], ["north", "box"], ["east"])
    x = made.encoder.preprocess(["There is a wall"] * 3)
    out = made.act(x)
    assert out["action"].tolist() == [0, 1, 1]
    assert not out["illegal"].any()
    tokens = made.encoder.backbone.tokens
    for n, text in enumerate(["north", "east", "east"]):  # what is learned from is what was played
        ids = out["latent"]["ids"][n, : out["latent"]["length"][n]].tolist()
        assert tokens.tokenizer.decode(ids) == text


def test_only_penalize_pays_for_it(model):
    from tensordict import TensorDict

    steps = TensorDict(
        {"reward": torch.ones(2, 3), "illegal": torch.tensor([[True, False, False]] * 2)},
        batch_size=[2, 3],
    )
    paid = policy(model, on_illegal="penalize", illegal_reward=-0.5).rewards(steps)
    assert paid.tolist() == [[0.5, 1, 1]] * 2
    assert policy(model, on_illegal="replace").rewards(steps).tolist() == [[1, 1, 1]] * 2


def test_log_probabilities_are_of_the_text(model):
    made = policy(model, temperature=0.7, max_new_tokens=5)
    torch.manual_seed(0)
    x = made.encoder.preprocess(["There is a wall", "go to the red ball"])
    with torch.no_grad():
        out = made.act(x)
    backbone = made.encoder.backbone
    for n in range(2):
        ids = out["latent"]["ids"][n, : out["latent"]["length"][n]].long()
        prompt = torch.tensor(
            made.encoder.choices.prompter.prompts(
                [["There is a wall\nAction:", "go to the red ball\nAction:"][n]]
            )
        )
        whole = torch.cat([prompt, ids[None]], 1)
        logits = backbone.model(input_ids=whole).logits[0, prompt.shape[1] - 1 : -1] / 0.7
        own = logits.log_softmax(-1).gather(1, ids[:, None]).sum()
        torch.testing.assert_close(out["log_prob"][n], own, rtol=1e-5, atol=2e-5)


def test_greedy_is_the_same_every_time(model):
    made = policy(model)
    x = made.encoder.preprocess(["There is a wall"])
    texts = {tuple(made.act(x, explore=False)["latent"]["ids"][0].tolist()) for _ in range(4)}
    assert len(texts) == 1


def rollouts(env="TextNamed-v0", **kwargs):
    defaults = {"num_envs": 16, "rollout_steps": 4, "minibatch_size": 32, "passes": 2}
    return RolloutDataModule(env, **{**defaults, "seed": 3, **kwargs})


ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.mark.parametrize("env", ["TextNamed-v0", "TextListed-v0"])
def test_the_first_ratio_is_one(model, monkeypatch, env):
    seen = []
    original = losses.ppo_policy_loss

    def spy(log_ratio, *args, **kwargs):
        seen.append((log_ratio.detach().exp() - 1).abs().max())
        return original(log_ratio, *args, **kwargs)

    monkeypatch.setattr(losses, "ppo_policy_loss", spy)
    torch.manual_seed(0)
    data = rollouts(env, total_frames=64)
    own = {"actions": NAMES} if env == "TextNamed-v0" else {}
    made = partial(GeneratingPolicy, max_new_tokens=3)
    agent = PPO(data.spec, encoder(model, "full", **own), made, optimizer=ADAM)
    fit(agent, data)
    assert seen[0] < 1e-4
    assert seen[-1] > 1e-3


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("agent", [PPO, A2C, REINFORCE])
def test_it_learns_to_write_what_pays(model, agent):
    torch.manual_seed(0)
    one = {} if agent is PPO else {"passes": 1, "minibatch_size": None}
    data = rollouts(total_frames=128 * (60 if agent is PPO else 240), num_envs=32, **one)
    made = agent(
        data.spec,
        encoder(model, "full", actions=NAMES),
        partial(GeneratingPolicy, max_new_tokens=2, stop=[]),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        gamma=0.0,
    )
    fit(made, data)
    walls = ["There is a wall to the north.", "There is a wall to the east."]
    assert made.predict(walls).tolist() == [1, 0]


def test_a_resumed_run_is_the_uninterrupted_one(model, tmp_path):
    def run(frames, ckpt_path=None):
        torch.manual_seed(0)
        data = rollouts("TextListed-v0", total_frames=frames, num_envs=4)
        made = partial(GeneratingPolicy, max_new_tokens=3)
        agent = PPO(data.spec, encoder(model), made, optimizer=ADAM)
        trainer = make_trainer()
        trainer.fit(agent, data, ckpt_path=ckpt_path)
        return agent, trainer

    def rollouts(env, **kwargs):
        return RolloutDataModule(env, rollout_steps=4, minibatch_size=8, seed=3, **kwargs)

    whole, _ = run(64)
    _, trainer = run(32)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(64, tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"on_illegal": "ignore"}, "on_illegal='ignore': use one of"),
        ({"temperature": 0.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"illegal_reward": float("nan")}, "illegal_reward"),
        ({"max_new_tokens": 250}, "max_length=40 and max_new_tokens=250 are more than the 256"),
        ({"on_illegal": "resample", "retries": 0}, "retries"),
    ],
)
def test_what_makes_no_sense_is_refused(model, kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        policy(model, **kwargs)


def test_a_frozen_model_does_not_learn_to_write(model):
    spec = EnvSpec(Named().observation_space, Named().action_space, "Probe-v0")
    with pytest.raises(ConfigurationError, match="give the encoder tune: lora"):
        GeneratingPolicy(spec, encoder(model, "frozen", actions=NAMES))


def test_an_agent_from_replay_says_what_it_needs(model):
    data = ReplayDataModule("TextNamed-v0", 4, warmup_frames=16, batch_size=8, total_frames=64)
    with pytest.raises(ConfigurationError, match=r"by `outputs`.*give .*ScoringQNetwork"):
        DQN(data.spec, encoder(model, actions=NAMES), GeneratingPolicy)


def test_it_writes_as_much_as_it_may_and_reads_where_it_is_told(model, monkeypatch):
    x = policy(model).encoder.preprocess(["There is a wall"])
    for most in (1, 4):
        made = policy(model, max_new_tokens=most, stop=[])
        assert made.act(x)["latent"]["ids"].shape == (1, most)
    made = policy(model, answer="so: (.*)", max_new_tokens=40)
    writes(made, monkeypatch, ["north? so: east"])
    assert made.act(x)["action"].tolist() == [1]
    made = policy(model, max_new_tokens=6, stop=["a", "e", "o", "t", " "])
    torch.manual_seed(0)
    lengths = [int(made.act(x)["latent"]["length"]) for _ in range(20)]
    free = policy(model, max_new_tokens=6, stop=[])
    assert sum(lengths) < sum(int(free.act(x)["latent"]["length"]) for _ in range(20))


def test_what_is_evaluated_needs_no_second_look(model, monkeypatch):
    made = policy(model)
    monkeypatch.setattr(made, "_speak", lambda *a: pytest.fail("nothing is learned from it"))
    made.act(made.encoder.preprocess(["There is a wall"]), explore=False)
