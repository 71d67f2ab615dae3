"""A text game of four rooms: `wordy:WordyCorridor-v0`."""

import gymnasium as gym
import numpy as np

from rl_lightning.envs.text import text_space


class Corridor(gym.Env):
    """Rooms 0 to 3, by words; room 3 ends it. Where it begins is drawn."""

    def __init__(self, length=3, nested=False):
        self.length, self.nested = length, nested
        text = text_space(20)
        number = gym.spaces.Box(0, 9, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({"view": text, "n": number}) if nested else text
        self.action_space = text_space(30)
        self.admits = {0: ["wait", "go on"], 1: ["go back", "go on", "sing"], 2: ["go on"], 3: None}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(2)) if not options else options["at"]
        return self._seen(), self._info() | {"goal": "Reach the end."}

    def step(self, action):
        admitted = action in (self.admits[self.at] or ())
        self.at += {"go on": 1, "go back": -1}.get(action, 0) if admitted else 0
        return self._seen(), float(self.at), self.at == self.length, False, self._info()

    def _seen(self):
        text = f"Room {self.at}."
        return {"view": text, "n": np.array([self.at], np.float32)} if self.nested else text

    def _info(self):
        admits = self.admits[self.at]
        return {} if admits is None else {"admissible_actions": admits}


gym.register("WordyCorridor-v0", entry_point=Corridor)
