"""How strategies explore: their probabilities, masks, and how they change with progress."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.exploration import (
    ActionNoise,
    Boltzmann,
    EpsilonGreedy,
    GaussianNoise,
    OrnsteinUhlenbeck,
    greedy_action,
    uniform_action,
)

VALUES = torch.tensor([1.0, 3.0, 2.0, 0.0])
MASK = torch.tensor([True, False, True, True])
MANY = 20_000
CPU = torch.device("cpu")


def counts(strategy, progress=0.0, mask=None):
    """How often each action is chosen."""
    mask = None if mask is None else mask.expand(MANY, 4)
    actions = strategy(VALUES.expand(MANY, 4), progress, mask)
    assert actions.dtype == torch.int64
    return torch.bincount(actions, minlength=4).numpy()


def agrees(seen, expected):
    expected = np.asarray(expected)
    assert (seen[expected == 0] == 0).all()
    return chisquare(seen[expected > 0], MANY * expected[expected > 0]).pvalue > 1e-3


CASES = [
    (EpsilonGreedy(0.4, 0.4), None, [0.1, 0.7, 0.1, 0.1]),
    (EpsilonGreedy(0.3, 0.3), MASK, [0.1, 0, 0.8, 0.1]),
    (EpsilonGreedy(1.0, 1.0), MASK, [1 / 3, 0, 1 / 3, 1 / 3]),
    (Boltzmann(2.0, 2.0), None, [math.exp(v / 2) for v in (1, 3, 2, 0)]),
    (Boltzmann(0.5, 0.5), MASK, [math.exp(2), 0, math.exp(4), 1]),
]


@pytest.mark.parametrize(("strategy", "mask", "weights"), CASES)
def test_actions_come_with_the_probabilities_by_hand(strategy, mask, weights):
    expected = np.array(weights) / sum(weights)
    assert agrees(counts(strategy, mask=mask), expected)
    row = None if mask is None else mask[None]
    told = strategy.probabilities(VALUES[None], 0.0, row)
    np.testing.assert_allclose(told[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("make", [EpsilonGreedy, Boltzmann])
@pytest.mark.parametrize("mask", [None, MASK])
def test_without_strength_the_best_allowed_action_is_chosen(make, mask):
    seen = counts(make(1.0, 0.0, 0.5), 0.5, mask)
    assert seen.argmax() == (1 if mask is None else 2)
    assert seen.max() == MANY
    told = make(1.0, 0.0, 0.5).probabilities(
        VALUES[None], 0.5, None if mask is None else mask[None]
    )
    assert told.max() == told.sum() == 1


@pytest.mark.parametrize("make", [EpsilonGreedy, Boltzmann])
def test_the_strength_is_annealed_over_a_fraction_of_progress(make):
    strategy = make(1.0, 0.2, 0.4)
    values = [strategy.strength(p) for p in (0.0, 0.1, 0.2, 0.4, 0.9)]
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])
    assert make(1.0, 0.2, 0.0).strength(0.0) == pytest.approx(0.2)
    first, last = (strategy.probabilities(VALUES[None], p)[0, 1] for p in (0.0, 0.5))
    assert first < last


def test_rows_explore_independently():
    torch.manual_seed(0)
    explored = EpsilonGreedy(0.5, 0.5)(VALUES.expand(4000, 4), 0.0) != 1
    both = (explored[::2] & explored[1::2]).float().mean()
    assert both == pytest.approx(0.375**2, abs=0.025)


def test_greedy_action_by_hand():
    values = torch.stack([VALUES, -VALUES])
    assert greedy_action(values).tolist() == [1, 3]
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    assert greedy_action(values, mask).tolist() == [2, 0]
    assert greedy_action(values - 100, mask).tolist() == [2, 0]


# --- noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [GaussianNoise, OrnsteinUhlenbeck])
def test_noise_is_annealed(make):
    noise = make(std=0.4, std_end=0.1, fraction=0.5)
    assert [noise.strength(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [0.4, 0.25, 0.1, 0.1]
    )
    assert make(std=0.3).strength(1.0) == 0.3
    spread = [noise.sample(torch.Size([4000, 2]), p, None).std().item() for p in (0.0, 1.0)]
    assert spread == pytest.approx([0.4, 0.1], rel=0.04)


def test_gaussian_noise_forgets():
    torch.manual_seed(1)
    first = GaussianNoise(0.2).sample(torch.Size([3, 2]), 0.0, torch.full((3, 2), 9.0))
    torch.manual_seed(1)
    assert torch.equal(first, GaussianNoise(0.2).sample(torch.Size([3, 2]), 0.0, None))


@pytest.mark.parametrize("theta", [0.15, 0.5, 1.0])
def test_ornstein_uhlenbeck_noise_settles_at_its_stationary_variance(theta):
    noise, shape = OrnsteinUhlenbeck(0.2, theta), torch.Size([4000, 1])
    x = torch.zeros(shape)
    for _ in range(60):
        before, x = x, noise.sample(shape, 0.0, x)
    assert x.std().item() == pytest.approx(0.2 / math.sqrt(2 * theta - theta**2), rel=0.05)
    correlation = np.corrcoef(before[:, 0], x[:, 0])[0, 1]
    assert correlation == pytest.approx(1 - theta, abs=0.05)
    assert noise.remembers
    assert not GaussianNoise.remembers


def test_ornstein_uhlenbeck_by_hand():
    x = OrnsteinUhlenbeck(0.0, 0.25).sample(torch.Size([1, 2]), 0.0, torch.tensor([[4.0, -8.0]]))
    assert x.tolist() == [[3.0, -6.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpsilonGreedy(1.5), "exploration.start must be between 0 and 1, not 1.5"),
        (lambda: EpsilonGreedy(end=-0.1), "exploration.end must be between 0 and 1"),
        (lambda: EpsilonGreedy(fraction=2), "exploration.fraction must be between 0 and 1"),
        (lambda: Boltzmann(-1), "exploration.start must be at least 0"),
        (lambda: Boltzmann(end=-1), "exploration.end must be at least 0"),
        (lambda: GaussianNoise(-1), "noise.std must be at least 0"),
        (lambda: GaussianNoise(std_end=-1), "noise.std_end must be at least 0"),
        (lambda: OrnsteinUhlenbeck(theta=2), "noise.theta must be between 1e-06 and 1"),
        (lambda: ActionNoise(fraction=-1), "noise.fraction must be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# --- uniform actions --------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, -2])
def test_uniform_discrete_actions(start):
    space = gym.spaces.Discrete(4, start=start)
    actions = uniform_action(space, MANY, None, CPU) - start
    assert agrees(np.bincount(actions), [0.25] * 4)
    masked = uniform_action(space, MANY, MASK.expand(MANY, 4), CPU) - start
    assert agrees(np.bincount(masked, minlength=4), [1 / 3, 0, 1 / 3, 1 / 3])


def test_uniform_box_actions_fill_their_own_ranges():
    space = gym.spaces.Box(np.float32([[-1, 0]]), np.float32([[1, 10]]))
    actions = uniform_action(space, MANY, None, CPU)
    assert actions.shape == (MANY, 1, 2)
    for column, (low, high) in zip(actions.view(MANY, 2).T, [(-1, 1), (0, 10)], strict=True):
        counted = np.histogram(column, bins=10, range=(low, high))[0]
        assert counted.sum() == MANY
        assert chisquare(counted).pvalue > 1e-3


@pytest.mark.parametrize(
    "space", [gym.spaces.MultiDiscrete([2, 2]), gym.spaces.Box(0, np.inf, (1,))]
)
def test_spaces_without_uniform_distribution_are_refused(space):
    with pytest.raises(ConfigurationError, match="cannot draw uniform actions from"):
        uniform_action(space, 2, None, CPU)
