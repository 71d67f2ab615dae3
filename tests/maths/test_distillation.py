"""Losses between teacher and student, by hand."""

import math

import pytest
import torch

from rl_lightning.maths.distillation import (
    agreement,
    categorical_kl,
    gaussian_kl,
    label_cross_entropy,
    soften,
    squared_error,
)

P, Q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]] * 2)


def test_kl_by_hand():
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(4)]
    assert categorical_kl(P, Q).tolist() == pytest.approx(expected)
    assert categorical_kl(P, P).tolist() == [0, 0]
    parts = categorical_kl(P[None], Q[None])  # two parts of one action
    assert parts.tolist() == pytest.approx([sum(expected)])


def test_kl_is_torchs():
    p, q = (torch.randn(2, 5, 4).softmax(-1) for _ in range(2))
    made = torch.distributions.Categorical
    ours, theirs = categorical_kl(p, q), torch.distributions.kl_divergence(made(p), made(q)).sum(-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    mean, other, std, more = (
        torch.randn(3, 2),
        torch.randn(3, 2),
        torch.rand(3, 2),
        torch.rand(3, 2),
    )
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, std), normal(other, more)).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, std, other, more), theirs)


def test_what_is_impossible_has_no_gradient_and_no_weight():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    own = logits.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)
    for compare in (categorical_kl, label_cross_entropy):
        (grad,) = torch.autograd.grad(compare(P[:1], own).sum(), logits, retain_graph=True)
        assert grad.isfinite().all()
        assert grad[0, 2] == 0
    expected = [0.5 - 1 / (1 + math.e), 0.5 - math.e / (1 + math.e)]  # q − p, times −1
    (grad,) = torch.autograd.grad(categorical_kl(P[:1], own).sum(), logits)
    assert (-grad[0, :2]).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_label_is_the_likeliest_action():
    assert label_cross_entropy(torch.tensor([[0.4, 0.6, 0.0]]), Q[:1]).item() == pytest.approx(
        -math.log(0.75)
    )
    two = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    own = torch.tensor([[[0.5, 0.5], [0.75, 0.25]]])
    assert label_cross_entropy(two, own).item() == pytest.approx(math.log(2) + math.log(4))


def test_gaussian_kl_by_hand():
    one = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    other = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert gaussian_kl(*one, *other).item() == pytest.approx(0.5 + math.log(2) + 1 / 8 - 0.5)
    assert gaussian_kl(*one, *one).item() == 0


def test_temperature_makes_even_or_sharp():
    p = torch.tensor([[0.8, 0.2, 0.0]])
    assert soften(p, 1.0)[0].tolist() == pytest.approx([0.8, 0.2, 0])
    assert soften(p, 2.0)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert soften(p, 0.5)[0].tolist() == pytest.approx([16 / 17, 1 / 17, 0])
    assert soften(p, 1e-3)[0].tolist() == [1, 0, 0]


def test_squared_error_is_a_mean_over_what_is_allowed():
    target, own = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    assert squared_error(target, own).item() == pytest.approx(86 / 3)
    assert squared_error(target, own, torch.tensor([[True, True, False]])).item() == 2.5


def test_agreement_is_that_of_all_parts():
    one = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]] * 2)
    other = one.clone()
    other[1, 1] = torch.tensor([0.6, 0.4])
    assert agreement(one, other).tolist() == [1, 0]
    assert agreement(one[:, 1], other[:, 1]).tolist() == [1, 0]
