"""Environments in words, whose right action is known: with the same actions always, and with others
in every state."""

from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.envs.text import text_space

THINGS = ("red ball", "green key", "door", "grey box", "blue key 2")
LINES = tuple(f"{verb} the {thing}" for verb in ("go to", "pick up") for thing in THINGS)
MOST = 6


class Named(gym.Env):
    """The text names one of two directions; to take it pays 1, and the episode is over."""

    def __init__(self) -> None:
        self.observation_space = text_space(40)
        self.action_space = gym.spaces.Discrete(2)

    def _look(self) -> str:
        self.right = int(self.np_random.integers(2))
        return f"There is a wall to the {('north', 'east')[1 - self.right]}."

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: int) -> tuple[str, float, bool, bool, dict]:
        reward = float(int(action) == self.right)
        return self._look(), reward, True, False, {"success": bool(reward)}


class Listed(gym.Env):
    """Each state lists 2 to 5 things to do and says which of them pays; episodes are of 3 steps."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {
                "observation": text_space(60),
                "actions": text_space(400),
                "clock": gym.spaces.Box(0, 9),
            }
        )
        self.action_space = gym.spaces.Discrete(MOST)

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        count = int(self.np_random.integers(2, 6))
        self.lines = [LINES[i] for i in self.np_random.permutation(len(LINES))[:count]]
        self.right = int(self.np_random.integers(count))
        mask = np.arange(MOST) < count
        obs = {
            "observation": f"You must {self.lines[self.right]}",
            "actions": "\n".join(self.lines),
            "clock": np.array([self.steps], np.float32),
        }
        return obs, {"action_mask": mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._state()

    def step(self, action: int) -> Any:
        assert action < len(self.lines), "that is not to be done here"
        reward = float(int(action) == self.right)
        self.steps += 1
        obs, info = self._state()
        return obs, reward, self.steps == 3, False, info


def register() -> None:
    """Make both known to Gymnasium."""
    for cls in (Named, Listed):
        if f"Text{cls.__name__}-v0" not in gym.registry:
            gym.register(f"Text{cls.__name__}-v0", entry_point=f"{__name__}:{cls.__name__}")


register()
