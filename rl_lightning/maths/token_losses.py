"""Losses over the tokens of a language model: policy gradient and value.

N completions of T tokens each, padded on the right. `mask`, bool `[N, T]`, marks a completion's own
tokens, those the model chose. Padding and what an environment wrote are False there: they have
neither loss nor gradient, whatever stands in their place, be it nan or infinite. Everything is
computed in float32 at least.

A loss is a sum divided by a `normalizer`. Left out, the batch is all there is. When a generation
batch is learned in pieces, pass the `loss_normalizer` of the whole to each of them, divided by the
number of ranks where their gradients are averaged: the gradients then add up to those of the whole.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range
from rl_lightning.maths import losses

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
Importance = Literal["token", "sequence", "trajectory"]
KLEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0  # e²⁰ times an advantage of zero is zero; infinity times zero is nan


class PolicyMetrics(NamedTuple):
    """What explains a policy loss: means over the own tokens of the batch, without gradient."""

    clip_low: Tensor
    """Share of tokens that learn nothing, or less, as their ratio is below 1 − ε_low."""
    clip_high: Tensor
    """Share of tokens that learn nothing, or less, as their ratio is above 1 + ε_high."""
    ratio: Tensor
    """Importance ratio, at the level it was taken."""
    kl_old: Tensor
    """KL(π_old ‖ π) of single tokens in nats, by k3."""
    kl_reference: Tensor | None
    """KL(π ‖ π_ref) in nats, as it is in the loss; None without a reference."""


def own(x: Tensor, mask: Tensor) -> Tensor:
    """x in float32 at least, and zero where the mask is False, without gradient there.

    Args:
        x: `[N, T]`, or `[N, 1]` for what all tokens of a completion share.
        mask: Own tokens, bool `[N, T]`.

    Returns:
        `[N, T]`.
    """
    return torch.where(mask, wide(x), 0.0)


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it has that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact(x: Tensor) -> Tensor:
    """x in float64, which holds squares of all of float32; on Apple's MPS, which has none, as it
    is `wide`."""
    return wide(x) if x.device.type == "mps" else x.double()


def sequence_log_prob(log_prob: Tensor, mask: Tensor) -> Tensor:
    """log π of whole completions given their prompts: `[N, T]` → `[N]`."""
    return own(log_prob, mask).sum(1)


def kl_estimate(log_prob: Tensor, reference_log_prob: Tensor, estimator: KLEstimator) -> Tensor:
    """KL(π ‖ π_ref) in nats, estimated from tokens that π sampled (Schulman 2020).

    With r = π_ref / π: k1 = −log r, unbiased and often negative; k2 = ½ (log r)², biased and low in
    variance; k3 = r − 1 − log r, unbiased and never negative.

    Args:
        log_prob: log π, `[N, T]`.
        reference_log_prob: log π_ref, `[N, T]`.
        estimator: Which one.

    Returns:
        `[N, T]`.
    """
    check_one_of("kl_estimator", estimator, get_args(KLEstimator))
    log_ratio = wide(reference_log_prob) - wide(log_prob)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp() - 1.0 - log_ratio


def importance_log_ratio(log_ratio: Tensor, mask: Tensor, importance: Importance) -> Tensor:
    """log of the importance ratio that a token's advantage is multiplied with, at most 20.

    "token": π(yₜ) / π_old(yₜ) of each token (PPO, GRPO). "sequence": the geometric mean of these
    over a completion (GSPO, Zheng et al. 2025, eq. 7). "trajectory": their product, the ratio of
    whole completions (RLOO, Ahmadian et al. 2024).

    Args:
        log_ratio: log π − log π_old, zero outside the mask, `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        importance: At which level.

    Returns:
        `[N, T]`, or `[N, 1]` where all tokens of a completion have one ratio.
    """
    check_one_of("importance", importance, get_args(Importance))
    if importance != "token":
        log_ratio = log_ratio.sum(1, keepdim=True)  # (N, 1)
    if importance == "sequence":
        log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(max=MAX_LOG_RATIO)


def loss_normalizer(
    mask: Tensor, loss_type: LossType, max_completion_length: int | None = None
) -> Tensor:
    """What the summed loss of a batch is divided by.

    grpo: the completions, N (each is the mean of its own tokens first). dr_grpo: N times the
    longest possible completion, a constant (Liu et al. 2025). bnpo, dapo, cispo: the own tokens;
    bnpo means those of the minibatch, dapo and cispo those of the whole generation batch.

    Args:
        mask: Own tokens of all that belongs together, bool `[N, T]`.
        loss_type: The loss it is for.
        max_completion_length: Most tokens a completion may have; needed by dr_grpo.

    Returns:
        A float32 scalar; those of several pieces or ranks may be added.

    Raises:
        ConfigurationError: If the loss type is unknown, or dr_grpo has no length.
    """
    check_one_of("loss_type", loss_type, get_args(LossType))
    if loss_type == "grpo":
        return mask.new_tensor(len(mask), dtype=torch.float32)
    if loss_type == "dr_grpo":
        if max_completion_length is None:
            raise ConfigurationError(
                "max_completion_length must be given with loss_type='dr_grpo', which divides by it"
            )
        return mask.new_tensor(len(mask) * max_completion_length, dtype=torch.float32)
    return mask.sum().float()


def check_policy_loss(
    loss_type: LossType,
    importance: Importance,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    kl_estimator: KLEstimator,
) -> None:
    """Refuse arguments of `token_policy_loss` that cannot be, before anything is computed.

    Raises:
        ConfigurationError: If one is out of range or unknown.
    """
    check_one_of("loss_type", loss_type, get_args(LossType))
    check_one_of("importance", importance, get_args(Importance))
    check_one_of("kl_estimator", kl_estimator, get_args(KLEstimator))
    check_range("clip_low", clip_low, 0.0, 1.0)
    check_range("clip_high", clip_high, 0.0)
    check_range("dual_clip", dual_clip, 1.0 + clip_high)
    if dual_clip is not None and loss_type == "cispo":
        raise ConfigurationError(f"dual_clip must be None with loss_type='cispo', not {dual_clip}")


def token_policy_loss(
    log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    old_log_prob: Tensor | None = None,
    reference_log_prob: Tensor | None = None,
    *,
    loss_type: LossType = "dapo",
    importance: Importance = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_correction: bool = True,
    max_completion_length: int | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, PolicyMetrics]:
    """Clipped policy gradient over tokens, with an optional KL to a reference policy.

        −min(ρ Â, clip(ρ, 1 − ε_low, 1 + ε_high) Â) + β ρ KL

    of each own token (GRPO, Shao et al. 2024, eq. 3; asymmetric clipping from DAPO, Yu et al. 2025,
    eq. 8). The loss types differ in what the sum is divided by, see `loss_normalizer`. cispo also
    differs in the first term, −sg[clip(ρ, 1 − ε_low, 1 + ε_high)] Â log π, in which clipped tokens
    keep a gradient (MiniMax-M1, Chen et al. 2025, eq. 4); no bound below is `clip_low=1`.

    TRL's `epsilon` and `epsilon_high` are `clip_low` and `clip_high` here, but for cispo, where its
    `epsilon_high` is the bound itself, 1 + `clip_high`, and it has none below. The loss of its RLOO
    is `loss_type="grpo"` with `importance="trajectory"`.

    Args:
        log_prob: log π of each token, with gradient, `[N, T]`.
        advantage: Â of each token `[N, T]` or of each completion `[N]`, without gradient.
        mask: Own tokens, bool `[N, T]`.
        old_log_prob: log π_old, of the policy that sampled, `[N, T]`. None: it was this very one,
            so that the ratio is 1, with gradient.
        reference_log_prob: log π_ref, `[N, T]`; needed if `kl_coef` is not 0.
        loss_type: What the loss is averaged over.
        importance: Which ratio, see `importance_log_ratio`.
        clip_low: ε_low, the distance of the lower bound from 1, in [0, 1].
        clip_high: ε_high, the distance of the upper bound from 1.
        dual_clip: Largest ratio that a negative advantage is multiplied with, at least
            1 + `clip_high`, as min(ρ Â, …) has no such bound. Above that value, max(·, c Â) for
            Â < 0 (Ye et al. 2020, eq. 5) and TRL's `delta`, min(ρ, δ) Â (INTELLECT-2), are one
            and the same; below, they are not. None switches it off; cispo has no use for it.
        kl_coef: β.
        kl_estimator: See `kl_estimate`.
        kl_correction: Whether the KL has the factor ρ, as is TRL's default: the expected gradient
            of k1 and k3 is then that of KL(π ‖ π_ref) (DeepSeek-V3.2, 2025). Without it, that is so
            for k2; k1 has none at all, and k3 has that of KL(π_ref ‖ π).
        max_completion_length: Most tokens a completion may have; needed by dr_grpo.
        normalizer: What the sum is divided by instead of this batch's own `loss_normalizer`.

    Returns:
        The loss, a scalar, and what explains it.

    Raises:
        ConfigurationError: If an argument is out of range, unknown or missing.
    """
    check_policy_loss(loss_type, importance, clip_low, clip_high, dual_clip, kl_estimator)
    if normalizer is None:
        normalizer = loss_normalizer(mask, loss_type, max_completion_length)

    log_prob = own(log_prob, mask)
    old = log_prob.detach() if old_log_prob is None else own(old_log_prob, mask)
    advantage = own(advantage if advantage.dim() == 2 else advantage[:, None], mask)
    log_ratio = log_prob - old
    ratio = importance_log_ratio(log_ratio, mask, importance).exp().expand_as(log_prob)

    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    below, above = ratio < 1.0 - clip_low, ratio > 1.0 + clip_high
    if loss_type == "cispo":
        loss = -clipped.detach() * advantage * log_prob
    else:
        below, above = below & (advantage < 0), above & (advantage > 0)
        bounded = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
        loss = -torch.minimum(bounded * advantage, clipped * advantage)

    kl = None
    if reference_log_prob is not None:
        kl = kl_estimate(log_prob, own(reference_log_prob, mask), kl_estimator)
        kl = kl * ratio if kl_correction else kl
    if kl_coef != 0.0:
        if kl is None:
            raise ConfigurationError(
                f"reference_log_prob must be given with kl_coef={kl_coef}, or kl_coef be 0"
            )
        loss = loss + kl_coef * kl

    if loss_type == "grpo":
        loss = loss / mask.sum(1, keepdim=True).clamp(min=1)
    with torch.no_grad():
        metrics = PolicyMetrics(
            clip_low=losses.mean(below.float(), mask),
            clip_high=losses.mean(above.float(), mask),
            ratio=losses.mean(ratio, mask),
            kl_old=losses.mean(kl_estimate(old, log_prob, "k3"), mask),
            kl_reference=None if kl is None else losses.mean(kl, mask),
        )
    return divide(own(loss, mask).sum(), normalizer), metrics


def token_value_loss(
    value: Tensor,
    target: Tensor,
    mask: Tensor,
    old_value: Tensor | None = None,
    clip_range: float | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """½ E[(V − target)²] over the own tokens, optionally clipped, as `losses.value_loss`.

    Args:
        value: V of each token, with gradient, `[N, T]`.
        target: Return estimate, `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        old_value: V at collection time, `[N, T]`; needed with `clip_range`.
        clip_range: ε of the value clipping, in units of return; None switches it off.
        normalizer: Tokens that the sum is divided by; those of this batch if None.

    Raises:
        ConfigurationError: If values are to be clipped and there are no old ones.
    """
    if clip_range is not None and old_value is None:
        raise ConfigurationError(
            f"old_value must be given with clip_range={clip_range}, or clip_range be None"
        )
    old = None if old_value is None else own(old_value, mask)
    mean = losses.value_loss(own(value, mask), own(target, mask), old, clip_range, mask)
    return mean if normalizer is None else divide(mean * mask.sum(), normalizer)


def divide(total: Tensor, normalizer: float | Tensor) -> Tensor:
    """The quotient; the total where there is nothing to divide by, which is zero then."""
    count = torch.as_tensor(normalizer, dtype=total.dtype, device=total.device)
    return total / torch.where(count > 0, count, 1.0)
