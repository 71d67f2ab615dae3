"""Frame stacks, of which the replay buffer stores one frame a step."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from replay_tools import Diary, Game

from rl_lightning.core.errors import ConfigurationError

PADDINGS = pytest.mark.parametrize("padding", ["reset", "zero"])


@PADDINGS
@pytest.mark.parametrize("kind", ["vector", "image", "nested"])
@pytest.mark.parametrize("next_step", [False, True])
def test_stacks_come_back_exactly_through_many_laps(kind, padding, next_step):
    game = Game(kind, frames=75, stack=4, padding=padding, next_step=next_step)
    rng = np.random.default_rng(0)
    for _ in range(12):
        game.play(int(rng.integers(1, 25)))
        assert game.check(n_step=int(rng.integers(1, 6)))
    assert game.buffer._counts.min() > 6 * game.buffer.rows
    assert not game.buffer._stacks  # every stack was checked 64 times, and is no more


@PADDINGS
def test_stacks_of_long_episodes(padding):
    """Most stacks hold no padding, and the oldest one is cut by the ring."""
    game = Game("image", 1, 60, stack=4, padding=padding, longest=50)
    for _ in range(10):
        game.play(23)
        game.check(n_step=3)


def test_stacks_of_two_and_of_half_precision():
    game = Game("vector", 2, 40, stack=2, dtype=np.float16)
    game.play(100)
    game.check(n_step=2, rounded=torch.float16)


def test_a_stack_is_stored_once():
    plain, stacked = Game("image", 1, 900, longest=300), Game("image", 1, 900, longest=300, stack=4)
    for game in (plain, stacked):
        game.play(850)
    # Four times the pixels, and next observations, in the bytes of one: the rest is padding.
    assert stacked.buffer.bytes_per_frame < 1.05 * plain.buffer.bytes_per_frame
    plain.check()
    stacked.check()


def test_priorities_of_rows_whose_stack_is_cut_are_gone():
    game = Game("vector", 2, 40, stack=4, prioritized=True)
    for _ in range(30):
        game.play(7)
        game.buffer.priorities.settle()
        assert set(np.flatnonzero(game.buffer.priorities.tree.leaves)) == set(game.expected())


def make(kind, stack):
    return lambda: gym.wrappers.FrameStackObservation(Diary(kind), stack)


@pytest.mark.parametrize(("kind", "wrong"), [("vector", 2), ("image", 2), ("nested", 2)])
def test_another_number_of_frames_than_the_wrappers_is_found_out(kind, wrong):
    game = Game(make(kind, 4), stack=1, frames=90)
    game.buffer = type(game.buffer)(90, 3, stack=wrong)
    with pytest.raises(ConfigurationError, match=f"frame_stack: {wrong}, but an observation is"):
        game.play(20)


def test_frames_that_do_not_divide_the_observation():
    game = Game("vector", frames=90)
    game.buffer = type(game.buffer)(90, 3, stack=2)
    with pytest.raises(ConfigurationError, match=r"frame_stack: 2 does not divide .* \[3\]"):
        game.play(1)


def test_observations_that_are_no_stacks_are_found_out():
    game = Game("image", frames=90)
    game.buffer = type(game.buffer)(90, 3, stack=3, dtype=None)
    game.player.preprocess = lambda obs: torch.as_tensor(obs).reshape(len(obs), 6, 5)
    with pytest.raises(ConfigurationError, match="is not the one before it, shifted"):
        game.play(20)
