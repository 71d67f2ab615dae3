"""Prioritised drawing: which priorities rows have, how often they come, what they weigh."""

import numpy as np
import pytest
import torch
from replay_tools import Game
from scipy.stats import chisquare

from rl_lightning.data.replay.buffer import ReplayBuffer


def leaves(buffer):
    buffer.priorities.settle()
    return buffer.priorities.tree.leaves.copy()


def write(buffer, steps):
    """Steps of one environment that goes on for ever."""
    if buffer.head[0] < 0:
        buffer.begin(torch.zeros(1, 1))
    no = np.zeros(1, bool)
    for _ in range(steps):
        buffer.act(torch.zeros(1, dtype=torch.int64), np.zeros(1), no, no)
        buffer.push(torch.zeros(1, 1))


def filled(priorities, frames=20):
    buffer = ReplayBuffer(frames, 1, prioritized=True)
    write(buffer, len(priorities))
    buffer.draw_by_priority(1, 0.0)
    buffer.set_priorities(torch.arange(len(priorities)), torch.tensor(priorities))
    return buffer


@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("stack", [1, 3])
def test_exactly_the_rows_that_start_a_transition_can_be_drawn(stack, next_step):
    game = Game(frames=48, next_step=next_step, prioritized=True, stack=stack)
    rng = np.random.default_rng(0)
    for _ in range(40):
        game.play(int(rng.integers(1, 9)))
        expected = set(game.expected())
        assert set(np.flatnonzero(leaves(game.buffer))) == expected
        index, weight = game.buffer.draw_by_priority(64, 0.5)
        assert set(index.tolist()) <= expected
        assert weight.shape == (64,)
        game.buffer.set_priorities(index, torch.rand(64) + 0.1)
        game.check(n_step=2)


def test_a_new_row_gets_the_largest_priority_there_ever_was():
    buffer = filled([0.5, 0.25, 0.125])
    assert leaves(buffer)[:4].tolist() == [0.5, 0.25, 0.125, 0]
    write(buffer, 1)
    assert leaves(buffer)[3] == 1.0  # that of the first row of all
    buffer.set_priorities(torch.tensor([1]), torch.tensor([7.0]))
    write(buffer, 1)
    buffer.set_priorities(torch.tensor([1]), torch.tensor([0.5]))
    write(buffer, 1)
    assert leaves(buffer)[:7].tolist() == [0.5, 0.5, 0.125, 1, 7, 7, 0]


def test_of_a_row_drawn_twice_the_last_priority_stays():
    buffer = filled([1.0, 1.0])
    buffer.set_priorities(torch.tensor([0, 1, 0]), torch.tensor([2.0, 3.0, 4.0]))
    assert leaves(buffer)[:2].tolist() == [4, 3]


def test_priorities_of_rows_that_were_overwritten_meanwhile_are_ignored():
    buffer = filled([0.5] * 10, frames=10)  # of 11 rows, 10 hold a transition
    index, _ = buffer.draw_by_priority(200, 0.0)
    assert set(index.tolist()) == set(range(10))
    write(buffer, 3)  # into rows 10, 0, 1; row 2 holds the newest observation
    buffer.set_priorities(torch.arange(10), torch.full((10,), 0.25))
    assert leaves(buffer).tolist() == [1, 1, 0, *[0.25] * 7, 1]


def test_frequencies_follow_priorities():
    priorities = [0.1, 4.0, 1.0, 0.5, 2.5, 0.0, 3.0]
    buffer = filled(priorities)
    drawn = torch.cat([buffer.draw_by_priority(25, 1.0)[0] for _ in range(400)])
    counts = torch.bincount(drawn, minlength=7).numpy()
    assert counts[5] == 0
    p = np.array([x for x in priorities if x])
    assert chisquare(counts[counts > 0], 10_000 * p / p.sum()).pvalue > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_by_hand(beta):
    priorities = np.array([1.0, 2.0, 4.0, 1.0])
    buffer = filled(priorities.tolist())
    index, weight = buffer.draw_by_priority(64, beta)
    raw = (4 * priorities / 8) ** -beta
    drawn = raw[index.numpy()]
    np.testing.assert_allclose(weight.numpy(), drawn / drawn.max(), rtol=1e-6)
    assert weight.dtype == torch.float32
    # Rows of priority 2 are drawn twice as often as those of 1, and with β = 1 weigh half as much.
    at = dict(zip(index.tolist(), weight.tolist(), strict=True))
    assert at[1] == pytest.approx(0.5**beta)
    assert at[2] == pytest.approx(0.25**beta)


def test_with_equal_priorities_all_weights_are_one():
    buffer = filled([0.3] * 9)
    assert (buffer.draw_by_priority(32, 0.7)[1] == 1).all()


def test_a_large_buffer_draws_the_newest_row():
    buffer = ReplayBuffer(70_000, 1, prioritized=True)
    write(buffer, 3)
    buffer.draw_by_priority(1, 0.0)
    buffer.set_priorities(torch.arange(3), torch.tensor([1e-9, 1e-9, 1.0]))
    assert set(buffer.draw_by_priority(50, 1.0)[0].tolist()) == {2}
