"""Action spaces as float32 sees them."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor


def float32_bounds(space: gym.spaces.Box) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds, shaped as the space; infinite where float32 cannot hold them."""
    with np.errstate(over="ignore"):
        low, high = (b.astype(np.float32) for b in (space.low, space.high))
    return torch.from_numpy(low), torch.from_numpy(high)


def has_finite_range(space: gym.spaces.Box) -> bool:
    """Whether float32 can hold the distance between all bounds; of ±3.4e38 it cannot."""
    low, high = float32_bounds(space)
    return bool((high - low).isfinite().all())
