"""Rewards and ends of relabelled goals, from functions of batches and of single goals."""

import gymnasium as gym
import numpy as np
import pytest
from replay_tools import Game
from test_hindsight import relabelled

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay.goals import goal_function
from rl_lightning.data.replay.hindsight import Hindsight
from rl_lightning.envs import make_env

PLANE = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
SMALL = gym.spaces.Box(0.0, 0.3, (2,), np.float32)
BITS = gym.spaces.MultiBinary(3)


def far(achieved, desired):
    return np.linalg.norm(np.asarray(achieved, float) - desired, axis=-1) > 0.25


class Batches(gym.Env):
    """Both functions take batches and single goals, as BitFlip's do."""

    def compute_reward(self, achieved, desired, info):
        return -far(achieved, desired).astype(np.float32)

    def compute_terminated(self, achieved, desired, info):
        return ~far(achieved, desired)


class Fetch(Batches):
    """A task that goes on, in the words of Gymnasium-Robotics."""

    def compute_terminated(self, achieved, desired, info):
        return False

    def compute_truncated(self, achieved, desired, info):
        return False


class Maze(Batches):
    """One flag, of whatever it was given."""

    def compute_terminated(self, achieved, desired, info):
        return bool(np.linalg.norm(np.asarray(achieved, float) - desired) <= 0.25)


class Single(gym.Env):
    """Both functions know one goal only, and one of them says so."""

    def compute_reward(self, achieved, desired, info):
        return 0.0 if np.allclose(achieved, desired) else -1.0

    def compute_terminated(self, achieved, desired, info):
        assert np.shape(achieved) in ((2,), (3,))
        return np.array([bool((achieved == desired).all())])


class OnlyBatches(gym.Env):
    """Functions that a single goal breaks."""

    def compute_reward(self, achieved, desired, info):
        return -(np.abs(achieved - desired).sum(axis=1) > 0.25).astype(float)

    def compute_terminated(self, achieved, desired, info):
        return np.abs(achieved - desired).sum(axis=1) <= 0.25


class AnyOfThem(Batches):
    def compute_terminated(self, achieved, desired, info):
        return np.any(~far(achieved, desired))


def pairs(space, n=20):
    space.seed(3)
    achieved, desired = (np.stack([space.sample() for _ in range(n)]) for _ in range(2))
    desired[::2] = achieved[::2]
    return achieved, desired


@pytest.mark.parametrize("space", [PLANE, SMALL, BITS])
@pytest.mark.parametrize("kind", [Batches, Fetch, Maze, Single, OnlyBatches, AnyOfThem])
def test_every_goal_gets_an_answer_of_its_own(kind, space):
    if kind is OnlyBatches and space is BITS:
        pytest.skip("of bits there are no differences")
    achieved, desired = pairs(space)
    reward = goal_function(kind(), "compute_reward", space)
    over = goal_function(kind(), "compute_terminated", space)
    assert reward is not None
    assert over is not None
    there = reward(achieved, desired) == 0
    assert there[::2].all()
    assert not there.all()
    assert reward(achieved, desired).dtype == np.float32
    ends = np.zeros(20, bool) if kind is Fetch else there
    assert over(achieved, desired).tolist() == ends.tolist()


def test_batches_are_asked_as_batches():
    asked = []

    class Counting(Batches):
        def compute_reward(self, achieved, desired, info):
            asked.append(np.shape(achieved))
            return super().compute_reward(achieved, desired, info)

    reward = goal_function(Counting(), "compute_reward", PLANE)
    assert reward is not None
    asked.clear()
    reward(*pairs(PLANE))
    assert asked == [(20, 2)]


def test_an_environment_may_say_nothing_of_ends():
    assert goal_function(gym.Env(), "compute_terminated", PLANE) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (lambda far: False, r"shape \[\], and for each of them alone False"),
        (lambda far: ~far[:, None], r"shape \[8, 1\], and it raised IndexError"),
        (lambda far: ~far[:1], r"shape \[1\], and it raised IndexError"),
        (lambda far: None, r"shape \[\], and for each of them alone False"),
        (lambda far: np.zeros(5, bool), r"shape \[5\], and it raised ValueError"),
        (lambda far: {}["is_success"], r"it raised KeyError: 'is_success'"),
    ],
    ids=["a single False", "a column", "too few", "nothing", "too many", "an error"],
)
def test_anything_else_is_refused(flags, words):
    class Other(Batches):
        def compute_terminated(self, achieved, desired, info):
            return flags(far(achieved, desired))

    with pytest.raises(ConfigurationError, match=f"compute_terminated .*{words}") as caught:
        goal_function(Other(), "compute_terminated", PLANE)
    assert len(str(caught.value)) < 700


def test_a_reward_that_is_always_the_same_is_refused_too():
    class Same(gym.Env):
        def compute_reward(self, achieved, desired, info):
            return 0.0

    with pytest.raises(ConfigurationError, match="compute_reward must give one reward"):
        goal_function(Same(), "compute_reward", PLANE)


def test_relabelling_asks_for_single_goals_where_it_must():
    """What functions of one goal say of bit flips is what functions of batches say."""

    class OneGoal(gym.Wrapper):
        def compute_reward(self, achieved, desired, info):
            return float((achieved == desired).all()) - 1.0

        def compute_terminated(self, achieved, desired, info):
            return bool((achieved == desired).all())

    game = Game(lambda: gym.make("BitFlip-v0", bits=6), 2, 300, episodes=True)
    game.play(60)
    hindsight = Hindsight(OneGoal(make_env("BitFlip-v0", {"bits": 6})), 4)
    _, _, after = relabelled(game, hindsight)
    there = (after["next_obs"]["achieved_goal"] == after["obs"]["desired_goal"]).all(1)
    assert ((after["reward"] == 0) == there).all()
    assert ((after["discount"] == 0) == there).all()
    assert there.any()
