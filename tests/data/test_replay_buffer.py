"""The replay buffer against a list of whole transitions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from replay_tools import Game, same
from scipy.stats import chisquare

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.storage import action_dtype, action_example

BOTH = pytest.mark.parametrize("next_step", [False, True])


@BOTH
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_buffer_holds_exactly_the_last_rows_through_many_laps(num_envs, next_step):
    game = Game(num_envs=num_envs, frames=13 * num_envs, next_step=next_step, mask=True)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        game.play(int(rng.integers(1, 9)))
        seen.add(game.check(n_step=int(rng.integers(1, 6))))
    assert game.buffer._counts.min() > 15 * game.buffer.rows
    assert len(game.buffer) == len(game.expected())
    assert max(seen) <= 13 * num_envs


@pytest.mark.parametrize("kind", ["vector", "image", "nested"])
@pytest.mark.parametrize("n_step", [1, 2, 3, 4, 5])
def test_every_transition_of_n_steps_is_right(kind, n_step):
    game = Game(kind, frames=200)
    for _ in range(3):
        game.play(90)
        assert game.check(n_step) > 100


@BOTH
def test_real_environments(next_step):
    game = Game(lambda: gym.make("CartPole-v1"), 2, 100, next_step=next_step)
    for _ in range(5):
        game.play(41)
        game.check(n_step=3)
    game = Game(lambda: gym.make("Pendulum-v1", max_episode_steps=11), 2, 100, next_step)
    game.play(120)
    game.check(n_step=4)


def steps(buffer, *row):
    """Write (reward, terminated, truncated) triples of one environment that counts its steps."""
    buffer.begin(torch.tensor([[0.0]]))
    for t, (reward, terminated, truncated) in enumerate(row):
        action = torch.tensor([t])
        buffer.act(action, np.array([reward]), np.array([terminated]), np.array([truncated]))
        buffer.push(torch.tensor([[t + 1.0]]))


def n_step(buffer, row, n):
    out = buffer.read(torch.tensor([row]), 0.5, n)
    return [out[k].item() for k in ("reward", "discount", "next_obs")]


def test_returns_of_n_steps_by_hand():
    buffer = ReplayBuffer(20, 1)
    steps(buffer, (1, False, False), (2, False, False), (4, True, False))
    steps(buffer, (1, False, False), (2, False, True))
    steps(buffer, (8, False, False), (16, False, False))
    # Rows 0–3 are an episode that terminates, 4–6 one that is cut off, 7–9 one that is open.
    assert n_step(buffer, 0, 1) == [1, 0.5, 1]
    assert n_step(buffer, 0, 2) == [2, 0.25, 2]
    assert n_step(buffer, 0, 3) == [3, 0, 3]
    assert n_step(buffer, 0, 5) == [3, 0, 3]
    assert n_step(buffer, 2, 3) == [4, 0, 3]
    # Cut off: the value of the final observation counts, after the steps there were.
    assert n_step(buffer, 4, 3) == [2, 0.25, 2]
    assert n_step(buffer, 5, 3) == [2, 0.5, 2]
    # The newest row has no reward yet: fewer steps, and their discount.
    assert n_step(buffer, 7, 3) == [16, 0.25, 2]
    assert n_step(buffer, 8, 3) == [16, 0.5, 2]


def test_a_step_that_ends_in_both_ways_is_terminal():
    buffer = ReplayBuffer(20, 1)
    steps(buffer, (1, True, True))
    assert n_step(buffer, 0, 1) == n_step(buffer, 0, 2) == [1, 0, 1]


@BOTH
def test_draws_are_uniform(next_step):
    game = Game(frames=30, next_step=next_step)
    game.play(50)
    drawn = torch.cat([game.buffer.draw(999) for _ in range(20)])
    assert len(drawn) == 19980
    rows, counts = torch.unique(drawn, return_counts=True)
    assert set(rows.tolist()) == set(game.expected())
    assert chisquare(counts.numpy()).pvalue > 1e-3
    # Neighbours in a batch are drawn independently: with replacement, and in no order.
    pairs, order = (drawn[1:] == drawn[:-1]).float().mean(), (drawn[1:] > drawn[:-1]).float().mean()
    assert abs(pairs - 1 / len(rows)) < 0.01
    assert abs(order + pairs / 2 - 0.5) < 0.02


def test_drawing_before_there_is_anything():
    buffer = ReplayBuffer(20, 2)
    buffer.begin(torch.zeros(2, 1))
    with pytest.raises(RuntimeError, match="no transition yet"):
        buffer.draw(4)


def test_too_small_a_buffer_is_refused():
    ReplayBuffer(4, 2)
    with pytest.raises(ConfigurationError, match=r"buffer_frames: 3 hold no transition; .* = 4"):
        ReplayBuffer(3, 2)


def test_half_precision_rounds_floats_only():
    game = Game("nested", dtype=np.float16)
    game.play(60)
    game.check(rounded=torch.float16)
    parts = game.buffer.columns["obs"].parts
    assert parts["image"].array.dtype == np.uint8
    assert {c.array.dtype for c in parts["deep"].parts.values()} == {np.dtype(np.float16)}
    got = game.buffer.read(torch.tensor(sorted(game.expected())), 0.9)
    with pytest.raises(AssertionError):  # the comparison can fail
        same({"x": got["obs"]["deep"]["vector"]}, {"x": got["obs"]["deep"]["other"]})


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (gym.spaces.Discrete(200), np.uint8),
        (gym.spaces.Discrete(300), np.int16),
        (gym.spaces.Discrete(5, start=-2), np.int8),
        (gym.spaces.Discrete(100_000), np.int32),
        (gym.spaces.MultiDiscrete([3, 2000]), np.int16),
        (gym.spaces.MultiBinary(3), np.uint8),
        (gym.spaces.Box(-1, 1, (2,), np.float32), None),
    ],
)
def test_actions_take_few_bytes_and_come_back(space, dtype):
    assert action_dtype(space) == dtype
    example = action_example(space, 2)
    space.seed(0)
    actions = [torch.as_tensor(np.stack([space.sample() for _ in range(2)])) for _ in range(9)]
    buffer = ReplayBuffer(40, 2, action_dtype=action_dtype(space))
    buffer.begin(torch.zeros(2, 1))
    for action in actions:
        assert action.to(example.dtype).shape == example.shape
        buffer.act(action.to(example.dtype), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
        buffer.push(torch.zeros(2, 1))
    index = torch.arange(18)
    got = buffer.read(index, 0.9)["action"]
    assert got.dtype == example.dtype
    assert torch.equal(got, torch.cat(actions).to(example.dtype))


def test_an_observation_is_stored_once():
    wide = Game(lambda: gym.make("Pendulum-v1"), 2, 400)
    wide.play(220)
    # Three floats, a reward, a byte of flags and an action of a float: twice over it were 25.
    assert wide.buffer.bytes_per_frame == pytest.approx(3 * 4 + 4 + 1 + 4, rel=0.02)
    image = Game("image", 1, 400, longest=200)
    image.play(500)
    assert image.buffer.bytes_per_frame < 1.05 * (30 + 4 + 1 + 1)
    flat = image.buffer.storage
    assert flat["obs"].data_ptr() == image.buffer.columns["obs"].array.ctypes.data
    assert flat.batch_size == (image.buffer.size,)


def test_priorities_count_in_the_bytes():
    plain, ranked = (Game(frames=90, prioritized=p) for p in (False, True))
    for game in (plain, ranked):
        game.play(100)
    difference = ranked.buffer.bytes_per_frame - plain.buffer.bytes_per_frame
    assert difference == pytest.approx(8 * plain.buffer.used / len(plain.buffer))
