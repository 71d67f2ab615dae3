"""One episode by itself: what it consists of, and how it is cut out of a vector env's steps."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths.distributions import flat_mask


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        observations: T+1 rows, the final observation included: an array, a list of str, or a dict
            or tuple of these.
        actions: T rows, likewise.
        rewards: `[T]`, float64.
        terminations: `[T]`, bool.
        truncations: `[T]`, bool.
        action_masks: T+1 rows of allowed actions, bool `[T+1, A]`; None: all of them, always.
    """

    observations: Any
    actions: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    action_masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rewards)


# What every episode has, as a file names it.
PARTS = [field.name for field in fields(Episode) if field.name != "action_masks"]


class EpisodeRecorder:
    """Cuts episodes out of the steps of a vector env.

    Everything is copied, since the next step overwrites what a vector env returns. A SAME_STEP
    env's final observation is taken from `info["final_obs"]`, its mask from `info["final_info"]`;
    the step that a NEXT_STEP env spends on a reset is part of no episode.

    Args:
        env: The vector env.
        add: Receives the episodes that `write` is called for, e.g. `DatasetWriter.add`.
    """

    def __init__(self, env: VectorEnv, add: Callable[[Episode], None]) -> None:
        self.add = add
        self._space, self._action_space = env.single_observation_space, env.single_action_space
        self._same_step = env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        self._observations: list[list[Any]] = [[] for _ in range(env.num_envs)]
        self._masks: list[list[np.ndarray | None]] = [[] for _ in range(env.num_envs)]
        self._steps: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
        self._finished: list[Any] = [None] * env.num_envs

    def reset(self, obs: Any, info: Mapping[str, Any]) -> None:
        """Begin episodes everywhere with the observations `[B, …]` of a reset, and its info."""
        for b in range(len(self._steps)):
            self._begin(b, obs, info)

    def step(
        self,
        action: np.ndarray,
        obs: Any,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        info: Mapping[str, Any],
        resetting: np.ndarray,
    ) -> None:
        """Note what the env was given, `[B, …]`, and what it returned.

        Args:
            action: As sent to the env.
            obs: Returned, as are the next four.
            reward: `[B]`.
            terminated: `[B]`.
            truncated: `[B]`.
            info: Holds `final_obs` where an episode of a SAME_STEP env has ended, and may hold
                `action_mask`.
            resetting: Where this step was a reset, `[B]`.
        """
        done = terminated | truncated
        for b in range(len(self._steps)):
            if resetting[b]:
                self._begin(b, obs, info)
                continue
            restarted = done[b] and self._same_step
            last = info["final_obs"][b] if restarted else _row(self._space, obs, b)
            self._observations[b].append(copy.deepcopy(last))
            self._masks[b].append(_mask(info.get("final_info", {}) if restarted else info, b))
            flags = float(reward[b]), bool(terminated[b]), bool(truncated[b])
            self._steps[b].append((copy.deepcopy(action[b]), *flags))
            if done[b]:
                self._finished[b] = self._observations[b], self._masks[b], self._steps[b]
            if restarted:
                self._begin(b, obs, info)

    def write(self, b: int) -> None:
        """Hand over the episode that has just ended in environment b."""
        observations, masks, steps = self._finished[b]
        actions, *flags = zip(*steps, strict=True)
        self.add(
            Episode(
                _stack(self._space, observations),
                _stack(self._action_space, actions),
                *(np.array(values) for values in flags),
                action_masks=_stack_masks(masks),
            )
        )

    def _begin(self, b: int, obs: Any, info: Mapping[str, Any]) -> None:
        self._observations[b], self._steps[b] = [copy.deepcopy(_row(self._space, obs, b))], []
        self._masks[b] = [_mask(info, b)]


def _mask(info: Mapping[str, Any], b: int) -> np.ndarray | None:
    """What environment b allows, bool `[A]`; None where it does not say."""
    if "action_mask" not in info or not info.get("_action_mask", {b: True})[b]:
        return None
    value = info["action_mask"][b]
    return None if value is None else flat_mask(value).copy()


def _stack_masks(masks: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Masks of an episode; where one is missing among others, everything is allowed."""
    one = next((mask for mask in masks if mask is not None), None)
    if one is None:
        return None
    rows = [np.ones_like(one) if mask is None else mask for mask in masks]
    if len({row.shape for row in rows}) > 1:
        raise ConfigurationError(
            "info['action_mask'] changes its shape within an episode: "
            f"{sorted({str(list(row.shape)) for row in rows})}"
        )
    return np.stack(rows)


def _row(space: gym.Space, obs: Any, b: int) -> Any:
    """The observation of environment b out of a vector env's batch."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _row(entry, obs[key], b) for key, entry in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_row(entry, part, b) for entry, part in zip(space, obs, strict=True))
    return obs[b]


def _stack(space: gym.Space, rows: Sequence[Any]) -> Any:
    """Elements of a space as an `Episode` holds them."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _stack(entry, [row[key] for row in rows]) for key, entry in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_stack(entry, [row[i] for row in rows]) for i, entry in enumerate(space))
    return list(rows) if isinstance(rows[0], str) else np.stack(rows)
