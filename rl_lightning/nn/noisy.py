"""Layers whose weights carry learned noise (Fortunato et al. 2018)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """y = (μ_w + σ_w ⊙ f(ε_out) f(ε_in)ᵀ) x + μ_b + σ_b ⊙ f(ε_out), f(x) = sign(x) √|x|.

    Factorised Gaussian noise (eq. 10 and 11). The noise stays until `resample` draws another, or
    `silence` sets it to zero, which leaves the plain layer μ.

    Args:
        in_dim: Input features.
        out_dim: Outputs.
        sigma: σ₀: initial σ is σ₀ / √in_dim.
    """

    noise_in: Tensor
    noise_out: Tensor

    def __init__(self, in_dim: int, out_dim: int, sigma: float = 0.5) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_dim, in_dim), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_dim,), sigma * bound))
        self.register_buffer("noise_in", torch.zeros(in_dim), persistent=False)
        self.register_buffer("noise_out", torch.zeros(out_dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_dim]` → `[N, out_dim]`."""
        weight = torch.addcmul(
            self.weight, self.weight_sigma, torch.outer(self.noise_out, self.noise_in)
        )
        return F.linear(x, weight, torch.addcmul(self.bias, self.bias_sigma, self.noise_out))

    def resample(self) -> None:
        """Draw new noise."""
        for noise in (self.noise_in, self.noise_out):
            x = torch.randn_like(noise)
            noise.copy_(x.sign() * x.abs().sqrt())

    def silence(self) -> None:
        """Remove the noise."""
        self.noise_in.zero_()
        self.noise_out.zero_()


def resample_noise(module: nn.Module) -> None:
    """Draw new noise in all noisy layers of a network."""
    for child in module.modules():
        if isinstance(child, NoisyLinear):
            child.resample()


def silence_noise(module: nn.Module) -> None:
    """Remove the noise of all noisy layers of a network."""
    for child in module.modules():
        if isinstance(child, NoisyLinear):
            child.silence()
