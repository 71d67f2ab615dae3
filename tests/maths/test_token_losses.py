"""KL estimates and the losses of values, imitation and preference, over tokens."""

import math

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths import losses
from rl_lightning.maths import token_imitation as imitation
from rl_lightning.maths import token_losses as token


def test_kl_estimators_by_hand():
    log_prob, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.2)])
    log_ratio = math.log(0.2 / 0.5)
    expected = {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": 0.2 / 0.5 - 1 - log_ratio}
    for estimator, value in expected.items():
        found = token.kl_estimate(log_prob, reference, estimator)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("estimator", "correction", "target"),
    [
        ("k1", True, "reverse"),
        ("k3", True, "reverse"),
        ("k2", False, "reverse"),
        ("k1", False, "none"),
        ("k3", False, "forward"),
    ],
)
def test_which_divergence_an_estimator_descends(estimator, correction, target):
    """Summed over all tokens with their probabilities, the gradient is exact."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.2, -0.5, 0.4], dtype=torch.float64).log_softmax(0)
    log_prob = logits.log_softmax(0)
    divergence = {
        "reverse": (log_prob.exp() * (log_prob - reference)).sum(),
        "forward": (reference.exp() * (reference - log_prob)).sum(),
        "none": 0.0 * logits.sum(),
    }[target]
    (expected,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    total = 0.0
    for k, weight in enumerate(log_prob.exp().tolist()):
        loss, _ = token.token_policy_loss(
            log_prob[None, k : k + 1],
            torch.zeros(1),
            torch.ones(1, 1, dtype=torch.bool),
            None,
            reference[None, k : k + 1],
            kl_coef=1.0,
            kl_estimator=estimator,
            kl_correction=correction,
        )
        total = total + weight * loss
    assert isinstance(total, torch.Tensor)
    (gradient,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    log_prob, old, reference = (-3 * torch.rand(3, 6, 7)).to(dtype).unbind()
    advantage, mask = torch.randn(6).to(dtype), torch.rand(6, 7) < 0.7
    wide = log_prob.double(), old.double(), reference.double()
    loss, _ = token.token_policy_loss(log_prob, advantage, mask, old, reference, kl_coef=0.1)
    exact, _ = token.token_policy_loss(
        wide[0], advantage.double(), mask, wide[1], wide[2], kl_coef=0.1
    )
    others = imitation.sft_loss(log_prob, mask), token.token_value_loss(log_prob, old, mask)
    found = [loss, *others, imitation.dpo_loss(log_prob, old, reference, old)[0]]
    expected = [
        exact,
        imitation.sft_loss(wide[0], mask),
        token.token_value_loss(wide[0], wide[1], mask),
    ]
    expected.append(imitation.dpo_loss(*wide, wide[1])[0])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    kl = token.kl_estimate(log_prob, reference, "k3")
    torch.testing.assert_close(kl, token.kl_estimate(wide[0], wide[2], "k3").float())


def test_the_value_loss_is_that_of_the_own_tokens():
    value = torch.tensor([[1.0, math.nan, 5.0]], requires_grad=True)
    target, mask = torch.tensor([[3.0, 0.0, 5.5]]), torch.tensor([[True, False, True]])
    loss = token.token_value_loss(value, target, mask)
    assert loss.item() == pytest.approx(0.5 * (4 + 0.25) / 2)
    (gradient,) = torch.autograd.grad(loss, value)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.0, -0.25]]))
    assert token.token_value_loss(value, target, mask, normalizer=4).item() == loss.item() / 2
    # From 0, V may move to ±0.5: (0.5 − 3)² and (0.5 − 5.5)² count, as they are the larger ones.
    clipped = token.token_value_loss(value, target, mask, torch.zeros(1, 3), clip_range=0.5)
    assert clipped.item() == pytest.approx(0.5 * (2.5**2 + 5.0**2) / 2)
    rows = value.detach()[mask], target[mask], torch.zeros(2), 0.5
    assert clipped.item() == losses.value_loss(*rows).item()
    with pytest.raises(ConfigurationError, match=r"old_value must be given with clip_range=0\.5"):
        token.token_value_loss(value, target, mask, clip_range=0.5)


def test_the_imitation_loss_is_the_cross_entropy_of_the_own_tokens():
    logits = torch.randn(4, 5, 11, requires_grad=True)
    labels = torch.randint(11, (4, 5))
    mask = torch.rand(4, 5) < 0.6
    log_prob = logits.log_softmax(2).gather(2, labels[..., None]).squeeze(2)
    expected = torch.nn.functional.cross_entropy(logits[mask], labels[mask])
    torch.testing.assert_close(imitation.sft_loss(log_prob, mask), expected)
    halves = [imitation.sft_loss(log_prob[i], mask[i], mask.sum()) for i in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves), expected)
    broken = torch.where(mask, log_prob, -math.inf)
    (gradient,) = torch.autograd.grad(imitation.sft_loss(broken, mask), log_prob)
    assert gradient.isfinite().all()
    assert imitation.sft_loss(log_prob, torch.zeros_like(mask)) == 0.0


def test_the_preference_loss_by_hand():
    chosen, rejected = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-2.0, -1.0, -3.0])
    reference = torch.tensor([-1.5, -1.5, -3.0])
    # Δ = (0.5 + 0.5), (−0.5 − 0.5), 0
    loss, metrics = imitation.dpo_loss(chosen, rejected, reference, reference, beta=2.0)
    expected = [math.log(1 + math.exp(-m)) for m in (2.0, -2.0, 0.0)]
    assert loss.item() == pytest.approx(sum(expected) / 3)
    assert metrics.margin.item() == 0.0
    assert metrics.accuracy.item() == 0.5
    smooth, _ = imitation.dpo_loss(chosen[:1], rejected[:1], reference[:1], reference[:1], 2.0, 0.1)
    expected = 0.9 * math.log(1 + math.exp(-2)) + 0.1 * math.log(1 + math.exp(2))
    assert smooth.item() == pytest.approx(expected)
    with pytest.raises(ConfigurationError, match=r"label_smoothing must be between 0 and 0\.5"):
        imitation.dpo_loss(chosen, rejected, reference, reference, label_smoothing=0.6)


def test_the_preference_loss_separates_the_pair():
    chosen, rejected = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    zero = torch.zeros(3)
    loss, _ = imitation.dpo_loss(chosen, rejected, zero, zero, beta=0.1)
    assert loss.item() == pytest.approx(math.log(2))
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    torch.testing.assert_close(up, torch.full((3,), -0.1 / 2 / 3))
    torch.testing.assert_close(down, -up)
