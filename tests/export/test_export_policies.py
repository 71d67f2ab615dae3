"""Exported policies act as their agents do, in a process that has none of what made them."""

import json
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from every_agent import AGENTS, SPECS
from export_tools import BOX, KINDS, batched, made, opinionated, run_outside, sampled
from llm_tiny import tiny_model
from probes import ACTIONS, OBSERVATIONS

import rl_lightning
from rl_lightning import (
    DQN,
    IQL,
    PPO,
    ActorCritic,
    DictEncoder,
    EnvSpec,
    MLPEncoder,
    QTable,
    RolloutPolicy,
)
from rl_lightning.export import export_policy
from rl_lightning.export.run_exported import ExportedPolicy

BLOCKED = {"onnx": "torch lightning rl_lightning", "torch": "lightning rl_lightning"}
VECTOR = OBSERVATIONS["vector"]
STEPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("bert", tmp_path_factory.mktemp("bert"))


def inspected(agent, rows, state=None):
    """What the agent's own methods say of single observations: actions, scores, memory."""
    obs = batched(agent.spec.observation_space, rows)
    action, after = agent.predict(obs, state=state)
    with torch.no_grad():
        said = agent.inspect(agent.preprocess(obs), state=state)
    return action, {name: value.numpy() for name, value in said.items()}, after


def assert_same_choice(logits, probabilities):
    """Normalised logits `[N, A]` are those of the probabilities to 1e-4 of the largest: of a
    probability, that much of a logit is a share."""
    largest = np.abs(logits[probabilities > 0]).max()
    np.testing.assert_allclose(np.exp(logits), probabilities, 1e-4 * max(1.0, largest), 1e-7)


def assert_same(agent, found, action, said):
    """Scores to 1e-4; the same action wherever the best is better than the others by more."""
    if "probabilities" in said and "logits_0" in found:
        p = said["probabilities"]
        for k in range(p.shape[1]):
            width = found[f"logits_{k}"].shape[1]
            assert_same_choice(found[f"logits_{k}"], p[:, k, :width])
    elif "probabilities" in said:
        assert_same_choice(found["logits"], said["probabilities"])
    for name, here in (("values", "q_values"), ("mean", "mean")):
        if name in said and here in found:
            largest = np.abs(said[name]).max()
            np.testing.assert_allclose(found[here], said[name], 1e-4, 1e-4 * largest)
    assert found["action"].dtype == agent.spec.action_space.dtype
    if action.dtype.kind == "f":
        np.testing.assert_allclose(found["action"], action, 1e-4, 1e-4)
    else:
        assert (found["action"] == action).mean() > 0.995  # all but ties
    assert all(agent.spec.action_space.contains(one) for one in found["action"])


def check_kind(kind, model, folder, count, form="onnx"):
    agent = made(kind, model)
    parity = export_policy(agent, folder / kind, form)
    assert parity.wrong == 0
    assert parity.error < 1e-4
    steps = STEPS if kind == "recurrent" else 1
    rows = sampled(agent, count)
    found = run_outside(folder / kind, rows, steps, BLOCKED[form])
    size, state, actions = count // steps, None, []
    for step, out in enumerate(found):
        own = rows[step * size : (step + 1) * size]
        action, said, state = inspected(agent, own, state)
        actions.append(action)
        assert_same(agent, out, action, said)
        if state is not None:  # the actor's half of it: the critic's stays behind
            width = out["next_state"].shape[1]
            assert 2 * width == state.shape[1]
            np.testing.assert_allclose(out["next_state"], state[:, :width], 1e-4, 1e-6)
    np.testing.assert_allclose(found[0]["alone"], actions[0][0], 1e-4)
    assert len(np.unique(np.concatenate(actions), axis=0)) > 1  # or nothing would be compared


@pytest.mark.parametrize("kind", KINDS[3:])
def test_onnx_needs_neither_torch_nor_lightning_nor_this_library(kind, model, tmp_path):
    check_kind(kind, model, tmp_path, 60)


def test_torch_needs_neither_lightning_nor_this_library(tmp_path):
    check_kind("words", None, tmp_path, 60, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_on_a_thousand_observations(kind, model, tmp_path):
    check_kind(kind, model, tmp_path, 1000)


@pytest.mark.pretrained
@pytest.mark.slow
@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_onnx_with_minilm_inside(tune, tmp_path):
    reader = partial(rl_lightning.LLMEncoder, tune=tune, layers=2, max_length=32)
    agent = opinionated(PPO(EnvSpec(OBSERVATIONS["text"], gym.spaces.Discrete(3)), reader))
    export_policy(agent, tmp_path / "minilm")
    rows = sampled(agent, 1000)
    (found,) = run_outside(tmp_path / "minilm", rows, 1, BLOCKED["onnx"])
    action, said, _ = inspected(agent, rows)
    assert_same(agent, found, action, said)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent(name, tmp_path):
    """By torch.export, which takes a fraction of the time; the graph is the same."""
    spec = SPECS.get(name, EnvSpec(VECTOR, ACTIONS["discrete"]))
    agent = opinionated(getattr(rl_lightning, name)(spec))
    if name == "QTable":
        agent.policy.q.copy_(torch.randn(agent.policy.q.shape))
    assert export_policy(agent, tmp_path / "out", "torch").error < 1e-4
    rows = sampled(agent, 50)
    found = ExportedPolicy(tmp_path / "out").run(rows)
    action, said, _ = inspected(agent, rows)
    if name in ("DDPG", "TD3"):
        np.testing.assert_allclose(found["action_mean"], said.pop("mean"), 1e-4, 1e-6)
    assert_same(agent, found, action, said)


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_action_space_with_masks(kind, tmp_path):
    agent = opinionated(IQL(EnvSpec(VECTOR, ACTIONS[kind])))
    export_policy(agent, tmp_path / "out", "torch")
    policy, rows = ExportedPolicy(tmp_path / "out"), sampled(agent, 40)
    obs = batched(VECTOR, rows)
    if not agent.mask_dim:
        with pytest.raises(ValueError, match="takes none"):
            policy.run(rows, np.ones((40, 1)))
        assert np.allclose(policy.run(rows)["action"], agent.predict(obs))
        return
    mask = np.eye(agent.mask_dim, dtype=bool)[np.arange(40) % agent.mask_dim]
    mask[:, -1] |= kind == "multi_discrete"
    mask[:, 0] |= kind == "multi_discrete"
    found = policy.run(rows, mask)["action"]
    assert (found == agent.predict(obs, mask=mask)).all()
    assert (found != policy.run(rows)["action"]).any()
    assert (policy.act(rows[0], mask[0]) == found[0]).all()


def test_a_memory_is_kept_until_reset(tmp_path):
    agent = made("recurrent")
    export_policy(agent, tmp_path / "out", "torch")
    policy, rows = ExportedPolicy(tmp_path / "out"), sampled(agent, 6)
    played = [policy.run([row])["logits_0"] for row in rows]
    assert not np.allclose(policy.run([rows[0]])["logits_0"], played[0])
    policy.reset()
    again = [policy.run([row])["logits_0"] for row in rows]
    assert np.array_equal(played, again)
    with pytest.raises(ValueError, match=r"2 observations after 1: call reset"):
        policy.run(rows[:2])


def test_an_agent_is_left_as_it_is(tmp_path):
    agent = made("dict").train()
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    modes = {name: module.training for name, module in agent.named_modules()}
    export_policy(agent, tmp_path / "out", "torch")
    after = agent.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)
    assert modes == {name: module.training for name, module in agent.named_modules()}
    assert all(p.requires_grad for p in agent.policy.parameters())


def test_critics_stay_behind(tmp_path):
    sizes = {}
    for width in (8, 256):
        network = partial(rl_lightning.ContinuousNetwork, hidden=[8], critic_hidden=[width] * 3)
        agent = rl_lightning.SAC(EnvSpec(VECTOR, BOX), MLPEncoder, network)
        export_policy(agent, tmp_path / str(width), "torch")
        sizes[width] = (tmp_path / str(width) / "policy.pt2").stat().st_size
    assert sizes[256] < sizes[8] + 10_000  # the critics' own weights are a megabyte


def test_the_specification_says_what_goes_in_and_out(tmp_path):
    agent = made("image")
    export_policy(agent, tmp_path / "out", "torch", observations=70)
    spec = json.loads((tmp_path / "out" / "spec.json").read_text())
    assert [(one["name"], one["dtype"], one["shape"]) for one in spec["inputs"]] == [
        ("observation", "uint8", ["batch", 8, 8, 3]),
        ("action_mask", "bool", ["batch", 3]),
    ]
    assert [(one["name"], one["dtype"]) for one in spec["outputs"]] == [
        ("q_values", "float32"),
        ("action", "int64"),
    ]
    assert all(one["meaning"] for one in spec["outputs"])
    assert spec["action_space"] == {"kind": "Discrete", "n": 3, "start": 2}
    assert spec["parity"]["observations"] == 70
    assert spec["parity"]["greedy_agreement"] == 1.0
    assert spec["agent"] == "DQN"
    assert spec["versions"]["torch"] == torch.__version__


def test_a_table_over_several_numbers(tmp_path):
    """Rows by arithmetic, of observations that are counted from elsewhere than 0."""
    space = gym.spaces.Dict(
        {
            "a": gym.spaces.Discrete(3, start=-1),
            "b": gym.spaces.MultiDiscrete([2, 4], start=[0, 5]),
            "c": gym.spaces.MultiBinary(2),
        }
    )
    agent = QTable(EnvSpec(space, gym.spaces.Discrete(5, start=3)), method="double_q")
    agent.policy.q.copy_(torch.randn(agent.policy.q.shape))
    export_policy(agent, tmp_path / "out", "torch")
    rows = sampled(agent, 90)
    found = ExportedPolicy(tmp_path / "out").run(rows)
    obs = batched(space, rows)
    assert torch.from_numpy(found["q_values"]).equal(agent.policy(agent.preprocess(obs)))
    assert (found["action"] == agent.predict(obs)).all()
    with pytest.raises(ValueError, match="not between -1 and 1"):
        ExportedPolicy(tmp_path / "out").act({**rows[0], "a": 2})


class OwnPolicy(RolloutPolicy):
    """Somebody's own: the action with the largest weight."""

    mask_dim = 3

    def __init__(self, spec, encoder):
        super().__init__()
        self.encoder = encoder(spec)
        self.weights = torch.nn.Linear(self.encoder.out_dim, 3)

    def act(self, x, explore=True, state=None, mask=None):
        return {"action": self.weights(self.encoder(x)).argmax(-1)}

    def inspect(self, x, state=None, mask=None):
        return {"preferences": self.weights(self.encoder(x))}

    def evaluate(self, batch):
        raise NotImplementedError


def test_a_policy_of_a_class_of_ones_own(tmp_path):
    agent = opinionated(
        rl_lightning.REINFORCE(
            EnvSpec(VECTOR, gym.spaces.Discrete(3)),
            partial(MLPEncoder, normalize=True),
            OwnPolicy,
            baseline=False,
        )
    )
    export_policy(agent, tmp_path / "out", "torch")
    rows = sampled(agent, 50)
    found = ExportedPolicy(tmp_path / "out").run(rows)
    action, said, _ = inspected(agent, rows)
    assert (found["action"] == action).all()
    assert np.allclose(found["preferences"], said["preferences"], 1e-4)


def test_ignored_entries_are_no_inputs(tmp_path):
    agent = DQN(
        EnvSpec(OBSERVATIONS["tuple"], gym.spaces.Discrete(2)), partial(DictEncoder, ignore=["1"])
    )
    export_policy(agent, tmp_path / "out", "torch")
    policy = ExportedPolicy(tmp_path / "out")
    assert [one["name"] for one in policy.spec["inputs"]] == ["observation.0", "action_mask"]
    assert policy.act((2, "whatever")) == agent.predict((2, np.zeros(2, np.float32)))


def test_wrong_observations_are_refused(tmp_path):
    agent = PPO(EnvSpec(VECTOR, gym.spaces.Discrete(3)), network=partial(ActorCritic, hidden=[]))
    export_policy(agent, tmp_path / "out", "torch")
    policy = ExportedPolicy(tmp_path / "out")
    with pytest.raises(ValueError, match=r"observation: shape \[3\] instead of \[2\]"):
        policy.act([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        policy.act([1.0, float("nan")])
    with pytest.raises(ValueError, match=r"mask: shape \(1, 2\) instead of \(1, 3\)"):
        policy.act([1.0, 2.0], [1, 0])
