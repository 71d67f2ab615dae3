"""Losses over tokens that somebody else chose: imitation, and preference between two completions.

Masks and shapes are those of `rl_lightning.maths.token_losses`.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from rl_lightning.core.errors import check_range
from rl_lightning.maths.token_losses import divide, own, wide


class DPOMetrics(NamedTuple):
    """What explains a DPO loss: means over the pairs, without gradient."""

    margin: Tensor
    """Implicit reward of the chosen completion minus that of the rejected one, β Δ."""
    accuracy: Tensor
    """Share of pairs whose margin is positive; equal rewards count half."""


def sft_loss(log_prob: Tensor, mask: Tensor, normalizer: float | Tensor | None = None) -> Tensor:
    """−E[log π] over the own tokens: the cross-entropy of supervised fine-tuning, in nats.

    Args:
        log_prob: log π of the tokens to be imitated, with gradient, `[N, T]`.
        mask: Tokens to imitate, bool `[N, T]`.
        normalizer: Tokens that the sum is divided by; those of this batch if None.
    """
    return divide(-own(log_prob, mask).sum(), mask.sum() if normalizer is None else normalizer)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, DPOMetrics]:
    """−(1 − ε) log σ(β Δ) − ε log σ(−β Δ), the mean over pairs (Rafailov et al. 2023, eq. 7).

    Δ = (log π − log π_ref) of the chosen completion minus that of the rejected one.

    Args:
        chosen: log π of the whole chosen completion, see `sequence_log_prob`, `[N]`.
        rejected: log π of the rejected one, `[N]`.
        reference_chosen: log π_ref of the chosen one, `[N]`.
        reference_rejected: log π_ref of the rejected one, `[N]`.
        beta: β: the higher, the nearer to the reference.
        label_smoothing: ε, the share of pairs taken to be the wrong way round, in [0, ½]
            (conservative DPO, Mitchell 2023).

    Returns:
        The loss, a scalar, and what explains it.

    Raises:
        ConfigurationError: If ε is out of range.
    """
    check_range("label_smoothing", label_smoothing, 0.0, 0.5)
    chosen_ratio = wide(chosen) - wide(reference_chosen)
    margin = beta * (chosen_ratio - (wide(rejected) - wide(reference_rejected)))
    loss = -(1.0 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    accuracy = 0.5 * (1.0 + margin.detach().sign())
    return loss.mean(), DPOMetrics(margin.detach().mean(), accuracy.mean())
