"""Action masks, and observations of whole numbers, while an environment runs."""

import gymnasium as gym
import numpy as np
import pytest
from training import fit

from rl_lightning import DQN, PPO, ReplayDataModule, RolloutDataModule
from rl_lightning.core.errors import RunError
from rl_lightning.data.resume.environments import Snapshots


class Masked(gym.Env):
    """Raises if a mask is not kept to; each step has the next mask of a list."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)

    def __init__(self, masks, counts=(2,)):
        self.action_space = (
            gym.spaces.Discrete(2) if len(counts) == 1 else gym.spaces.MultiDiscrete(counts)
        )
        self.masks, self.t = masks, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look()

    def look(self):
        mask = np.array(self.masks[self.t % len(self.masks)])
        return np.array([self.t / 9, 0], np.float32), {"action_mask": mask}

    def step(self, action):
        mask = self.masks[self.t % len(self.masks)]
        taken = np.atleast_1d(action) + np.array([0, 2])[: np.size(action)]
        assert all(mask[a] for a in taken), "forbidden"
        self.t += 1
        obs, info = self.look()
        return obs, 1.0, self.t == 9, False, info


@pytest.fixture(autouse=True)
def registered():
    gym.register("LiveMasks-v0", entry_point=Masked)
    yield
    del gym.registry["LiveMasks-v0"]


def train(kind, **env_kwargs):
    small = {"num_envs": 2, "total_frames": 64, "val_episodes": 2, "env_kwargs": env_kwargs}
    if kind is PPO:
        data = RolloutDataModule("LiveMasks-v0", rollout_steps=16, minibatch_size=16, **small)
    else:
        data = ReplayDataModule(
            "LiveMasks-v0", warmup_frames=16, frames_per_epoch=16, batch_size=8, **small
        )
    fit(kind(data.spec), data, gradient_clip_val=None)
    return data


@pytest.mark.parametrize("kind", [PPO, DQN])
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([False, False], r"'LiveMasks-v0': .* allows no action after step 1 .* environment 0 of 2"),
        ([1.0, float("nan")], "of 0 and 1, .* holds nan"),
        ([2, 0], "of 0 and 1, .* holds 2"),
        ([-1, 1], "of 0 and 1, .* holds -1"),
    ],
)
def test_a_mask_that_makes_no_sense_ends_the_run(kind, mask, said):
    with pytest.raises(RunError, match=said):
        train(kind, masks=[[1, 0], mask])


def test_so_does_one_that_allows_nothing_for_a_part_of_an_action():
    with pytest.raises(RunError, match="allows no action"):
        train(PPO, masks=[[1, 0, 0, 1, 0], [1, 0, 0, 0, 0]], counts=(2, 3))


@pytest.mark.parametrize("kind", [PPO, DQN])
def test_where_an_episode_is_over_nothing_need_be_allowed(kind):
    train(kind, masks=[[1, 0]] * 9 + [[0, 0]])


@pytest.mark.parametrize(
    "env_kwargs", [{"masks": [[0, 1], [1, 0]]}, {"masks": [[0, 1, 0, 0, 1]], "counts": (2, 3)}]
)
def test_whether_environments_can_be_copied_is_tried_with_allowed_actions(env_kwargs):
    snapshots = Snapshots(gym.make("LiveMasks-v0", disable_env_checker=True, **env_kwargs))
    assert snapshots.reason is None


class Counting(gym.Env):
    """A number that its space does not have, from step 3 on."""

    observation_space = gym.spaces.Discrete(4, start=3)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return 3, {}

    def step(self, action):
        self.t += 1
        return 3 if self.t < 3 else 102, 1.0, self.t == 9, False, {}


@pytest.mark.parametrize("kind", [PPO, DQN])
def test_an_observation_that_its_space_does_not_have_is_named(kind):
    gym.register("LiveMasks-v0", entry_point=Counting)
    with pytest.raises(RunError, match=r"observation is 102, at step 3 .* space is Discrete\(4"):
        train(kind)
