"""Behaviour cloning recovers what was demonstrated, in every action space and through encoders."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from probes import ACTIONS as SPACES
from probes import OBSERVATIONS, batch
from recorded import demonstrate, fit, learn, offline, record
from tensordict import TensorDict
from training import ACTIONS, judge, make_trainer

from rl_lightning import BC, ActorCritic, LLMEncoder, MLPEncoder
from rl_lightning.agents.agent import adam
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.nn.heads import BOUND_SHARE, LOG_STD_MIN, make_head

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")


def kind(action):
    return action.removeprefix("clipped_").removeprefix("squashed_")


def clone(path, action="discrete", network=None, encoder=MLPEncoder, data=None, lr=1e-2, **kwargs):
    """Train BC on a probe's file for a second."""
    squash = {"squash": True} if action == "squashed_box" else {}
    make = partial(
        BC,
        encoder=encoder,
        network=partial(ActorCritic, **{"hidden": (16,), **squash, **(network or {})}),
        optimizer=partial(adam, lr=lr),
        **kwargs,
    )
    return learn(make, offline(path, action=kind(action), **(data or {})))


@pytest.mark.parametrize("action", ACTIONS)
def test_the_demonstrated_policy_is_recovered(action, tmp_path):
    path = record(tmp_path / "data.hdf5", action=kind(action), choose=demonstrate)
    agent = clone(path, action)
    for state in (0, 1):
        for explore in (False, True):
            good = judge(agent, "vector", action, (state,), state, explore=explore)
            assert good > (0.9 if explore else 0.95), (state, explore)


@pytest.mark.parametrize(
    "action",
    [
        "multi_discrete",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ("discrete", "multi_binary")),
    ],
)
def test_chances_are_those_of_the_demonstrations(action, tmp_path):
    """One state, the first choice right in about three quarters of all demonstrations."""
    often = {
        "discrete": (1, 0),
        "multi_discrete": ([1, 2], [0, 2]),
        "multi_binary": ([1, 0], [0, 0]),
    }[action]

    def choose(env, rng):
        return np.array(often[int(rng.random() < 0.25)], env.action_space.dtype)

    path = record(tmp_path / "data.hdf5", "action", action=action, choose=choose, episodes=400)
    agent = clone(path, action, data={"task": "action", "batch_size": 128}, lr=3e-3)
    rows = offline(path, "action", action=action).recorded.episodes()
    share = np.mean([np.ravel(episode.actions[0])[0] == 1 for episode in rows])
    assert share == pytest.approx(0.75, abs=0.05)
    with torch.no_grad():
        thought = agent.inspect(agent.preprocess(batch("vector", 0)))["probabilities"]
    where = {"discrete": (0, 1), "multi_discrete": (0, 0, 1), "multi_binary": (0, 0)}[action]
    assert thought[where].item() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    "action", ["squashed_box", pytest.param("clipped_box", marks=pytest.mark.slow)]
)
def test_spread_is_that_of_the_demonstrations(action, tmp_path):
    rng = np.random.default_rng(1)
    shown = np.tanh(0.2 + 0.3 * rng.standard_normal(300))

    def choose(env, _):
        return np.array([shown[choose.count % 300]], np.float32), setattr(
            choose, "count", choose.count + 1
        )

    choose.count = 0
    path = record(
        tmp_path / "data.hdf5",
        "action",
        action="box",
        choose=lambda env, r: choose(env, r)[0],
        episodes=300,
    )
    agent = clone(path, action, data={"task": "action", "batch_size": 128, "total_updates": 600})
    with torch.no_grad():
        thought = agent.inspect(agent.preprocess(batch("vector", 0)))
    expected = np.arctanh(shown) if action == "squashed_box" else shown
    assert thought["mean"].item() == pytest.approx(expected.mean(), abs=0.05)
    assert thought["std"].item() == pytest.approx(expected.std(), rel=0.15)


@pytest.mark.parametrize("observation", ["discrete", "text", "tuple"])
def test_other_observations(observation, tmp_path, encoders):
    encoder = {
        "text": partial(LLMEncoder, model=tiny_model("bert", tmp_path / "bert")),
        "tuple": encoders["tuple"][1],
        "discrete": MLPEncoder,
    }[observation]
    path = record(tmp_path / "data.hdf5", observation=observation, choose=demonstrate)
    agent = clone(path, encoder=encoder, data={"observation": observation})
    assert [judge(agent, observation, "discrete", (s,), s, explore=False) for s in (0, 1)] == [1, 1]


# --- from actions to latent ones --------------------------------------------------------------

HEADS = {
    "discrete": (gym.spaces.Discrete(3, start=2), False),
    "multi_discrete": (gym.spaces.MultiDiscrete([2, 3], start=[1, -1]), False),
    "multi_binary": (gym.spaces.MultiBinary(3), False),
    "clipped": (gym.spaces.Box(-2.0, 3.0, (2, 2), np.float32), False),
    "squashed": (gym.spaces.Box(-2.0, 3.0, (2, 2), np.float32), True),
}


@pytest.mark.parametrize("case", HEADS)
def test_to_latent_undoes_to_action(case):
    space, squash = HEADS[case]
    space.seed(0)
    head = make_head(space, 4, squash)
    actions = torch.from_numpy(np.stack([space.sample() for _ in range(50)]))
    again = head.to_action(head.to_latent(actions))
    torch.testing.assert_close(again, actions, rtol=0, atol=5 * BOUND_SHARE if squash else 0)
    latent = head(torch.randn(50, 4)).sample()
    if case != "clipped":
        latent = latent.clamp(-3, 3) if squash else latent
        back = head.to_latent(head.to_action(latent))
        torch.testing.assert_close(back, latent, rtol=1e-3, atol=1e-3)


def test_actions_on_their_bounds_are_finite():
    head = make_head(gym.spaces.Box(-2.0, 3.0, (1,), np.float32), 4, squash=True)
    latent = head.to_latent(torch.tensor([[-2.0], [0.5], [3.0]]))
    assert latent.flatten().tolist() == pytest.approx([-3.8, 0.0, 3.8], abs=0.01)
    assert torch.isfinite(head(torch.zeros(3, 4)).log_prob(latent)).all()


def test_certainty_has_an_end(tmp_path):
    """One action, always the same: its density would rise for ever."""

    def choose(env, rng):
        return np.array([0.25], np.float32)

    path = record(tmp_path / "data.hdf5", "action", action="box", choose=choose, episodes=8)
    agent = clone(path, "clipped_box", data={"task": "action", "total_updates": 700})
    assert agent.policy.action_head.log_std.item() == pytest.approx(LOG_STD_MIN, abs=0.1)
    assert agent.policy.action_head.log_std.item() >= LOG_STD_MIN
    assert judge(agent, "vector", "box", (0,), 1, explore=True) == pytest.approx(0.5, abs=0.05)


# --- the loss ---------------------------------------------------------------------------------


def build(action="discrete", **kwargs):
    agent = BC(EnvSpec(OBSERVATIONS["vector"], SPACES[action]), **kwargs)
    return agent


def rows(agent, action, count=6):
    space = agent.spec.action_space
    space.seed(1)
    taken = torch.from_numpy(np.stack([space.sample() for _ in range(count)]))
    taken = taken if action == "box" else taken.long()
    return TensorDict({"obs": torch.randn(count, 2), "action": taken}, [count])


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
@pytest.mark.parametrize("action", SPACES)
def test_the_loss_by_hand(action, entropy_coef):
    agent = build(action, entropy_coef=entropy_coef)
    given = rows(agent, action)
    head = agent.policy.action_head
    distribution = head(agent.policy.actor(given["obs"]))
    expected = -distribution.log_prob(given["action"]).mean()
    expected = expected - entropy_coef * distribution.entropy().mean()
    torch.testing.assert_close(agent.loss(given).value, expected)


def test_observations_are_standardised_once_in_acting_and_in_learning():
    agent = build("box", encoder=partial(MLPEncoder, normalize=True))
    agent.observe(np.array([[0.0, 10.0], [2.0, 30.0], [4.0, 50.0]], np.float32))
    given = rows(agent, "box")
    given["obs"] = given["obs"] * 10 + 20
    seen = agent.encoder.standardized(given["obs"])
    assert not torch.equal(seen, given["obs"])
    mean = agent.policy.action_head(agent.policy.actor(seen)).mean
    x = agent.preprocess(given["obs"].numpy())
    with torch.no_grad():
        torch.testing.assert_close(agent.inspect(x)["mean"], mean)
        acted = agent.act(x, explore=False)["action"]
        torch.testing.assert_close(acted, mean.clamp(-1, 1))
        expected = -agent.policy.action_head(agent.policy.actor(seen)).log_prob(given["action"])
        torch.testing.assert_close(agent.loss(given).value, expected.mean())


def test_max_grad_norm_and_lr(tmp_path):
    path = record(tmp_path / "data.hdf5", choose=demonstrate)
    moved = []
    for kwargs in ({}, {"max_grad_norm": 1e-3}):
        torch.manual_seed(0)
        data = offline(path, total_updates=1)
        agent = BC(data.spec, optimizer=partial(torch.optim.SGD, lr=1.0), **kwargs)
        before = [p.detach().clone() for p in agent.parameters()]
        fit(agent, data)
        step = [(p - q).square().sum() for p, q in zip(agent.parameters(), before, strict=True)]
        moved.append(torch.stack(step).sum().sqrt().item())
    assert moved[0] > 0.01
    assert moved[1] == pytest.approx(1e-3, rel=0.01)


def test_no_critic_and_no_memory():
    assert build().policy.critic is None
    with pytest.raises(ConfigurationError, match=r"leave out model\.network's recurrent"):
        build(network=partial(ActorCritic, recurrent="lstm"))
    with pytest.raises(ConfigurationError, match="entropy_coef must be at least 0"):
        build(entropy_coef=-1.0)


def test_load_from_checkpoint(tmp_path):
    agent = build("box", network=partial(ActorCritic, hidden=(5,), squash=True), entropy_coef=0.25)
    with torch.no_grad():
        agent.policy.action_head.linear.weight.normal_()
    trainer = make_trainer()
    trainer.strategy.connect(agent)
    trainer.save_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    loaded = BC.load_from_checkpoint(tmp_path / "agent.ckpt")
    x = agent.preprocess(batch("vector", 0, 1, 2))
    with torch.no_grad():
        ours, theirs = (a.eval().act(x, explore=False)["action"] for a in (agent, loaded))
    assert torch.equal(ours, theirs)
    assert loaded.entropy_coef == 0.25
