"""Actions on their way to an environment: elements of its action space, to the last bit."""

from collections.abc import Callable
from functools import partial

import gymnasium as gym
import numpy as np
from torch import Tensor


def action_writer(space: gym.Space) -> Callable[[Tensor], np.ndarray]:
    """What turns a policy's actions into what environments of this action space accept.

    A policy computes in float32 and int64. Rounded to the space's dtype, an action may lie outside
    its bounds by a hair (float32's 0.1 is more than float64's), and Gymnasium's `contains` asks for
    the dtype too. So actions get the space's dtype, then its bounds. What is stored for learning is
    not touched: the result is a copy, which an environment may even change in place.

    Args:
        space: Action space of one environment.

    Returns:
        A function of actions `[B, ...]` that gives an array `[B, ...]`, whose rows the space
        contains, NaN aside.
    """
    dtype = np.dtype(space.dtype)
    if isinstance(space, gym.spaces.Box) and (
        space.bounded_below.any() or space.bounded_above.any()
    ):
        return partial(_within, dtype, space.low, space.high)
    return partial(_cast, dtype)


def _cast(dtype: np.dtype, action: Tensor) -> np.ndarray:
    return action.cpu().numpy().astype(dtype)


def _within(dtype: np.dtype, low: np.ndarray, high: np.ndarray, action: Tensor) -> np.ndarray:
    out = action.cpu().numpy().astype(dtype)
    np.maximum(out, low, out=out)
    return np.minimum(out, high, out=out)
