"""Wrappers that Gymnasium does not have."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


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
            raise ValueError(f"SelectObservation needs a one-dimensional Box, not {space}")
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
                f"{space}; a uint8 image needs no wrapper"
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
