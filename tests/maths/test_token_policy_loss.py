"""The policy loss over tokens: by hand, identities, and what each argument is for."""

import math
from typing import Any

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths import token_losses as token

TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
N, T = 6, 7


def batch(seed=0):
    """log π, Â of completions, mask with holes, log π_old and log π_ref, in float64."""
    g = torch.Generator().manual_seed(seed)
    log_prob, old, reference = (
        -3 * torch.rand(3, N, T, generator=g, dtype=torch.float64) - 0.05
    ).unbind()
    mask = torch.rand(N, T, generator=g) < 0.7
    mask[:, 0] = True
    return log_prob, torch.randn(N, generator=g, dtype=torch.float64), mask, old, reference


def loss_and_gradient(log_prob, *arguments, **options):
    log_prob = log_prob.detach().requires_grad_()
    loss, _ = token.token_policy_loss(
        log_prob, *arguments, **{"max_completion_length": 10, **options}
    )
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0]


def ratios(*rows):
    """log π of the given importance ratios, for log π_old = 0."""
    return torch.tensor(rows).log()


def by_hand(loss_type, **options):
    """Two completions, of three own tokens with Â = 1 and of one with Â = −2."""
    log_prob = ratios([1.5, 1.1, 0.5], [0.6, 9.0, 9.0])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantage = torch.tensor([1.0, -2.0])
    return token.token_policy_loss(
        log_prob, advantage, mask, torch.zeros(2, 3), loss_type=loss_type, **options
    )


def test_every_normalizer_by_hand():
    # min(ρÂ, clip(ρ)Â): 1.2 (clipped), 1.1 and 0.5 of the first; −1.6 (clipped) of the second.
    first, second = -(1.2 + 1.1 + 0.5), 1.6
    expected = {
        "grpo": (first / 3 + second) / 2,
        "bnpo": (first + second) / 4,
        "dapo": (first + second) / 4,
        "dr_grpo": (first + second) / (2 * 5),
    }
    for loss_type, value in expected.items():
        loss, _ = by_hand(loss_type, max_completion_length=5)
        assert loss.item() == pytest.approx(value), loss_type
        loss, _ = by_hand(loss_type, normalizer=8.0)
        total = first / 3 + second if loss_type == "grpo" else first + second
        assert loss.item() == pytest.approx(total / 8), loss_type


def test_cispo_by_hand():
    # −clip(ρ) Â log π, of which only log π has a gradient: clipped tokens learn too.
    log_prob = ratios([1.5, 0.5]).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantage = torch.tensor([2.0])
    loss, metrics = token.token_policy_loss(
        log_prob, advantage, mask, torch.zeros(1, 2), loss_type="cispo"
    )
    assert loss.item() == pytest.approx(-(1.2 * 2 * math.log(1.5) + 0.8 * 2 * math.log(0.5)) / 2)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, torch.tensor([[-1.2, -0.8]]))
    assert (metrics.clip_low.item(), metrics.clip_high.item()) == (0.5, 0.5)
    without_lower, _ = token.token_policy_loss(
        log_prob, advantage, mask, torch.zeros(1, 2), loss_type="cispo", clip_low=1.0
    )
    expected = -(1.2 * 2 * math.log(1.5) + 0.5 * 2 * math.log(0.5)) / 2
    assert without_lower.item() == pytest.approx(expected)


def test_metrics_by_hand():
    _, metrics = by_hand("grpo")
    assert metrics.clip_high.item() == 0.25
    assert metrics.clip_low.item() == 0.25  # 0.5 is within: a positive advantage raises it again
    assert metrics.ratio.item() == pytest.approx((1.5 + 1.1 + 0.5 + 0.6) / 4)
    kl = sum(r - 1 - math.log(r) for r in (1.5, 1.1, 0.5, 0.6)) / 4
    assert metrics.kl_old.item() == pytest.approx(kl)
    assert metrics.kl_reference is None
    _, metrics = by_hand("grpo", clip_low=0.5, clip_high=0.6)
    assert (metrics.clip_low.item(), metrics.clip_high.item()) == (0.0, 0.0)
    _, metrics = by_hand("grpo", clip_low=0.2, clip_high=0.6)
    assert (metrics.clip_low.item(), metrics.clip_high.item()) == (0.25, 0.0)


def test_clipping_is_asymmetric():
    log_prob, mask = ratios([1.25, 0.75]), torch.ones(1, 2, dtype=torch.bool)
    cases: list[tuple[float, dict[str, Any], list[float]]] = [
        (1.0, {"clip_high": 0.3}, [1.25, 0.75]),
        (1.0, {"clip_high": 0.1}, [1.1, 0.75]),
        (-1.0, {"clip_low": 0.3}, [-1.25, -0.75]),
        (-1.0, {"clip_low": 0.1}, [-1.25, -0.9]),
    ]
    for advantage, options, expected in cases:
        loss, _ = token.token_policy_loss(
            log_prob, torch.tensor([advantage]), mask, torch.zeros(1, 2), **options
        )
        assert loss.item() == pytest.approx(-sum(expected) / 2)


def test_the_dual_clip_bounds_what_a_negative_advantage_weighs():
    log_prob, mask = ratios([7.0, 2.0]).requires_grad_(), torch.ones(1, 2, dtype=torch.bool)

    def surrogate(advantage, dual_clip):
        return token.token_policy_loss(
            log_prob, torch.tensor([advantage]), mask, torch.zeros(1, 2), dual_clip=dual_clip
        )[0]

    assert surrogate(-1.0, None).item() == pytest.approx((7 + 2) / 2)
    assert surrogate(-1.0, 3.0).item() == pytest.approx((3 + 2) / 2)
    assert surrogate(1.0, 3.0).item() == surrogate(1.0, None).item()
    (gradient,) = torch.autograd.grad(surrogate(-1.0, 3.0), log_prob)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1.0]]))


def test_importance_levels_by_hand():
    log_ratio = torch.tensor([[0.2, 0.4, 0.0]])
    mask = torch.tensor([[True, True, False]])
    expected = {"token": [[0.2, 0.4, 0.0]], "sequence": [[0.3]], "trajectory": [[0.6]]}
    for importance, value in expected.items():
        found = token.importance_log_ratio(log_ratio, mask, importance)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor(value))


@pytest.mark.parametrize("loss_type", TYPES)
def test_importance_levels_agree_on_completions_of_one_token(loss_type):
    log_prob, advantage, _, old, reference = batch()
    one = torch.zeros(N, T, dtype=torch.bool)
    one[:, 2] = True
    found = [
        loss_and_gradient(
            log_prob, advantage, one, old, reference,
            loss_type=loss_type, importance=importance, kl_coef=0.1,
        )
        for importance in ("token", "sequence", "trajectory")
    ]  # fmt: skip
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_sequence_importance_gives_every_token_one_ratio():
    log_prob, advantage, mask, old, _ = batch()
    found = {
        importance: loss_and_gradient(
            log_prob, advantage, mask, old, importance=importance, clip_low=1.0, clip_high=1e9
        )[1]
        for importance in ("token", "sequence", "trajectory")
    }
    spread = {k: (v / advantage[:, None])[1][mask[1]].std().item() for k, v in found.items()}
    assert spread["token"] > 1e-3
    assert spread["sequence"] < 1e-12
    assert spread["trajectory"] < 1e-12
    assert not torch.allclose(found["sequence"], found["trajectory"])


@pytest.mark.parametrize("loss_type", TYPES)
def test_on_policy_gradient_is_the_policy_gradient(loss_type):
    log_prob, advantage, mask, _, _ = batch()
    _, gradient = loss_and_gradient(log_prob, advantage, mask, loss_type=loss_type)
    expected = -advantage[:, None] * mask / token.loss_normalizer(mask, loss_type, 10)
    if loss_type == "grpo":
        expected = expected / mask.sum(1, keepdim=True)
    torch.testing.assert_close(gradient, expected)
    _, metrics = token.token_policy_loss(
        log_prob, advantage, mask, loss_type=loss_type, max_completion_length=10
    )
    assert metrics.ratio == 1.0
    assert metrics.kl_old == 0.0


def test_the_advantage_may_differ_by_token():
    log_prob, advantage, mask, old, _ = batch()
    shared = loss_and_gradient(log_prob, advantage, mask, old)
    spread = advantage[:, None].expand(N, T).clone()
    torch.testing.assert_close(loss_and_gradient(log_prob, spread, mask, old), shared)
    spread[0, 0] += 1.0
    assert loss_and_gradient(log_prob, spread, mask, old)[0] != shared[0]


@pytest.mark.parametrize("importance", ["token", "sequence", "trajectory"])
@pytest.mark.parametrize("loss_type", TYPES)
def test_padding_and_environment_tokens_change_nothing(loss_type, importance):
    log_prob, advantage, mask, old, reference = batch()
    options = {"loss_type": loss_type, "importance": importance, "kl_coef": 0.1}
    plain = loss_and_gradient(log_prob, advantage, mask, old, reference, **options)

    def longer(x, filling):
        """Four columns more, two of them in the middle."""
        return torch.cat([x[:, :3], filling, x[:, 3:], filling], dim=1)

    nothing = torch.tensor([math.nan, -math.inf]).expand(N, 2).double()
    log_prob, old, reference = (longer(x, nothing) for x in (log_prob, old, reference))
    mask = longer(mask, torch.zeros(N, 2, dtype=torch.bool))
    loss, gradient = loss_and_gradient(log_prob, advantage, mask, old, reference, **options)
    torch.testing.assert_close(loss, plain[0])
    torch.testing.assert_close(gradient[mask], plain[1][plain[1] != 0])
    assert torch.equal(gradient[~mask], torch.zeros(int((~mask).sum())).double())


def test_a_completion_without_own_tokens_has_no_gradient():
    log_prob, advantage, mask, old, _ = batch()
    mask[0] = False
    advantage[0] = math.nan
    for importance in ("token", "sequence", "trajectory"):
        loss, gradient = loss_and_gradient(
            log_prob, advantage, mask, old, loss_type="grpo", importance=importance
        )
        assert loss.isfinite()
        assert torch.equal(gradient[0], torch.zeros(T).double())
        _, metrics = token.token_policy_loss(log_prob, advantage, mask, old, importance=importance)
        assert metrics.ratio.isfinite()
        loss, gradient = loss_and_gradient(log_prob, advantage, torch.zeros_like(mask), old)
        assert loss == 0.0
        assert not gradient.any()


@pytest.mark.parametrize("loss_type", TYPES)
def test_pieces_with_the_normalizer_of_the_whole_add_up_to_it(loss_type):
    log_prob, advantage, mask, old, reference = batch()
    options = {"loss_type": loss_type, "kl_coef": 0.1}
    whole = loss_and_gradient(log_prob, advantage, mask, old, reference, **options)
    options["normalizer"] = token.loss_normalizer(mask, loss_type, 10)
    pieces = [
        loss_and_gradient(
            *(x[rows] for x in (log_prob, advantage, mask, old, reference)), **options
        )
        for rows in (slice(0, 1), slice(1, 4), slice(4, N))
    ]
    torch.testing.assert_close(sum(p[0] for p in pieces), whole[0])
    torch.testing.assert_close(torch.cat([p[1] for p in pieces]), whole[1])


def test_without_a_coefficient_the_reference_does_not_matter():
    log_prob, advantage, mask, old, reference = batch()
    plain = loss_and_gradient(log_prob, advantage, mask, old)
    for other in (reference, reference * math.nan):
        assert loss_and_gradient(log_prob, advantage, mask, old, other)[0] == plain[0]
        assert torch.equal(loss_and_gradient(log_prob, advantage, mask, old, other)[1], plain[1])
    with_kl = loss_and_gradient(log_prob, advantage, mask, old, reference, kl_coef=0.1)
    assert with_kl[0] != plain[0]


def test_the_kl_is_weighed_corrected_and_reported():
    log_prob = ratios([2.0]).requires_grad_()  # ρ = 2, π_ref / π = ½
    mask = torch.ones(1, 1, dtype=torch.bool)
    for estimator in ("k1", "k2", "k3"):
        kl = token.kl_estimate(log_prob, torch.zeros(1, 1), estimator).item()
        for correction, factor in ((True, 2.0), (False, 1.0)):
            loss, metrics = token.token_policy_loss(
                log_prob,
                torch.zeros(1),
                mask,
                torch.zeros(1, 1),
                torch.zeros(1, 1),
                kl_coef=0.3,
                kl_estimator=estimator,
                kl_correction=correction,
            )
            assert loss.item() == pytest.approx(0.3 * factor * kl)
            assert metrics.kl_reference is not None
            assert metrics.kl_reference.item() == pytest.approx(factor * kl)


def test_ratios_too_large_for_a_float_stay_finite():
    log_prob = torch.full((2, 3), -1.0)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for advantage in (0.0, -1.0):
        loss, gradient = loss_and_gradient(
            log_prob,
            torch.full((2,), advantage),
            mask,
            log_prob - 500.0,
            log_prob + 500.0,
            importance="trajectory",
            kl_coef=0.1,
        )
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("importance", ["token", "sequence", "trajectory"])
def test_gradients_are_those_of_finite_differences(importance, estimator):
    log_prob, advantage, mask, old, reference = (
        x[:3, :3] if x.dim() == 2 else x[:3] for x in batch()
    )

    def loss(x):
        return token.token_policy_loss(
            x, advantage, mask, old, reference,
            importance=importance, kl_coef=0.2, kl_estimator=estimator,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, log_prob.clone().requires_grad_())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo': use one of grpo, bnpo, dr_grpo, dapo, cispo"),
        ({"loss_type": "ppo", "normalizer": 3.0}, "loss_type='ppo': use one of"),
        ({"importance": "word"}, "importance='word': use one of token, sequence, trajectory"),
        ({"loss_type": "dr_grpo"}, "max_completion_length must be given with loss_type='dr_grpo'"),
        ({"clip_low": 1.5}, "clip_low must be between 0 and 1, not 1.5"),
        ({"clip_high": -0.1}, "clip_high must be at least 0, not -0.1"),
        ({"dual_clip": 1.1}, "dual_clip must be at least 1.2, not 1.1"),
        ({"dual_clip": 3.0, "loss_type": "cispo"}, "dual_clip must be None with loss_type='cispo'"),
        ({"kl_coef": 0.1}, "reference_log_prob must be given with kl_coef=0.1, or kl_coef be 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(options, message):
    log_prob, advantage, mask, old, _ = batch()
    with pytest.raises(ConfigurationError, match=message):
        token.token_policy_loss(log_prob, advantage, mask, old, **options)
    with pytest.raises(ConfigurationError, match="kl_estimator='k4': use one of k1, k2, k3"):
        token.kl_estimate(log_prob, old, "k4")  # type: ignore[arg-type]
