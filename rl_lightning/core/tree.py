"""The few operations on stored observations: a tensor, or a nested mapping of tensors."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.types import Stored


def rows(x: Stored, index: np.ndarray) -> Stored:
    """Some rows of a stored batch: `[B, ...]` → `[len(index), ...]`."""
    if isinstance(x, Tensor):
        return x[torch.from_numpy(index)]
    return {key: rows(value, index) for key, value in x.items()}


def clone(x: Stored) -> Stored:
    """A copy that no environment's buffer stands behind."""
    if isinstance(x, Tensor):
        return x.clone()
    return {key: clone(value) for key, value in x.items()}


def concatenate(parts: Sequence[Stored]) -> Stored:
    """Stack stored batches along their rows."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))  # type: ignore[arg-type]
    return {key: concatenate([part[key] for part in parts]) for key in parts[0]}  # type: ignore


def to_device(x: Stored, device: torch.device) -> Stored:
    """The stored batch on a device; itself if it is there already."""
    if isinstance(x, Tensor):
        return x if x.device == device else x.to(device)
    if not isinstance(x, Mapping):
        raise TypeError(
            f"an encoder's preprocess must return a tensor or a mapping of tensors, not {type(x)}"
        )
    return {key: to_device(value, device) for key, value in x.items()}


def is_finite(x: Stored) -> bool:
    """Whether a stored batch holds neither NaN nor infinity."""
    if isinstance(x, Tensor):
        return not x.is_floating_point() or bool(x.isfinite().all())
    return all(map(is_finite, x.values()))


def first_row(x: Stored) -> Stored:
    """`[B, ...]` → `[1, ...]`."""
    if isinstance(x, Tensor):
        return x[:1]
    return {key: first_row(value) for key, value in x.items()}


def row_count(x: Stored) -> int:
    """B of a stored batch `[B, ...]`."""
    while not isinstance(x, Tensor):
        x = next(iter(x.values()))
    return x.shape[0]
