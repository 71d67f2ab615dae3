"""Small environments for tables: states are numbers, answers are known by hand."""

import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from training import make_trainer

from rl_lightning import QTable, RolloutDataModule
from rl_lightning.exploration import EpsilonGreedy


def constant(epsilon: float) -> Any:
    """ε-greedy that stays as it is."""
    return partial(EpsilonGreedy, start=epsilon, end=epsilon)


def fit(agent: QTable, data: Any, **trainer: Any) -> Any:
    """Train, silently; returns the trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_trainer(gradient_clip_val=None, **trainer)
        made.fit(agent, data)
    return made


def train(
    env: str, frames: int, seed: int = 0, data: dict[str, Any] | None = None, **kwargs: Any
) -> QTable:
    """Train a table on rollouts; `data` and `**kwargs` are arguments of the data and the agent."""
    torch.manual_seed(seed)
    module = RolloutDataModule(env, total_frames=frames, seed=seed, **(data or {}))
    agent = QTable(module.spec, **kwargs)
    fit(agent, module)
    return agent


class Steps(gym.Env):
    """The observation counts the steps; each pays 1, and the last one ends the episode.

    Args:
        length: Steps of an episode.
        truncate: By a time limit, instead of terminating.
    """

    action_space = gym.spaces.Discrete(2, start=1)

    def __init__(self, length: int = 3, truncate: bool = False) -> None:
        self.observation_space = gym.spaces.Discrete(length + 1)
        self.length, self.truncate = length, truncate

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.count += 1
        over = self.count == self.length
        return self.count, 1.0, over and not self.truncate, over and self.truncate, {}


class MaximizationBias(gym.Env):
    """Sutton & Barto 2018, example 6.7: left of A (0) lies B (1), all of whose actions lose.

    In A, action 0 ends the episode and action 1 leads to B, both for 0; in B, each of 10 actions
    ends it for a reward of mean −0.1 and standard deviation 1.
    """

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(10)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = 0
        return 0, self._info()

    def step(self, action: Any) -> Any:
        if self.state == 0:
            assert action < 2
            self.state = int(action)
            return self.state, 0.0, action == 0, False, self._info()
        return 1, float(self.np_random.normal(-0.1, 1.0)), True, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.arange(10) < (2 if self.state == 0 else 10)}


def register() -> None:
    if "Steps-v0" not in gym.registry:
        gym.register("Steps-v0", entry_point="tabular_probes:Steps")
        gym.register("MaximizationBias-v0", entry_point="tabular_probes:MaximizationBias")


register()
