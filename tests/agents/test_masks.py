"""Action masks: kept to while collecting and evaluating, and part of log π while learning.

The probe allows other actions on even than on odd steps and raises when its mask is not kept to.
Episodes of 5 steps end on an odd mask and begin with an even one.
"""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import MASKS
from tensordict import TensorDict
from training import AGENTS, make_trainer, train_probe

from rl_lightning import PPO, ActorCritic, MLPEncoder
from rl_lightning.agents import Agent
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.collect.collector import Collector
from rl_lightning.envs.sync import LeanSyncVectorEnv
from rl_lightning.maths.distributions import Bernoulli, Categorical, MultiCategorical, mask_logits

RECURRENT = {"recurrent": "gru", "recurrent_size": 8}


def train(name="ppo", action="discrete", vectorization="sync", network=None):
    return train_probe(
        name,
        "truncated",
        action=action,
        env={"mask": True},
        data={"vectorization": vectorization},
        network=network,
        rollouts=4,
    )


@pytest.mark.parametrize("network", [None, RECURRENT])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("action", MASKS)
@pytest.mark.parametrize("name", AGENTS)
def test_collecting_keeps_to_the_mask(name, action, vectorization, network):
    train(name, action, vectorization, network)


@pytest.mark.parametrize("action", MASKS)
def test_the_probe_notices_a_mask_that_is_ignored(action, monkeypatch):
    monkeypatch.setattr(Agent, "read_mask", lambda self, info: None)
    with pytest.raises(RunError, match="forbidden action"):
        train(action=action)


def test_the_probe_notices_a_mask_that_is_one_step_late(monkeypatch):
    read_mask, previous = Agent.read_mask, []

    def late(self, info):
        previous.append(read_mask(self, info))
        return previous[-2] if len(previous) > 1 else previous[0]

    monkeypatch.setattr(Agent, "read_mask", late)
    with pytest.raises(RunError, match="forbidden action"):
        train()


def evaluate(action, vectorization, explore):
    data = RolloutDataModule(
        "Probe-v0",
        env_kwargs={"task": "truncated", "action": action, "mask": True},
        vectorization=vectorization,
        val_episodes=7,
        val_num_envs=3,
        val_explore=explore,
    )
    trainer = make_trainer(limit_val_batches=1.0)
    return trainer.validate(PPO(data.spec), data, verbose=False)[0]


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("action", MASKS)
def test_evaluation_keeps_to_the_mask(action, vectorization, explore):
    assert evaluate(action, vectorization, explore)["val/length"] == 5


def test_evaluation_without_a_mask_fails(monkeypatch):
    monkeypatch.setattr(Agent, "read_mask", lambda self, info: None)
    with pytest.raises(RunError, match="forbidden action"):
        evaluate("discrete", "sync", True)


# Allowed are two actions of which one is taken; a first part of one and a second part of two
# actions; one free bit of two. So log π = log ½ under a uniform policy, and otherwise less.
CASES = {
    "discrete": ([1, 1], 1, 0.5, 0.5),
    "multi_discrete": ([1, 0, 0, 1, 1], [0, 2], 0.5, 1 / 6),
    "multi_binary": ([0, 1], [0, 1], 0.5, 0.25),
}


@pytest.mark.parametrize("memory", [None, "lstm"])
@pytest.mark.parametrize("action", CASES)
def test_learning_counts_allowed_actions_only(action, memory):
    mask, taken, masked, unmasked = CASES[action]
    data = RolloutDataModule("Probe-v0", env_kwargs={"action": action})
    policy = ActorCritic(data.spec, MLPEncoder, recurrent=memory)
    torch.nn.init.zeros_(policy.action_head.linear.weight)
    rows = 4
    batch = TensorDict(
        {
            "obs": torch.randn(rows, 2),
            "action": torch.tensor([taken] * rows),
            "action_mask": torch.tensor([mask] * rows, dtype=torch.bool),
        },
        batch_size=rows,
    )
    if memory:
        batch["state"] = torch.zeros(rows, policy.state_dim)
        batch["start"] = torch.zeros(rows, dtype=torch.bool)
        batch = batch.reshape(2, 2)
    free = policy.evaluate(batch.exclude("action_mask"))
    bound = policy.evaluate(batch)
    assert bound.log_prob.exp().flatten().tolist() == pytest.approx([masked] * rows)
    assert free.log_prob.exp().flatten().tolist() == pytest.approx([unmasked] * rows)
    # Entropy counts the bits and parts that are free.
    assert bound.entropy.flatten().tolist() == pytest.approx([np.log(2)] * rows, abs=1e-6)
    assert torch.isfinite(torch.stack(list(bound))).all()


@pytest.mark.parametrize("kind", [Categorical, MultiCategorical, Bernoulli])
def test_forbidden_actions_have_no_gradient(kind):
    logits = torch.zeros(3, 4, requires_grad=True)
    mask = torch.tensor([True, False, True, True])
    masked = mask_logits(logits, mask)
    distribution = kind(masked.unsqueeze(1) if kind is MultiCategorical else masked)
    (distribution.log_prob(distribution.sample()) + distribution.entropy()).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 1] == 0).all()


# --- masks as environments report them --------------------------------------------------------

EVERYTHING = [True, True, True]
FIRST_ONLY = [True, False, False]


class Reporter(gym.Env):
    """Reports masks now and then: `when` is any of `reset` and `step`."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, when=("reset", "step"), mask=FIRST_ONLY):
        self.when, self.mask = when, mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), self._info("reset")

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, self._info("step")

    def _info(self, now):
        return {"action_mask": self.mask} if now in self.when else {}


def report(*whens, mask=FIRST_ONLY):
    """Masks after a reset and after a step of as many environments."""
    env = LeanSyncVectorEnv([partial(Reporter, when, mask) for when in whens])
    agent = PPO(EnvSpec(Reporter.observation_space, Reporter.action_space, "Reporter"))
    infos = env.reset(seed=0)[1], env.step(np.zeros(len(whens), int))[4]
    masks = [agent.read_mask(info) for info in infos]
    return [None if m is None else m.tolist() for m in masks], env, agent


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda m: np.array(m, np.int8)])
def test_masks_come_as_any_kind_of_sequence(kind):
    both = [FIRST_ONLY, FIRST_ONLY]
    when = ("reset", "step")
    assert report(when, when, mask=kind(FIRST_ONLY))[0] == [both, both]


def test_masks_of_several_parts_come_as_a_tuple():
    """Gymnasium's own form for MultiDiscrete: the parts go one after the other."""
    agent = PPO(EnvSpec(Reporter.observation_space, gym.spaces.MultiDiscrete([2, 3]), "Reporter"))
    masks = np.empty(3, object)
    masks[:] = [([1, 0], [0, 1, 1]), (np.array([1, 1]), np.array([1, 0, 0])), None]
    read = agent.read_mask({"action_mask": masks}).int().tolist()
    assert read == [[1, 0, 0, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    masks[0] = ([[1, 0]], [0, 1, 1], [[1], [1]])
    with pytest.raises(ConfigurationError, match="takes masks of 5 actions"):
        agent.read_mask({"action_mask": masks})


@pytest.mark.parametrize("kind", [list, np.array])
def test_an_environment_without_a_mask_may_do_everything(kind):
    masks, *_ = report(("reset", "step"), (), ("step",), mask=kind(FIRST_ONLY))
    assert masks == [
        [FIRST_ONLY, EVERYTHING, EVERYTHING],
        [FIRST_ONLY, EVERYTHING, FIRST_ONLY],
    ]


@pytest.mark.parametrize("when", [("reset",), ("step",)])
def test_masks_that_come_and_go_are_refused(when):
    _, env, agent = report(when, when)
    with pytest.raises(ConfigurationError, match="every reset and every step"):
        Collector(env, 4, seed=0).collect(agent)


def test_masks_of_another_width_are_refused():
    when = ("reset", "step")
    with pytest.raises(ConfigurationError, match=r"shape \[2\].*takes masks of 3 actions"):
        report(when, when, mask=np.ones(2))
    agent = PPO(EnvSpec(Reporter.observation_space, gym.spaces.Box(-1, 1, (3,)), "Reporter"))
    with pytest.raises(ConfigurationError, match="takes no masks"):
        agent.read_mask({"action_mask": np.ones((2, 3))})
