"""Steps by hand, and probes of rewards."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards import Reward, StateReward, Step

TEXT = EnvSpec(gym.spaces.Text(80), gym.spaces.Discrete(2), "Words-v0")
NUMBER = EnvSpec(gym.spaces.Discrete(9), gym.spaces.Discrete(2), "Nine-v0")
CPU = torch.device("cpu")


def step(obs: Any, next_obs: Any, **flags: Any) -> Step:
    """A step of B environments; flags are lists of 0 and 1."""
    count = len(next_obs if not isinstance(next_obs, dict) else next(iter(next_obs.values())))
    flag = {
        name: np.array(flags.get(name, [name == "valid"] * count), bool)
        for name in ("terminated", "truncated", "started", "valid")
    }
    return Step(
        obs,
        np.zeros(count, np.int64),
        next_obs,
        np.zeros(count),
        info=flags.get("info", {}),
        **flag,
    )


def ready(reward: Reward, num_envs: int = 1, gamma: float = 0.9) -> Any:
    """A reward set up as the stage does it."""
    reward.setup(num_envs, gamma, CPU)
    return reward


class Diary(Reward):
    """Pays the first number of where a step led to, and writes down what it was shown."""

    shown: list[Step] = []  # noqa: RUF012

    def __init__(self, spec: EnvSpec, **shared: Any) -> None:
        super().__init__(spec, **shared)
        Diary.shown = []

    def __call__(self, step: Step) -> Any:
        arrays = step._asdict().items()
        Diary.shown.append(Step(**{name: copy.deepcopy(value) for name, value in arrays}))
        return step.next_obs[:, 0]


class Height(StateReward):
    """Φ is the first number of an observation."""

    def value(self, obs: Any) -> Any:
        return obs[:, 0]


class Bad(Reward):
    """Returns what it was made to."""

    def __init__(self, spec: EnvSpec, returns: Any = None, **shared: Any) -> None:
        super().__init__(spec, **shared)
        self.returns = returns

    def __call__(self, step: Step) -> Any:
        return self.returns


def warmth(texts: Any) -> Any:
    """A rule: the share of texts' letters that are e."""
    return np.array([text.count("e") / max(len(text), 1) for text in texts])


def length_of(question: Any) -> float:
    """A rule for labellers: how long a text is."""
    return float(len(question))


def cold(texts: Any) -> Any:
    """A rule that fails."""
    return np.array([float("nan")] * len(texts))


class Lock(gym.Env):
    """A combination lock: one of two actions goes on, the other back to the beginning.

    Who gets to the end has succeeded, and is paid 1; by chance that happens once in 2^length
    episodes.
    """

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.observation_space = gym.spaces.Discrete(length + 1)
        self.action_space = gym.spaces.Discrete(2)
        self.right = np.random.default_rng(0).integers(2, size=length)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.steps = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.place = self.place + 1 if action == self.right[self.place] else 0
        won, over = self.place == self.length, self.steps == self.length + 4
        info = {"success": won} if won or over else {}
        return self.place, float(won), won, over and not won, info


class TextLock(Lock):
    """The same in words, with which bolt a step has opened in its info."""

    def __init__(self, length: int = 10) -> None:
        super().__init__(length)
        self.observation_space = gym.spaces.Text(40)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, info = super().reset(seed=seed)
        return "0 bolts are open.", info

    def step(self, action: Any) -> Any:
        place, *paid, info = super().step(action)
        told = {"achieved": f"open bolt {place}"} if place else {}
        return f"{place} bolts are open.", *paid, {**info, **told}


def next_bolt(text: str) -> str:
    """A rule: which goal is sensible where so many bolts are open."""
    return f"- Open bolt {int(text.split()[0]) + 1}.\n- Go home."


if "TextLock-v0" not in gym.registry:
    gym.register("TextLock-v0", entry_point="reward_tools:TextLock")
if "Lock-v0" not in gym.registry:
    gym.register("Lock-v0", entry_point="reward_tools:Lock")
