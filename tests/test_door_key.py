"""What stands beside the comparison of guides: the same view sooner, and what it is in words."""

import gymnasium as gym
import minigrid  # noqa: F401  registers the environments
import numpy as np
import pytest
from comparisons.door_key import KINDS, Cells, QuickView, describe
from minigrid.wrappers import ImgObsWrapper

from rl_lightning.envs.describe import Describe

DOOR_KEY = "MiniGrid-DoorKey-6x6-v0"


@pytest.mark.parametrize("kwargs", [{}, {"see_through_walls": True}, {"agent_view_size": 5}])
def test_the_same_observations_sooner(kwargs):
    plain, quick = gym.make(DOOR_KEY, **kwargs), QuickView(gym.make(DOOR_KEY, **kwargs))
    rng = np.random.default_rng(0)
    (one, _), (two, _) = plain.reset(seed=3), quick.reset(seed=3)
    done, opened = False, 0
    for _ in range(2_500):
        assert one.keys() == two.keys()
        np.testing.assert_array_equal(one["image"], two["image"])
        assert one["image"].dtype == two["image"].dtype
        assert (one["direction"], one["mission"]) == (two["direction"], two["mission"])
        opened += bool((one["image"] == [4, 4, 0]).all(-1).any())
        if done:
            (one, _), (two, _) = plain.reset(), quick.reset()
            done = False
            continue
        action = int(rng.choice(7, p=[0.15, 0.15, 0.4, 0.12, 0.02, 0.15, 0.01]))
        one, *said = plain.step(action)
        two, *quickly = quick.step(action)
        assert said == quickly
        done = said[1] or said[2]
    assert opened > 20


def view(**cells):
    """A view of free floor, with cells at column_row."""
    out = np.tile(np.array([1, 0, 0], np.uint8), (7, 7, 1))
    for place, cell in cells.items():
        x, y = map(int, place[1:].split("_"))
        out[x, y] = cell
    return out


KEY, GOAL, WALL, LOCKED, OPEN = (5, 4, 0), (8, 1, 0), (2, 5, 0), (4, 4, 2), (4, 4, 0)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({}, "You carry nothing. Ahead is nothing."),
        ({"c3_6": KEY, "c3_5": LOCKED}, "You carry a key. Ahead is a locked door."),
        ({"c3_6": KEY, "c3_5": OPEN, "c3_4": GOAL}, "You carry a key. Ahead is an open door."),
        ({"c3_5": WALL, "c2_6": KEY}, "You carry nothing. Ahead is a wall."),
    ],
)
def test_in_words(cells, text):
    assert describe(view(**cells), None) == text


def test_cells_are_one_of_eight_kinds():
    class Views(gym.Env):
        observation_space = gym.spaces.Dict(
            {"observation": gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)}
        )
        action_space = gym.spaces.Discrete(7)

    env = Cells(Views())
    image = view(c0_0=(0, 0, 0), c0_1=WALL, c0_2=KEY, c0_3=GOAL, c0_4=OPEN, c0_5=(4, 4, 1),
                 c0_6=LOCKED)  # fmt: skip
    out = env.observation({"observation": image})["observation"]
    assert out in env.observation_space["observation"]
    rows = out.reshape(7, 7, 8)
    assert (rows.sum(-1) == 1).all()
    names = ["unseen", "wall", "key", "goal", "open door", "closed door", "locked door"]
    assert [KINDS[k] for k in rows[0].argmax(-1)] == names
    assert (rows[1:].argmax(-1) == KINDS.index("empty")).all()


def test_lights_flicker_and_mean_nothing():
    plain, lit = (
        Cells(Describe(ImgObsWrapper(QuickView(gym.make(DOOR_KEY))), describe, keep=True), n)
        for n in (0, 6)
    )
    empty, others = KINDS.index("empty"), len(KINDS)
    looks = []
    for _ in range(2):
        one, two = plain.reset(seed=1)[0], lit.reset(seed=1)[0]
        assert one["text"] == two["text"]
        assert lit.observation_space.contains(two)
        parts = two["observation"].reshape(49, others + 6)
        np.testing.assert_array_equal(parts[:, :others].ravel(), one["observation"])
        np.testing.assert_array_equal(parts[:, others:].sum(1), parts[:, empty])
        looks.append(
            [two["observation"], lit.step(0)[0]["observation"], lit.step(1)[0]["observation"]]
        )
    for first, again in zip(*looks, strict=True):
        np.testing.assert_array_equal(first, again)  # by the seed
    assert (looks[0][0] != looks[0][2]).any()  # to the left and back again
