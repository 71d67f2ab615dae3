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
