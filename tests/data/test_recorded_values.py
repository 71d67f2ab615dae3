"""Recorded numbers that no environment can have said, and those that it can."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.checks import checked
from rl_lightning.data.recordings.episode import Episode

s = gym.spaces
BOX = s.Box(-1, 1, (2,), np.float32)
STEPS = 4
ENDS = np.arange(STEPS) == STEPS - 1
NEVER = ENDS & False


def rows(space, count, at=None, value=None, entry=None):
    """Rows of a space that are fine, but for one."""
    array = np.stack([np.full(space.shape, getattr(space, "start", 0), space.dtype)] * count)
    if at is not None:
        array = array if np.can_cast(np.asarray(value).dtype, array.dtype) else array.astype(float)
        array = array.astype(int) if np.asarray(value).dtype.kind == "i" else array
        array[(at, *(entry or ()))] = value
    return array


def check(observations=BOX, actions=None, masks=None, **parts):
    """Checks an episode; of spaces, or of (space, rows)."""
    spaces = [observations, s.Discrete(2) if actions is None else actions]
    values = [x if isinstance(x, tuple) else (x, None) for x in spaces]
    spec = EnvSpec(values[0][0], values[1][0])
    shown, taken = (
        rows(space, STEPS + 1 - i) if given is None else given
        for i, (space, given) in enumerate(values)
    )
    made = {"rewards": np.ones(STEPS), "terminations": ENDS, "truncations": NEVER, **parts}
    return checked(Episode(shown, taken, action_masks=masks, **made), spec, "a.hdf5: episode_7")


def refused(*words, **what):
    with pytest.raises(ConfigurationError) as caught:
        check(**what)
    message = str(caught.value)
    assert message.startswith("a.hdf5: episode_7")
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- observations and rewards ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_observations_must_be_finite(value, kind):
    box = s.Box(-np.inf, np.inf, (2, 3), kind)
    shown = rows(box, STEPS + 1, 2, value, (1, 0))
    refused("observations: step 2, entry [1, 0], is", observations=(box, shown))
    nested = s.Dict(a=s.Tuple([s.Discrete(2), box]))
    shown = {"a": (np.zeros(STEPS + 1, int), shown)}
    refused("observations/a/_index_1: step 2", observations=(nested, shown))


def test_observations_must_be_finite_in_the_type_of_their_space():
    large = np.full((STEPS + 1, 2), 1e39)
    refused("not finite in float32", observations=(BOX, large))
    assert check((s.Box(-1, 1, (2,), np.float64), large)).observations[0, 0] == 1e39


def test_large_numbers_and_sums_that_overflow_are_finite():
    """And values outside of bounds, which differ from version to version."""
    largest = np.full((STEPS + 1, 2), np.finfo(np.float32).max)
    assert np.array_equal(check((BOX, largest)).observations, largest)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2"])
def test_integers_do_not_wrap_around(kind):
    box = s.Box(0, 100, (2,), kind)
    over = rows(box, STEPS + 1, 1, int(np.iinfo(kind).max) + 1, (0,))
    refused("step 1, entry [0], is", "outside", observations=(box, over))
    within = rows(box, STEPS + 1, 1, 101, (0,))
    assert check((box, within)).observations.dtype == np.dtype(kind)


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (s.Discrete(3, start=2), 5),
        (s.Discrete(3, start=2), 1),
        (s.Discrete(3, dtype=np.int8), 257),
        (s.MultiDiscrete([2, 4]), 2),
        (s.MultiDiscrete([2, 4], start=[1, 1]), 0),
        (s.MultiBinary(2), 2),
        (s.MultiBinary(2), -1),
    ],
)
def test_counts_must_be_of_their_space(space, value):
    entry = (0,) * len(space.shape)
    refused("actions: step 3", actions=(space, rows(space, STEPS, 3, value, entry)))
    seen = (space, rows(space, STEPS + 1, 4, value, entry))
    refused("observations: step 4", observations=seen)
    assert len(check(space, space)) == STEPS


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "is nan"), (-np.inf, "is -inf"), (1e39, "infinite in float32")]
)
def test_rewards_must_be_finite_as_they_are_learned_from(value, word):
    refused("reward of step 2", word, rewards=np.array([0, 0, value, 0]))
    assert check(rewards=np.full(STEPS, -3e38)).rewards[0] == -3e38


# --- actions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.001, -1.001, np.nan, np.inf])
def test_actions_must_lie_in_their_box(value):
    taken = rows(BOX, STEPS, 1, value, (1,))
    refused("actions: step 1, entry [1], is", actions=(BOX, taken))
    pair = s.Dict(a=BOX, b=s.Tuple([BOX]))
    taken = {"a": rows(BOX, STEPS), "b": (taken,)}
    refused("actions/b/_index_0: step 1", actions=(pair, taken))


@pytest.mark.parametrize("bound", [0.1, 0.3, 1e-8, 7e30])
@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f8", "f4"), ("f8", "f2"), ("f4", "f4")])
def test_actions_may_be_off_by_rounding(kinds, bound):
    box = s.Box(-bound, bound, (1,), kinds[0])
    if kinds[1] == "f2" and bound not in (0.1, 0.3):
        return
    taken = np.array([[bound], [-bound]] * 2, kinds[1])
    read = check(actions=(box, taken)).actions
    assert np.array_equal(read, taken.astype(kinds[0]))  # not a bit is changed
    refused("outside", actions=(box, taken * 1.01))


def test_one_sided_boxes():
    box = s.Box(0, np.inf, (1,), np.float32)
    assert check(actions=(box, np.full((STEPS, 1), 1e30))).actions[0] == np.float32(1e30)
    refused("outside", actions=(box, np.full((STEPS, 1), -0.01)))


# --- masks ----------------------------------------------------------------------------------------

MASKED = {  # a space, an action, a mask that allows it, and one that allows others
    "discrete": (s.Discrete(3, start=5), 6, [0, 1, 0], [1, 0, 1]),
    "multi_discrete": (
        s.MultiDiscrete([2, 3], start=[1, 0]),
        [2, 1],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 0, 1],
    ),
    "multi_binary": (s.MultiBinary(2), [1, 0], [1, 0], [0, 1]),
}


@pytest.mark.parametrize("kind", MASKED)
def test_actions_must_be_allowed_by_their_masks(kind):
    space, action, mine, other = MASKED[kind]
    taken = np.array([action] * STEPS)
    masks = np.array([mine] * STEPS + [other])  # what was allowed afterwards, nobody asked
    assert check(actions=(space, taken), masks=masks).action_masks.dtype == bool
    masks[2] = other
    refused("action of step 2", "mask forbids", actions=(space, taken), masks=masks)


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete"])
def test_masks_must_allow_something(kind):
    """In each part of an action; when all is over nothing need be allowed."""
    space, action, mine, _ = MASKED[kind]
    masks = np.array([mine] * (STEPS + 1))
    masks[-1, :2] = 0
    masks[-1, -1] = 0
    what = {"actions": (space, np.array([action] * STEPS)), "masks": masks}
    check(**what)
    refused("step 4 allows no action", terminations=NEVER, truncations=ENDS, **what)
    masks[1] = masks[-1]
    refused("step 1 allows no action", **what)


def test_bits_may_all_be_forbidden():
    masks = np.zeros((STEPS + 1, 2))
    check(actions=s.MultiBinary(2), masks=masks)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 2, -1])
def test_masks_are_flags(value):
    masks = np.ones((STEPS + 1, 2))
    masks[1, 0] = value
    refused("action masks must be flags", masks=masks)


def test_masks_that_are_for_the_policy_to_refuse():
    assert check(masks=np.zeros((STEPS + 1, 3))).action_masks.shape == (STEPS + 1, 3)


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["terminations", "truncations"])
def test_an_end_is_the_last_step(name):
    early = np.arange(STEPS) == 1
    refused("ends at step 1, but goes on to step 3", **{name: early})
    check(terminations=NEVER)  # cut off while it was written: it goes on with what it saw last
    refused("terminations must be flags", terminations=np.array([0, 0.5, 0, 1]))
    assert check(terminations=ENDS.astype(float)).terminations.dtype == bool


@pytest.mark.parametrize("kind", [complex, "U1", "M8[s]", object])
def test_rewards_are_real_numbers(kind):
    refused("rewards must be real numbers", rewards=np.ones(STEPS, int).astype(kind))
