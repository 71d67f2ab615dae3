"""BitFlip-v0: reach a goal by flipping bits, with a reward that is silent until then."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded


class BitFlipEnv(gym.Env[Any, Any]):
    """Turn one string of bits into another (Andrychowicz et al. 2017, section 3.1).

    Action i flips bit i. Start and goal are drawn uniformly from all pairs that differ. The reward
    is 0 on the goal and −1 elsewhere, so without a goal that was reached by chance, one of 2^bits,
    there is nothing to learn from: hindsight makes the difference. Observations hold `observation`
    and `achieved_goal`, both the current bits, and `desired_goal`, each float32 `[bits]`.

    Reaching the goal terminates, the time limit truncates. The last step of an episode, and no
    other, has `success` in `info`.

    Args:
        bits: Length of the strings.
        max_steps: Time limit in steps; None is `bits`, which suffices for every pair.

    Raises:
        ValueError: If an argument is less than 1.
    """

    def __init__(self, bits: int = 15, max_steps: int | None = None) -> None:
        if bits < 1:
            raise ValueError(f"bits={bits}: expected an integer of at least 1")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps={max_steps}: expected None or an integer of at least 1")
        self.bits = bits
        self.max_steps = bits if max_steps is None else max_steps
        string = gym.spaces.Box(0.0, 1.0, (bits,), np.float32)
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gym.spaces.Dict(dict.fromkeys(names, string))
        self.action_space = gym.spaces.Discrete(bits)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Draw a start and a goal."""
        super().reset(seed=seed)
        start = goal = np.zeros(self.bits, np.float32)
        while np.array_equal(start, goal):
            start, goal = self.np_random.integers(0, 2, (2, self.bits)).astype(np.float32)
        self._state, self._goal = start, goal
        self._steps = 0
        self._running = True
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Flip one bit.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If there is no such bit.
        """
        if not self._running:
            raise ResetNeeded("no episode is running: call reset() before step()")
        if not 0 <= action < self.bits:
            raise ValueError(f"action={action!r}: expected a bit from 0 to {self.bits - 1}")
        self._state[action] = 1 - self._state[action]
        self._steps += 1
        success = bool((self._state == self._goal).all())
        truncated = not success and self._steps >= self.max_steps
        self._running = not (success or truncated)
        info = {} if self._running else {"success": success}
        return self._observe(), 0.0 if success else -1.0, success, truncated, info

    def compute_reward(
        self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any = None
    ) -> Any:
        """Reward of a step that led to `achieved_goal` while `desired_goal` was wanted.

        Args:
            achieved_goal: `[..., bits]`.
            desired_goal: `[..., bits]`.
            info: Ignored; part of the interface of goal environments.

        Returns:
            float32 `[...]`, 0 or −1.
        """
        return self.compute_terminated(achieved_goal, desired_goal).astype(np.float32) - 1

    def compute_terminated(
        self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any = None
    ) -> Any:
        """Whether such a step ends the episode: bool `[...]`, arguments as in `compute_reward`."""
        return (np.asarray(achieved_goal) == np.asarray(desired_goal)).all(-1)

    def _observe(self) -> dict[str, np.ndarray]:
        return {
            "observation": self._state.copy(),
            "achieved_goal": self._state.copy(),
            "desired_goal": self._goal.copy(),
        }
