"""Losses between what a teacher says of states and what a student does: pure functions of tensors.

Choices are probabilities `[N, ..., A]`: of a Discrete action `[N, A]`, of several parts or bits
`[N, K, A]`, whose sums are the parts' together. An action that a mask forbids has probability 0,
and carries no weight.
"""

import torch
from torch import Tensor


def soften(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/τ) / Σ p^(1/τ): τ > 1 is more even, τ < 1 sharper (Hinton et al. 2015, eq. 1).

    Args:
        probabilities: `[..., A]`; what is 0 stays 0.
        temperature: τ > 0.
    """
    return (probabilities.log() / temperature).softmax(-1)


def categorical_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q) of each row (Rusu et al. 2016, eq. 3), `[N]`.

    Args:
        teacher: p, `[N, ..., A]`.
        student: q, with gradient, of the same shape.
    """
    return (torch.xlogy(teacher, teacher) - teacher * _log(student)).flatten(1).sum(1)


def label_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """−log q(a*) with a* = argmax p of each row (Rusu et al. 2016, eq. 1), `[N]`.

    Args:
        teacher: p, `[N, ..., A]`.
        student: q, with gradient, of the same shape.
    """
    label = teacher.argmax(-1, keepdim=True)
    return -_log(student.gather(-1, label)).flatten(1).sum(1)


def gaussian_kl(mean: Tensor, std: Tensor, student_mean: Tensor, student_std: Tensor) -> Tensor:
    """KL of independent normals, Σ log(σ_S / σ_T) + (σ_T² + (μ_T − μ_S)²) / (2 σ_S²) − ½, `[N]`.

    Args:
        mean: μ_T, `[N, A]`, as are
        std: σ_T,
        student_mean: μ_S with gradient, and
        student_std: σ_S with gradient.
    """
    ratio = std / student_std
    error = (mean - student_mean) / student_std
    return (0.5 * (ratio.square() + error.square() - 1.0) - ratio.log()).sum(-1)


def squared_error(target: Tensor, prediction: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of (target − prediction)² over the entries of each row that count, `[N]`.

    Args:
        target: `[N, A]`.
        prediction: With gradient, `[N, A]`.
        allowed: Entries that count, bool `[N, A]`; None: all.
    """
    error = (target - prediction).square()
    if allowed is None:
        return error.mean(-1)
    return error.where(allowed, 0.0).sum(-1) / allowed.sum(-1).clamp(min=1)


def agreement(teacher: Tensor, student: Tensor) -> Tensor:
    """1.0 where the likeliest action is the same, in all of its parts, else 0.0, `[N]`."""
    same = teacher.argmax(-1) == student.argmax(-1)
    return same.flatten(1).all(1).float() if same.ndim > 1 else same.float()


def _log(probabilities: Tensor) -> Tensor:
    """log p, finite at 0: 0 · log 0 is then 0, in the gradient too."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
