"""The Bradley–Terry loss against numbers worked out by hand."""

import math

import pytest
import torch

from rl_lightning.maths.preferences import bradley_terry, preference_hits


def test_by_hand():
    reward = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    label = torch.tensor([1.0, 0.0, 0.5])
    # P(second) = 3 / (1 + 3), and of a tie half of each.
    expected = [-math.log(3 / 4), -math.log(1 / 4), -0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)]
    assert bradley_terry(reward, label).tolist() == pytest.approx(expected)


def test_identities():
    reward = torch.randn(50, 2)
    label = torch.rand(50)
    loss = bradley_terry(reward, label)
    # Which text comes first does not matter, nor what is added to both rewards.
    torch.testing.assert_close(bradley_terry(reward.flip(1), 1 - label), loss)
    torch.testing.assert_close(bradley_terry(reward + 7.0, label), loss, atol=1e-5, rtol=1e-5)
    # It is the cross-entropy of a sigmoid.
    other = torch.nn.functional.binary_cross_entropy_with_logits(
        reward[:, 1] - reward[:, 0], label, reduction="none"
    )
    torch.testing.assert_close(loss, other)
    assert bradley_terry(torch.tensor([[0.0, 500.0]]), torch.tensor([0.0])).item() == 500.0


def test_a_tie_pulls_rewards_together():
    reward = torch.tensor([[1.0, 3.0]], requires_grad=True)
    bradley_terry(reward, torch.tensor([0.5])).sum().backward()
    assert reward.grad is not None
    first, second = reward.grad[0].tolist()
    assert first < 0 < second
    assert first == pytest.approx(-second)


def test_hits_leave_ties_out():
    reward = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 2.0], [5.0, 1.0], [1.0, 9.0]])
    label = torch.tensor([1.0, 0.0, 1.0, 0.3, 0.5])
    hits, pairs = preference_hits(reward, label)
    assert (hits.item(), pairs.item()) == (2.5, 4.0)
