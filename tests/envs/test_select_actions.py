"""Offering some actions of an environment."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rl_lightning import RolloutDataModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import SelectActions, make_env
from rl_lightning.envs.describe.actions import names_of


class Noted(gym.Env):
    """Notes what is done; its actions begin at `start`."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, start=0, masked=True):
        self.action_space = spaces.Discrete(5, start=start)
        self.masked = masked
        self.done = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), self._info()

    def step(self, action):
        self.done.append(int(action))
        return np.zeros(1, np.float32), 0.0, False, False, self._info()

    def _info(self):
        mask = {"action_mask": np.array([True, False, True, True, False])}
        return {"other": 1, **(mask if self.masked else {})}


@pytest.mark.parametrize("start", [0, 3])
def test_actions_are_numbered_anew_and_masks_follow(start):
    base = Noted(start)
    env = SelectActions(base, [start + 4, start, start + 3])
    assert env.action_space == spaces.Discrete(3)
    _, info = env.reset()
    assert info["action_mask"].tolist() == [False, True, True]
    assert info["other"] == 1
    for action in range(3):
        *_, info = env.step(np.int64(action))
        assert info["action_mask"].tolist() == [False, True, True]
    assert base.done == [start + 4, start, start + 3]


def test_without_a_mask_none_is_added():
    env = SelectActions(Noted(masked=False), [0])
    assert "action_mask" not in env.reset()[1]
    assert "action_mask" not in env.step(0)[-1]


@pytest.mark.parametrize("actions", [[], [5], [-1], [1, 1], [0.5], [True], "01"])
def test_wrong_actions_are_named(actions):
    with pytest.raises(ConfigurationError, match="expected numbers from 0 to 4, each once"):
        SelectActions(Noted(), actions)


def test_other_spaces_and_actions_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="needs a Discrete action space, not Box"):
        SelectActions(gym.make("Pendulum-v1"), [0])
    env = SelectActions(Noted(), [0, 1])
    env.reset()
    with pytest.raises(ConfigurationError, match="action 2: SelectActions offers those from 0"):
        env.step(2)


def test_from_a_configuration():
    env = make_env("CartPole-v1", wrappers=[{"SelectActions": {"actions": [1]}}])
    env.reset(seed=0)
    assert env.action_space.n == 1
    assert env.step(0)[0][1] > 0  # pushed to the right


def test_names_of_actions_follow():
    chosen = {"SelectActions": {"actions": [3, 0]}}
    data = RolloutDataModule("FrozenLake-v1", wrappers=["Describe", chosen, "TextHistory"])
    assert data.spec.action_names == ("up", "left")
    env = make_env("FrozenLake-v1", wrappers=["Describe", chosen, "TextHistory"])
    env.reset(seed=0)
    assert env.step(1)[0]["history"].endswith("Action: left")
    again = {"SelectActions": {"actions": [1]}}
    assert names_of(make_env("FrozenLake-v1", wrappers=[chosen, again])) == ("left",)
    assert names_of(Noted()) is None
