"""Wrappers that Gymnasium does not have."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from rl_lightning.core.errors import ConfigurationError, is_whole, shortened

LARGEST = float(np.finfo(np.float32).max)


class SelectObservation(gym.ObservationWrapper):
    """Keeps some components of a one-dimensional Box, e.g. hides velocities.

    Args:
        env: Environment with a one-dimensional Box observation space.
        indices: Components to keep, in this order.

    Raises:
        ValueError: If the space is of another kind, or an index is out of range.
    """

    def __init__(self, env: gym.Env, indices: Sequence[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"SelectObservation needs a one-dimensional Box, not {shortened(space)}"
            )
        size = space.shape[0]
        if not indices or any(not 0 <= i < size for i in indices):
            raise ValueError(
                f"indices must be between 0 and {size - 1} and not empty, not {list(indices)}"
            )
        self.indices = np.asarray(indices)
        self.observation_space = gym.spaces.Box(
            space.low[self.indices], space.high[self.indices], dtype=space.dtype.type
        )

    def observation(self, observation: Any) -> np.ndarray:
        return observation[self.indices]


class BinaryImage(gym.ObservationWrapper):
    """Turns an image of zeros and ones into one of 0 and 255, which the image encoders read.

    MinAtar's observations are such images, bool `[10, 10, C]`, a channel for each kind of object.
    Axes stay as they are, but for an image with as many channels as rows (Seaquest): of such a cube
    the encoders take the first axis for the channels, so that is where they go.

    Args:
        env: Environment whose observations are bool or integers of 0 and 1, `[H, W, C]`, C ≤ H.

    Raises:
        ValueError: If the space is of another kind.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if not (
            isinstance(space, gym.spaces.Box)
            and space.dtype is not None
            and space.dtype.kind in "bui"
            and len(space.shape) == 3
            and np.all(space.low == 0)
            and np.all(space.high == 1)
        ):
            raise ValueError(
                f"BinaryImage needs a Box of bool, or of integers from 0 to 1, [H, W, C], not "
                f"{shortened(space)}; a uint8 image needs no wrapper"
            )
        height, width, channels = space.shape
        if channels > height:
            raise ValueError(
                f"BinaryImage needs an image with at most as many channels as rows, not "
                f"{space.shape}: an encoder could not tell which are which"
            )
        self.channels_first = channels == height
        shape = (channels, height, width) if self.channels_first else space.shape
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        image = observation.astype(np.uint8) * np.uint8(255)
        return image.transpose(2, 0, 1) if self.channels_first else image


class SelectActions(gym.Wrapper, RecordConstructorArgs):
    """Offers some actions of a Discrete space, e.g. those that a task of MiniGrid can need.

    An `info["action_mask"]` `[n]` of the environment becomes that of the offered actions.

    Args:
        env: Environment with a Discrete action space.
        actions: Those that are offered, in their new order; they are numbered from 0.

    Raises:
        ConfigurationError: If the space is of another kind, or an action is out of range or there
            twice; on step, if the action is not one of the offered.
    """

    def __init__(self, env: gym.Env, actions: Sequence[int]) -> None:
        RecordConstructorArgs.__init__(self, actions=actions)
        gym.Wrapper.__init__(self, env)
        space = env.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise ConfigurationError(
                f"SelectActions needs a Discrete action space, not {shortened(space)}"
            )
        first, last = int(space.start), int(space.start + space.n) - 1
        offered: list[Any] = [actions] if isinstance(actions, str) else list(actions)
        numbers = all(is_whole(action) and first <= action <= last for action in offered)
        if not offered or not numbers or len(set(offered)) < len(offered):
            raise ConfigurationError(
                f"actions={offered}: expected numbers from {first} to {last}, each once"
            )
        self.actions = np.asarray(offered, space.dtype)
        self.places = self.actions - first  # among all, counted from 0
        self.action_space = gym.spaces.Discrete(len(offered))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return observation, self._masked(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ConfigurationError(
                f"action {action}: SelectActions offers those from 0 to {len(self.actions) - 1}"
            )
        observation, reward, terminated, truncated, info = self.env.step(self.actions[action])
        return observation, reward, terminated, truncated, self._masked(info)

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" not in info:
            return info
        return {**info, "action_mask": np.asarray(info["action_mask"])[self.places]}


class ClipObservation(gym.ObservationWrapper):
    """Bounds floating-point observations, e.g. of a lidar that says infinity, which is refused.

    Every Box of floats is clipped, also as an entry of a Dict or Tuple, and its space's bounds too;
    everything else stays as it is. NaN is below no bound and above none: it stays NaN, and is
    refused, unless `nan` says what it means.

    Args:
        env: Environment.
        low: Smallest number.
        high: Largest number.
        nan: What NaN becomes; None leaves it.

    Raises:
        ConfigurationError: If bounds do not ascend, or are not finite in float32, or if the
            observation has no floating-point numbers.
    """

    def __init__(self, env: gym.Env, low: float, high: float, nan: float | None = None) -> None:
        super().__init__(env)
        if not -LARGEST <= low < high <= LARGEST:
            raise ConfigurationError(
                f"ClipObservation: low and high must ascend and be finite, not {low} and {high}"
            )
        if nan is not None and not low <= nan <= high:
            raise ConfigurationError(
                f"ClipObservation: nan must lie between {low} and {high}, not {nan}"
            )
        self.low, self.high, self.nan = low, high, nan
        self.observation_space = self._clipped_space(env.observation_space)
        if not _has_floats(env.observation_space):
            raise ConfigurationError(
                "ClipObservation finds no floating-point numbers in "
                f"{shortened(env.observation_space)}"
            )

    def observation(self, observation: Any) -> Any:
        return self._clipped(self.env.observation_space, observation)

    def _clipped(self, space: gym.Space, value: Any) -> Any:
        s = gym.spaces
        if isinstance(space, s.Dict):
            return {key: self._clipped(part, value[key]) for key, part in space.items()}
        if isinstance(space, s.Tuple):
            return tuple(self._clipped(part, v) for part, v in zip(space, value, strict=True))
        if not _is_float(space):
            return value
        clipped = np.clip(np.asarray(value), self.low, self.high)
        if self.nan is not None:
            clipped = np.where(np.isnan(clipped), self.nan, clipped)
        return clipped.astype(space.dtype, copy=False)

    def _clipped_space(self, space: gym.Space) -> gym.Space:
        s = gym.spaces
        if isinstance(space, s.Dict):
            return s.Dict({key: self._clipped_space(part) for key, part in space.items()})
        if isinstance(space, s.Tuple):
            return s.Tuple([self._clipped_space(part) for part in space])
        if not isinstance(space, s.Box) or not _is_float(space):
            return space
        low, high = (np.clip(bound, self.low, self.high) for bound in (space.low, space.high))
        return s.Box(low, high, dtype=np.dtype(space.dtype).type)


def _is_float(space: gym.Space) -> bool:
    return isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _has_floats(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(_has_floats(part) for part in space.values())
    if isinstance(space, gym.spaces.Tuple):
        return any(_has_floats(part) for part in space)
    return _is_float(space)
