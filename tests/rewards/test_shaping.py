"""Potential-based shaping leaves the best policy as it is; a bonus of the same size does not."""

import itertools

import numpy as np
import pytest
import torch
from reward_tools import NUMBER, ready, step

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.rewards import StateReward


class Table(StateReward):
    """Φ by a table."""

    def __init__(self, spec, table, **shared):
        super().__init__(spec, **shared)
        self.table = np.array(table, float)
        self.asked = []

    def value(self, obs):
        self.asked.append(list(obs))
        return self.table[np.asarray(obs)]


def potential(table, num_envs=1, gamma=0.9, **shared):
    return ready(Table(NUMBER, table, shaping="potential", **shared), num_envs, gamma)


def test_by_hand():
    reward = potential([1.0, 3.0, 7.0])
    assert reward(step([0], [1], started=[1]))[0] == pytest.approx(0.9 * 3 - 1)
    assert reward(step([1], [2]))[0] == pytest.approx(0.9 * 7 - 3)
    # Nothing is to be had from where an episode is over for good.
    assert reward(step([2], [1], terminated=[1]))[0] == pytest.approx(-7)
    assert reward(step([0], [2], started=[1], truncated=[1]))[0] == pytest.approx(0.9 * 7 - 1)


def test_without_shaping_it_is_what_the_state_is_worth():
    assert ready(Table(NUMBER, [1.0, 3.0]))(step([0], [1], terminated=[1]))[0] == 3.0


def test_each_state_is_asked_for_once_but_the_first_of_an_episode():
    reward = potential([1.0, 3.0, 7.0])
    reward(step([0], [1], started=[1]))
    reward(step([1], [2]))
    reward(step([1], [0], started=[1]))
    assert reward.asked == [[1], [0], [2], [0], [1]]


def test_what_a_state_was_worth_when_it_was_reached_counts():
    """So the sum of what is paid telescopes for potentials that are learned, too."""
    reward = potential([1.0, 3.0, 7.0], gamma=1.0)
    paid = reward(step([0], [1], started=[1]))[0]
    reward.table[:] = [10.0, 20.0, 30.0]
    paid += reward(step([1], [2]))[0]
    assert paid == pytest.approx(30.0 - 1.0)


def test_discounted_sums_depend_on_the_first_state_alone():
    table = [0.5, -2.0, 4.0, 1.0]
    for path in ([0, 1, 2, 3], [0, 3, 3, 1], [0, 2, 0, 2]):
        reward, total = potential(table), 0.0
        for t, (s, s_) in enumerate(itertools.pairwise(path)):
            last = t == len(path) - 2
            total += 0.9**t * reward(step([s], [s_], started=[t == 0], terminated=[last]))[0]
        assert total == pytest.approx(-table[0])


def test_an_offset_shifts_the_potential_and_not_the_end():
    reward = potential([1.0, 3.0, 7.0], offset=-7.0)
    assert reward(step([0], [1], started=[1]))[0] == pytest.approx(0.9 * -4 - -6)
    # The last step upward: without the offset it takes back 3.
    assert reward(step([1], [2], terminated=[1]))[0] == pytest.approx(0 - -4)
    shifted = potential([-6.0, -4.0, 0.0])
    assert shifted(step([0], [1], started=[1]))[0] == pytest.approx(0.9 * -4 - -6)


@pytest.mark.parametrize(
    ("shared", "told"),
    [
        ({"offset": -1.0}, "offset=-1.0 shifts a potential; set shaping: potential, or leave"),
        ({"offset": float("inf"), "shaping": "potential"}, "offset must be a finite number"),
    ],
)
def test_wrong_offsets_are_told(shared, told):
    with pytest.raises(ConfigurationError, match=told):
        Table(NUMBER, [1.0], **shared)


def test_it_goes_on_from_where_it_stood():
    table = [1.0, 3.0, 7.0]
    first, second = potential(table), potential(table)
    first(step([0], [1], started=[1]))
    second.load_episode_state(first.episode_state())
    second.table[1] = 100.0  # Φ(s) is what it was
    assert second(step([1], [2]))[0] == first(step([1], [2]))[0]
    assert torch.equal(first.episode_state()["before"], torch.tensor([7.0], dtype=torch.float64))


# A corridor of five states: to the right of the last one is the goal, which pays 1; to the left of
# the first one the episode ends for nothing. Actions are left and right.
STATES, GAMMA = 5, 0.9


def lead(s, a):
    """Where an action leads, and whether that is the end; state 5 is behind either door."""
    s_ = s + (1 if a else -1)
    return (5, True) if s_ in (-1, STATES) else (s_, False)


def greedy(extra):
    """The best actions by value iteration, with what `extra(s, s_, over)` pays besides."""
    q = np.zeros((STATES + 1, 2))
    for _ in range(300):
        v = q.max(1)
        for s in range(STATES):
            for a in (0, 1):
                s_, over = lead(s, a)
                won = float(over and s == STATES - 1)
                q[s, a] = won + extra(s, s_, over) + GAMMA * (0.0 if over else v[s_])
    return q[:STATES].argmax(1).tolist()


def test_the_best_policy_stays_under_shaping_and_not_under_a_bonus():
    table = [3.0, 0.0, -1.0, -2.0, -3.0, 0.0]  # praises what lies in the wrong direction

    def paid(shaping, offset=0.0):
        def extra(s, s_, over):
            reward = ready(Table(NUMBER, table, shaping=shaping, offset=offset), 1, GAMMA)
            return reward(step([s], [s_], started=[1], terminated=[over]))[0]

        return extra

    best = [1] * STATES
    assert greedy(lambda *_: 0.0) == best
    assert greedy(paid("potential")) == best
    assert greedy(paid("potential", -3.0)) == greedy(paid("potential", 5.0)) == best
    assert greedy(paid("none")) != best
