"""Trials that are the same for every task, chosen on other tasks: what needs no search at all.

The greedy portfolio of hyper-parameters, after Feurer et al. (2022), "Auto-sklearn 2.0", section
4.1: each is the one that adds most to those before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.envs.optimise.hyperparameter_search import HyperparameterSearchEnv


class FixedTrials:
    """Makes the same trials for every task of `HyperparameterSearch-v0`, see `choose_trials`.

    Args:
        actions: Of the environment, one a trial; after the last they begin again.

    Raises:
        ConfigurationError: If there are none.
    """

    def __init__(self, actions: Sequence[Any]) -> None:
        if not len(actions):
            raise ConfigurationError("actions must be at least one, of a trial")
        self.actions = [np.asarray(action) for action in actions]

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        self._done = 0
        return {}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        self._done += 1
        return self.actions[(self._done - 1) % len(self.actions)]


def choose_trials(
    env: gym.Env, task_seeds: Sequence[int], candidates: int = 64, seed: int = 0
) -> FixedTrials:
    """As many trials as an episode has, chosen from random ones by what they score on some tasks.

    That costs `candidates * len(task_seeds)` trials.

    Args:
        env: `HyperparameterSearch-v0`, of training tasks.
        task_seeds: The tasks to choose on.
        candidates: Random actions to choose from.
        seed: Of drawing them.

    Raises:
        ConfigurationError: If it is another environment, or there is no task.
    """
    search = env.unwrapped
    if not isinstance(search, HyperparameterSearchEnv) or not task_seeds:
        raise ConfigurationError("trials are chosen in HyperparameterSearch-v0, on some tasks")
    drawn = np.random.default_rng([seed, 5])
    space: Any = search.action_space
    discrete = isinstance(space, gym.spaces.MultiDiscrete)
    actions = [
        drawn.integers(space.nvec)
        if discrete
        else drawn.uniform(space.low, space.high).astype(np.float32)
        for _ in range(whole("candidates", candidates, 1))
    ]
    scores = np.zeros((len(actions), len(task_seeds)))
    for i, action in enumerate(actions):
        for j, task_seed in enumerate(task_seeds):
            env.reset(options={"task_seed": task_seed})
            scores[i, j] = env.step(action)[-1]["accuracy"]
    return FixedTrials([actions[i] for i in portfolio(scores, search.trials)])


def portfolio(scores: np.ndarray, count: int) -> list[int]:
    """Rows of which the best of each column is high on average, found greedily.

    Args:
        scores: Of candidates (rows) on tasks (columns), `[M, K]`.
        count: Rows to choose; where none adds anything more, the first is chosen.
    """
    chosen: list[int] = []
    best = np.full(scores.shape[1], -np.inf)
    for _ in range(count):
        chosen.append(int(np.argmax(np.maximum(scores, best).mean(1))))
        best = np.maximum(best, scores[chosen[-1]])
    return chosen
