"""An environment with large observations, to fill a disk with."""

from typing import Any

import gymnasium as gym
import numpy as np


class Wide(gym.Env):
    """4096 floats that say nothing."""

    observation_space = gym.spaces.Box(0.0, 1.0, (4096,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.random(4096, np.float32), {}

    def step(self, action: Any) -> Any:
        return self.np_random.random(4096, np.float32), 1.0, False, False, {}


gym.register("Wide-v0", entry_point=Wide, max_episode_steps=200)
