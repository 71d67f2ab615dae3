"""A naive replay buffer, to compare the real one with: a list of whole transitions."""

import copy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from probes import stack as batch_up

from rl_lightning.core.types import EnvSpec
from rl_lightning.data.collect.replay_collector import ReplayCollector
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.storage import action_dtype
from rl_lightning.encoders import DictEncoder, MinAtarCNN, MLPEncoder
from rl_lightning.envs.sync import LeanSyncVectorEnv

VECTOR = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (6, 5, 1), np.uint8)
SPACES = {
    "vector": VECTOR,
    "image": IMAGE,
    "nested": gym.spaces.Dict(
        {"image": IMAGE, "deep": gym.spaces.Dict({"vector": VECTOR, "other": VECTOR})}
    ),
}


def encoder(space):
    """Reads any of the spaces above, stacked or not."""
    spec = EnvSpec(space, gym.spaces.Discrete(2))
    if isinstance(space, gym.spaces.Dict):
        parts: Any = {"image": MinAtarCNN, "deep": DictEncoder} if "deep" in space.spaces else {}
        return DictEncoder(spec, parts)
    return (MinAtarCNN if space.dtype == np.uint8 else MLPEncoder)(spec)


def places(obs):
    """Which of the texts an observation shows: few, and rarely others."""
    return torch.as_tensor(obs)[:, 1:].sum(1).long() % 23


def features(obs):
    where = places(obs)
    return torch.stack([where * 0.25, -1.0 * where, where.float() ** 2], dim=1)


def tokens(obs):
    where = places(obs)
    mask = torch.arange(8) < (where[:, None] % 8)
    return {"input_ids": ((where[:, None] + 1) * mask).int(), "attention_mask": mask}


class Diary(gym.Env):
    """Episodes of random length that end in either way; observations are all different."""

    def __init__(self, kind="vector", mask=False, longest=7, actions=None):
        self.observation_space = SPACES[kind]
        self.action_space = actions or gym.spaces.Discrete(4)
        self.kind, self.mask, self.longest = kind, mask, longest
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.name = seed
        self.episode, self.t = self.episode + 1, 0
        self.length = int(self.np_random.integers(1, self.longest + 1))
        self.terminates = bool(self.np_random.integers(2))
        return self._observe(), self._info()

    def step(self, action):
        if self.mask:
            assert self.allowed[action]
        self.t += 1
        over = self.t == self.length
        reward = float(np.float32(self.np_random.normal()))
        ended = over and self.terminates, over and not self.terminates
        return self._observe(), reward, *ended, self._info()

    def _observe(self):
        vector = np.array([self.name, self.episode, self.t + 1], np.float32)
        image = self.np_random.integers(1, 256, IMAGE.shape, np.uint8)
        nested = {"image": image, "deep": {"vector": vector, "other": -vector}}
        return {"vector": vector, "image": image, "nested": nested}[self.kind]

    def _info(self):
        if not self.mask:
            return {}
        self.allowed = self.np_random.integers(0, 2, 4).astype(bool)
        self.allowed[self.np_random.integers(4)] = True
        return {"action_mask": self.allowed.copy()}


class Recorder(gym.Wrapper):
    """Keeps every transition of every episode, with both observations."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes: list[list[Any]] = []

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.before = copy.deepcopy(obs), info.get("action_mask")
        self.episodes.append([])
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        after = copy.deepcopy(obs), info.get("action_mask")
        self.episodes[-1].append(
            SimpleNamespace(
                obs=self.before[0],
                mask=self.before[1],
                action=copy.copy(action),
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                next_obs=after[0],
                next_mask=after[1],
            )
        )
        self.before = after
        return obs, reward, terminated, truncated, info


class Player:
    """An agent without weights that acts at random."""

    device = torch.device("cpu")

    def __init__(self, space, actions=None, preprocess=None):
        self.actions = actions or gym.spaces.Discrete(4)
        self.preprocess = preprocess or encoder(space).preprocess_raw

    def observe(self, obs):
        pass

    def initial_state(self, num_envs):
        return None

    def read_mask(self, info):
        mask = info.get("action_mask")
        return None if mask is None else torch.from_numpy(np.stack(mask).astype(bool))

    def act_uniformly(self, num_envs, mask):
        if isinstance(self.actions, gym.spaces.Box):
            return torch.rand(num_envs, *self.actions.shape)
        if mask is None:
            n = self.actions.n
            return torch.randint(n, (num_envs,)) + int(self.actions.start)
        return torch.multinomial(mask.float(), 1).squeeze(1)


class Game:
    """A buffer that is filled by the collector, and what it should hold.

    Args:
        kind: Of observations, see `SPACES`; or what makes an environment.
        frames: Of the buffer.
        next_step: Let environments restart a step late, as native ones do.
        stack: Frames that Gymnasium's wrapper stacks.
        padding: Its padding.
        mask: Report action masks.
        preprocess: Instead of an encoder's.
        seed: Of the environments.
        **buffer: Of `ReplayBuffer`.
    """

    def __init__(
        self,
        kind="vector",
        num_envs=3,
        frames=40,
        next_step=False,
        stack=1,
        padding="reset",
        mask=False,
        preprocess=None,
        actions=None,
        seed=0,
        longest=7,
        **buffer,
    ):
        def make():
            made = Diary(kind, mask, longest, actions) if isinstance(kind, str) else kind()
            if stack > 1:
                made = gym.wrappers.FrameStackObservation(made, stack, padding_type=padding)
            return Recorder(made)

        if next_step:
            mode = AutoresetMode.NEXT_STEP
            self.env: Any = SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
        else:
            self.env = LeanSyncVectorEnv([make] * num_envs)
        self.space = self.env.single_observation_space
        actions = self.env.single_action_space
        self.player = Player(self.space, actions, preprocess)
        self.collector = ReplayCollector(self.env, seed)
        self.make_buffer = lambda: ReplayBuffer(
            frames,
            num_envs,
            **{"stack": stack, "action_dtype": action_dtype(actions), **buffer},
        )
        self.buffer = self.make_buffer()

    def play(self, steps):
        return self.collector.collect(self.player, self.buffer, steps, True)

    def expected(self):
        """Flat row → (transitions from there to the episode's end so far, episode, position)."""
        buffer, found = self.buffer, {}
        for b, recorder in enumerate(self.env.envs):
            count, mine = 0, []
            for number, episode in enumerate(recorder.episodes):
                first = count + buffer.stack - 1
                mine += [(first + t, episode[t:], number, t) for t in range(len(episode))]
                count = first + len(episode) + 1
            for at, rest, number, t in mine:
                if at - (buffer.stack - 1) >= count - buffer.rows:
                    found[at % buffer.rows * buffer.num_envs + b] = (rest, number, t)
        return found

    def drawable(self):
        return set(torch.nonzero(self.buffer.flags & 1).squeeze(1).tolist())

    def load(self, x):
        """Raw observations as they are stored."""
        return self.player.preprocess(batch_up(self.space, x))

    def check(self, n_step=1, gamma=0.9, rounded=None):
        """Compare everything that the buffer holds; returns how many transitions that were."""
        expected = self.expected()
        assert self.drawable() == set(expected)
        index = torch.tensor(sorted(expected))
        got = self.buffer.read(index, gamma, n_step)
        runs = [expected[i][0][:n_step] for i in index.tolist()]
        same(got["obs"], self.load([run[0].obs for run in runs]), rounded)
        same(got["next_obs"], self.load([run[-1].next_obs for run in runs]), rounded)
        actions = torch.tensor(np.stack([run[0].action for run in runs]))
        assert torch.equal(got["action"], actions)
        returns = [sum(gamma**k * s.reward for k, s in enumerate(run)) for run in runs]
        torch.testing.assert_close(got["reward"], torch.tensor(returns, dtype=torch.float32))
        discounts = [0.0 if run[-1].terminated else gamma ** len(run) for run in runs]
        torch.testing.assert_close(got["discount"], torch.tensor(discounts, dtype=torch.float32))
        if runs[0][0].mask is not None:
            masks = np.stack([run[0].mask for run in runs])
            assert torch.equal(got["action_mask"], torch.from_numpy(masks))
            masks = np.stack([run[-1].next_mask for run in runs])
            assert torch.equal(got["next_action_mask"], torch.from_numpy(masks))
        else:
            assert "action_mask" not in got
        return len(runs)


def same(a, b, rounded=None):
    """Assert that two nests of tensors are equal, the second one after rounding its floats."""
    if isinstance(b, torch.Tensor):
        if rounded is not None and b.is_floating_point():
            b = b.to(rounded).to(b.dtype)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        return
    assert a.keys() == b.keys()
    for key in b:
        same(a[key], b[key], rounded)


def contents(buffer):
    """Everything a buffer holds, read out, and its priorities."""
    index = torch.nonzero(buffer.flags & 1).squeeze(1)
    out = {"index": index, **buffer.read(index, 0.9, 3)}
    if buffer.priorities is not None:
        buffer.priorities.settle()
        out["priorities"] = torch.from_numpy(buffer.priorities.tree.leaves.copy())
        out["max"] = torch.tensor(buffer.priorities.largest)
    if buffer._end is not None:
        out["last"] = buffer.last(index)
    return out
