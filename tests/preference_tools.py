"""A tiny world of texts with a preference, for tests of learned rewards."""

import re
import zlib
from functools import partial

import gymnasium as gym
import numpy as np
import torch

from rl_lightning import PreferenceDataModule, RewardModel
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.writer import DatasetWriter
from rl_lightning.encoders import Encoder
from rl_lightning.envs import make_env
from rl_lightning.rewards import WordLabeller


class Words(Encoder):
    """Counts of hashed words."""

    def __init__(self, spec, size=128):
        super().__init__()
        self.out_dim = size

    def preprocess(self, obs):
        out = torch.zeros(len(obs), self.out_dim)
        for row, text in zip(out, obs, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[zlib.crc32(word.encode()) % self.out_dim] += 1.0
        return out

    def forward(self, x):
        return x


def record_mazes(path, episodes=12, size=4):
    """Random episodes of TextMaze; returns the file's name."""
    env = make_env("TextMaze-v0", {"size": size})
    rng = np.random.default_rng(0)
    with DatasetWriter(
        path, EnvSpec(env.observation_space, env.action_space, "TextMaze-v0")
    ) as file:
        for number in range(episodes):
            obs, _ = env.reset(seed=number)
            seen, steps, over = [obs], [], False
            while not over:
                action = int(rng.integers(4))
                obs, reward, terminated, truncated, _ = env.step(action)
                seen.append(obs)
                steps.append((action, reward, terminated, truncated))
                over = terminated or truncated
            file.add(Episode(seen, *map(np.array, zip(*steps, strict=True))))
    return str(path)


def record_numbers(path, steps=200):
    """One episode of vectors (±1, noise); returns the file's name."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(steps + 1, 2)).astype(np.float32)
    obs[:, 0] = np.sign(obs[:, 0])
    spec = EnvSpec(gym.spaces.Box(-9, 9, (2,)), gym.spaces.Discrete(2), "Numbers-v0")
    flags = np.zeros(steps, bool)
    ends = np.arange(steps) == steps - 1
    with DatasetWriter(path, spec) as file:
        file.add(Episode(obs, rng.integers(2, size=steps), np.zeros(steps), flags, ends))
    return str(path)


def near_and_new():
    """The taste of these tests."""
    return WordLabeller({"near": 1.0, "far": -1.0, "often": -0.5})


def module(path, labeller=None, **kwargs):
    defaults = {"pairs": 300, "val_share": 0.2, "updates_per_epoch": 20, "total_updates": 60}
    labeller = near_and_new() if labeller is None else labeller
    return PreferenceDataModule(path, labeller, **{**defaults, **kwargs})


def model(spec, lr=1e-2, **kwargs):
    torch.manual_seed(0)
    defaults = {"encoder": Words, "hidden": (16,), "optimizer": partial(torch.optim.Adam, lr=lr)}
    return RewardModel(spec, **{**defaults, **kwargs})
