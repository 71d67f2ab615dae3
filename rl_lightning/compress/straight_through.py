"""Rounding that training sees through."""

from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.compress.rounding import rounded


class StraightThrough(nn.Module):
    """w → ŵ, whose gradient is taken for w's (Bengio et al. 2013, section 4).

    A parametrization for `torch.nn.utils.parametrize`.

    Args:
        bits: 1 to 8, or 16, see `rl_lightning.compress.rounding`.
        group_size: Inputs that share a scale; None: a whole row.
    """

    def __init__(self, bits: int, group_size: int | None = None) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size

    def forward(self, weight: Tensor) -> Tensor:
        """`[R, ...]` → `[R, ...]`."""
        return _Rounding.apply(weight, self.bits, self.group_size)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"bits={self.bits}, group_size={self.group_size}"


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, group_size: int | None) -> Tensor:  # type: ignore[override]
        return rounded(weight, bits, group_size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None
