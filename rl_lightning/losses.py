"""Policy and value losses, and the statistics that explain them: pure functions of tensors.

All arguments of a function have one shape, written `[N]`; sequences `[L, n]` do as well. `valid`
marks the rows that count (bool `[N]`); None means all of them.
"""

import torch
from torch import Tensor


def mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the valid rows; zero if there is none."""
    if valid is None:
        return x.mean()
    weight = valid.to(x.dtype)
    return (x * weight).sum() / weight.sum().clamp(min=1.0)


def standardize(x: Tensor, valid: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """(x − mean) / (std + ε) over the valid rows, with the unbiased std; a single row is unchanged.

    Args:
        x: `[N]`.
        valid: Rows that count, bool `[N]`, or None.
        eps: Keeps a constant x finite.
    """
    if valid is None:
        if x.numel() < 2:
            return x
        return (x - x.mean()) / (x.std() + eps)
    count = valid.sum()
    centred = x - mean(x, valid)
    variance = (centred.square() * valid).sum() / (count - 1).clamp(min=1)
    return torch.where(count > 1, centred / (variance.sqrt() + eps), x)


def policy_gradient_loss(
    log_prob: Tensor, advantage: Tensor, valid: Tensor | None = None
) -> Tensor:
    """−E[log π(a|s) Â], whose gradient is REINFORCE's (Williams 1992).

    Args:
        log_prob: log π(a|s) of the actions taken, with gradient, `[N]`.
        advantage: Â or return, without gradient, `[N]`.
        valid: Rows that count.
    """
    return -mean(log_prob * advantage, valid)


def ppo_policy_loss(
    log_ratio: Tensor, advantage: Tensor, clip_range: float, valid: Tensor | None = None
) -> Tensor:
    """Clipped surrogate −E[min(ρÂ, clip(ρ, 1−ε, 1+ε)Â)] (Schulman et al. 2017, eq. 7).

    Args:
        log_ratio: log ρ = log π(a|s) − log π_old(a|s), `[N]`.
        advantage: Â, `[N]`.
        clip_range: ε.
        valid: Rows that count.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -mean(torch.minimum(ratio * advantage, clipped * advantage), valid)


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor | None = None,
    clip_range: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """½ E[(V − target)²], optionally with V kept near its old value.

    With `clip_range` the larger of the plain and the clipped error counts, as in the reference PPO
    implementation (Dhariwal et al. 2017, openai/baselines ppo2).

    Args:
        value: V(s), with gradient, `[N]`.
        target: Return estimate, `[N]`.
        old_value: V(s) at collection time, `[N]`; needed with `clip_range`.
        clip_range: ε of the value clipping, in units of return; None switches it off.
        valid: Rows that count.
    """
    error = (value - target).square()
    if clip_range is not None:
        assert old_value is not None
        clipped = old_value + (value - old_value).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - target).square())
    return 0.5 * mean(error, valid)


def approx_kl(log_ratio: Tensor, valid: Tensor | None = None) -> Tensor:
    """KL(π_old ‖ π) by the low-variance estimator E[ρ − 1 − log ρ] (Schulman 2020, "k3")."""
    return mean(log_ratio.exp() - 1.0 - log_ratio, valid)


def clip_fraction(log_ratio: Tensor, clip_range: float, valid: Tensor | None = None) -> Tensor:
    """Share of rows whose ratio left [1 − ε, 1 + ε]."""
    return mean(((log_ratio.exp() - 1.0).abs() > clip_range).float(), valid)


def explained_variance(value: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 − Var(target − V) / Var(target): 1 is perfect, 0 no better than a constant; NaN if the
    target is constant."""
    residual = target - value
    if valid is not None:
        residual, target = residual[valid], target[valid]
    variance = target.var(correction=0)
    ratio = 1.0 - residual.var(correction=0) / variance
    return torch.where(variance > 0, ratio, torch.nan)
