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


def ratio_metrics(
    log_ratio: Tensor, clip_range: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`approx_kl` and `clip_fraction`, which have their exponential in common."""
    excess = log_ratio.exp() - 1.0
    kl = mean(excess - log_ratio, valid)
    return kl, mean((excess.abs() > clip_range).float(), valid)


def explained_variance(value: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 − Var(target − V) / Var(target): 1 is perfect, 0 no better than a constant; NaN if the
    target is constant."""
    residual = target - value
    if valid is not None:
        residual, target = residual[valid], target[valid]
    variance = target.var(correction=0)
    ratio = 1.0 - residual.var(correction=0) / variance
    return torch.where(variance > 0, ratio, torch.nan)


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """½ x² where |x| ≤ δ, else δ (|x| − ½ δ), of each element (Huber 1964)."""
    size = error.abs()
    small = size.clamp(max=delta)
    return small * (size - 0.5 * small)


def project_distribution(
    support: Tensor, probabilities: Tensor, reward: Tensor, discount: Tensor
) -> Tensor:
    """The distribution of r + γ Z, projected onto Z's own support (Bellemare et al. 2017, eq. 7).

    Args:
        support: Atoms zᵢ in equal steps, ascending, `[K]`.
        probabilities: Of Z in the next state, `[N, K]`.
        reward: `[N]`.
        discount: What the next value counts, 0 after a terminal step, `[N]`.

    Returns:
        Probabilities `[N, K]`; what falls outside the support is put on its ends.
    """
    low, high, atoms = support[0], support[-1], len(support)
    moved = (reward[:, None] + discount[:, None] * support).clamp(low, high)  # (N, K)
    position = ((moved - low) / (high - low) * (atoms - 1)).clamp(0, atoms - 1)
    below = position.floor().clamp(max=atoms - 2)
    share = position - below
    below = below.long()
    projected = torch.zeros_like(probabilities)
    projected.scatter_add_(1, below, probabilities * (1.0 - share))
    projected.scatter_add_(1, below + 1, probabilities * share)
    return projected


def quantile_huber(quantiles: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """Quantile regression loss of each row (Dabney et al. 2018, eq. 10).

    Σᵢ meanⱼ |τᵢ − 1{uᵢⱼ < 0}| L_κ(uᵢⱼ) / κ with uᵢⱼ = targetⱼ − quantileᵢ, τᵢ = (i + ½) / K.

    Args:
        quantiles: θᵢ(s, a), with gradient, `[N, K]`.
        target: Samples of the target distribution, `[N, J]`.
        kappa: κ of the Huber loss.

    Returns:
        `[N]`.
    """
    count = quantiles.shape[1]
    tau = (torch.arange(count, device=quantiles.device) + 0.5) / count  # (K,)
    error = target[:, None, :] - quantiles[:, :, None]  # (N, K, J)
    weight = (tau[:, None] - (error.detach() < 0).float()).abs()
    return (weight * huber(error, kappa) / kappa).mean(2).sum(1)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """E[|τ − 1{x < 0}| x²], which is least at the τ-expectile (Kostrikov et al. 2022, eq. 5).

    Args:
        error: x = target − prediction, `[N]`.
        expectile: τ; ½ is the mean, → 1 the maximum.
    """
    return ((expectile - (error.detach() < 0).float()).abs() * error.square()).mean()


def weighted_mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """E[w x] over the batch, as prioritised replay corrects its sampling; w = 1 if None."""
    return x.mean() if weight is None else (weight * x).mean()
