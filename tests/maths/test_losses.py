"""Losses against hand-worked numbers and identities."""

import math

import pytest
import torch

from rl_lightning.core.schedules import factor
from rl_lightning.maths import losses

VALID = torch.tensor([True, True, False])


def test_mean_ignores_invalid_rows():
    x = torch.tensor([1.0, 3.0, 1e9])
    assert losses.mean(x, VALID) == 2.0
    assert losses.mean(x, torch.zeros(3, dtype=torch.bool)) == 0.0


def test_standardize():
    x = torch.tensor([1.0, 2.0, 3.0, 10.0])
    y = losses.standardize(x)
    assert y.mean().abs() < 1e-6
    assert abs(y.std() - 1.0) < 1e-6
    # The masked form is the plain form of the rows that count.
    masked = losses.standardize(torch.tensor([1.0, 2.0, 3.0, 10.0, 77.0]), torch.arange(5) < 4)
    torch.testing.assert_close(masked[:4], y)


def test_standardize_single_row_is_unchanged():
    assert losses.standardize(torch.tensor([5.0])) == 5.0
    one = losses.standardize(torch.tensor([5.0, 9.0]), torch.tensor([True, False]))
    assert one[0] == 5.0


def test_ppo_loss_by_hand():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    # min(ρÂ, clip(ρ)Â): 1.2 (clipped), 0.5, −1.5 (pessimistic), −0.8 (clipped)
    loss = losses.ppo_policy_loss(ratio.log(), advantage, 0.2)
    torch.testing.assert_close(loss, torch.tensor(-(1.2 + 0.5 - 1.5 - 0.8) / 4))


def test_ppo_gradient_is_policy_gradient_at_ratio_one():
    log_prob = torch.tensor([-0.3, -1.2, -2.0], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    (ppo,) = torch.autograd.grad(
        losses.ppo_policy_loss(log_prob - log_prob.detach(), advantage, 0.2), log_prob
    )
    (plain,) = torch.autograd.grad(losses.policy_gradient_loss(log_prob, advantage), log_prob)
    torch.testing.assert_close(ppo, plain)


def test_ppo_gradient_vanishes_where_clipped():
    log_ratio = torch.tensor([0.5, -0.5], requires_grad=True)
    loss = losses.ppo_policy_loss(log_ratio, torch.tensor([1.0, -1.0]), 0.2)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    assert torch.equal(gradient, torch.zeros(2))


def test_value_loss():
    value, target = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])
    assert losses.value_loss(value, target) == 1.0  # ½ · (4 + 0) / 2
    # Clipped: V may move from 0 to ±0.5, so (0.5 − 3)² counts instead of (1 − 3)².
    clipped = losses.value_loss(value[:1], target[:1], torch.zeros(1), 0.5)
    assert clipped == 0.5 * 2.5**2


def test_kl_estimator_is_zero_at_one_and_right_on_average():
    assert losses.approx_kl(torch.zeros(4)) == 0.0
    g = torch.Generator().manual_seed(0)
    old = torch.tensor([0.2, 0.3, 0.5])
    new = torch.tensor([0.3, 0.3, 0.4])
    actions = torch.multinomial(old, 400_000, replacement=True, generator=g)
    estimate = losses.approx_kl((new / old).log()[actions])
    exact = (old * (old / new).log()).sum()
    assert abs(estimate - exact) < 5e-4


def test_clip_fraction():
    log_ratio = torch.tensor([1.5, 1.1, 0.5, 1.0]).log()
    assert losses.clip_fraction(log_ratio, 0.2) == 0.5


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0])
    assert losses.explained_variance(target, target) == 1.0
    assert losses.explained_variance(torch.zeros(3), target) == 0.0
    assert losses.explained_variance(torch.zeros(3), torch.ones(3)).isnan()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", (1, 1, 1)), ("linear", (1, 0.5, 0)), ("cosine", (1, 0.5, 0))],
)
def test_schedules(name, expected):
    for progress, value in zip((0.0, 0.5, 1.0), expected, strict=True):
        assert math.isclose(factor(name, progress), value, abs_tol=1e-12)
    assert factor(name, 1.7) == factor(name, 1.0)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'quadratic'"):
        factor("quadratic", 0.1)  # type: ignore[arg-type]
