"""Action distributions, as small as the hot path needs them.

`torch.distributions` validates, expands and re-normalises at every call, which costs more than a
small policy's forward pass. These classes do the arithmetic and nothing else. All share one
interface over *latent* actions, the values a policy's density is written in:

    sample() → latent [N, ...]      mode() → latent [N, ...]
    log_prob(latent) → [N]          entropy() → [N]

A latent action is the action itself except for continuous ones, which are clipped or squashed on
their way to the environment (see `nn.heads`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2 = math.log(2.0)
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
HALF_LOG_2PIE = HALF_LOG_2PI + 0.5


def flat_mask(value: Any) -> np.ndarray:
    """What an environment allows, in Gymnasium's form or ours, as one row of flags, bool `[A]`.

    Args:
        value: One mask, or of several parts (MultiDiscrete) a sequence of masks, which come one
            after the other. What is neither comes back as no row, for the caller to refuse.
    """
    if isinstance(value, Sequence) and not any(np.isscalar(part) for part in value):
        value = np.concatenate([np.reshape(part, -1) for part in value]) if value else ()
    row = np.asarray(value).astype(bool)
    return row if row.ndim == 1 else np.empty((0, 0), bool)


def mask_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Make the actions whose mask is False impossible.

    Args:
        logits: `[..., A]`.
        mask: bool `[..., A]`, True where an action is allowed, or None. A row without any allowed
            action is undefined: all its actions become equally likely.
    """
    if mask is None:
        return logits
    # The lowest finite number, not −inf: p·log p stays 0 and no gradient becomes NaN.
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


class Categorical:
    """One of A actions. `logits`: unnormalised log-probabilities `[..., A]`; latent `[...]`."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = F.log_softmax(logits, dim=-1)  # [..., A]

    def sample(self) -> Tensor:
        # argmax(log p + Gumbel noise), with −log(Exp(1)) as the Gumbel noise.
        noise = torch.empty_like(self.log_probs).exponential_().log_()
        return (self.log_probs - noise).argmax(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, latent: Tensor) -> Tensor:
        return self.log_probs.gather(-1, latent.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def probabilities(self) -> Tensor:
        """`[..., A]`."""
        return self.log_probs.exp()


class MultiCategorical:
    """K independent categorical actions.

    Args:
        logits: `[..., K, A]`, padded to the largest A with `mask_logits`; latent int64 `[..., K]`.
    """

    def __init__(self, logits: Tensor) -> None:
        self.parts = Categorical(logits)

    def sample(self) -> Tensor:
        return self.parts.sample()

    def mode(self) -> Tensor:
        return self.parts.mode()

    def log_prob(self, latent: Tensor) -> Tensor:
        return self.parts.log_prob(latent).sum(-1)

    def entropy(self) -> Tensor:
        return self.parts.entropy().sum(-1)

    def probabilities(self) -> Tensor:
        """`[..., K, A]`."""
        return self.parts.probabilities()


class Bernoulli:
    """A independent bits. `logits` = log-odds of a one, `[..., A]`; latent int64 `[..., A]`."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def sample(self) -> Tensor:
        return (torch.rand_like(self.logits) < self.logits.sigmoid()).long()

    def mode(self) -> Tensor:
        return (self.logits > 0).long()

    def log_prob(self, latent: Tensor) -> Tensor:
        target = latent.to(self.logits.dtype)
        return -F.binary_cross_entropy_with_logits(self.logits, target, reduction="none").sum(-1)

    def entropy(self) -> Tensor:
        return (F.softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)

    def probabilities(self) -> Tensor:
        """Probability of a one, `[..., A]`."""
        return self.logits.sigmoid()


class DiagonalGaussian:
    """Independent normals. `mean`, `log_std` `[..., A]`; latent float `[..., A]`."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def sample(self) -> Tensor:
        return torch.addcmul(self.mean, self.log_std.exp(), torch.randn_like(self.mean))

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, latent: Tensor) -> Tensor:
        z = (latent - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + HALF_LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + HALF_LOG_2PIE).expand_as(self.mean).sum(-1)


class SquashedGaussian(DiagonalGaussian):
    """tanh of a diagonal Gaussian, scaled to `[low, high]`; the latent is the value before tanh.

    Keeping the latent avoids atanh, which is inexact near the bounds. `log_prob` is the density of
    the action in the environment's units (Haarnoja et al. 2018, appendix C).

    Args:
        mean: `[..., A]`, before tanh.
        log_std: `[..., A]`, before tanh.
        log_scale: log of half the width of each bound, `[A]`.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, log_scale: Tensor) -> None:
        super().__init__(mean, log_std)
        self.log_scale = log_scale

    def log_prob(self, latent: Tensor) -> Tensor:
        # log(1 − tanh²u) = 2 (log 2 − u − softplus(−2u)), exact for large |u|.
        log_slope = 2.0 * (LOG_2 - latent - F.softplus(-2.0 * latent)) + self.log_scale
        return super().log_prob(latent) - log_slope.sum(-1)

    def entropy(self) -> Tensor:
        """A one-sample estimate −log π(u), u ~ π, reparameterised: no closed form exists."""
        return -self.log_prob(self.sample())


Distribution = Categorical | MultiCategorical | Bernoulli | DiagonalGaussian
