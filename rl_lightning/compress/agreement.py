"""How often two policies do the same: what a compressed one must show before it is used."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, RunError, check_range, whole


class Agreement(NamedTuple):
    """Of two policies on the same observations.

    Attributes:
        share: Of observations in which both act alike.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        count: Observations, N.
        difference: Mean |after − before| of all numbers that both gave and that are finite (logits,
            Q-values, continuous actions); None of chosen actions.
    """

    share: float
    low: float
    high: float
    count: int
    difference: float | None

    def __str__(self) -> str:
        mean = "" if self.difference is None else f", mean difference {self.difference:.3g}"
        return (
            f"{self.share:.1%} of {self.count:,} actions agree (95 % interval {self.low:.1%} to "
            f"{self.high:.1%}){mean}"
        )


def agreement(
    before: Callable[[Any], Tensor | np.ndarray],
    after: Callable[[Any], Tensor | np.ndarray],
    observations: Any,
    tolerance: float | None = None,
    batch_size: int = 256,
) -> Agreement:
    """Share of observations in which two policies choose the same greedy action.

    What the policies return, tensors or arrays (`Agent.predict`), says what is compared, for n
    observations:

    - scores, floating `[n, A]` (logits, Q-values; −∞ of what is not allowed): the actions are their
      argmax, the first of equals;
    - chosen actions, integer or bool `[n]` or, of several at once, `[n, K]`: all K must be equal;
    - with `tolerance`, continuous actions `[n, ...]`: every coordinate must be as near as that.

    Nothing is differentiated. Modules are called as they are: put them into eval mode first.

    Args:
        before: The policy as it was.
        after: The policy it became.
        observations: N of them, of whatever gives slices: a tensor, a TensorDict, an array, a list
            of texts, or a nested mapping of these.
        tolerance: Largest |difference| of continuous actions that counts as the same; None: the
            actions are discrete.
        batch_size: Observations given to the policies at once.

    Raises:
        ConfigurationError: If there are no observations, if an argument is out of range, or if the
            two return what cannot be compared.
        RunError: If a policy returns NaN.
    """
    check_range("tolerance", tolerance, 0)
    batch_size = whole("batch_size", batch_size, 1)
    count = _count(observations)
    if not count:
        raise ConfigurationError("observations are empty: give some that the policies really meet")
    equal, total, numbers = 0, 0.0, 0
    for start in range(0, count, batch_size):
        batch = _rows(observations, slice(start, start + batch_size))
        with torch.no_grad():
            pair = _tensor(before(batch)), _tensor(after(batch))
        _check_pair(*pair, min(batch_size, count - start), start, tolerance)
        one, other = pair[0], pair[1].to(pair[0].device)
        equal += int(agreeing(one, other, tolerance).sum())
        if one.is_floating_point():
            both = one.isfinite() & other.isfinite()
            total += float((one.double() - other.double())[both].abs().sum())
            numbers += int(both.sum())
    low, high = wilson(equal, count)
    return Agreement(equal / count, low, high, count, total / numbers if numbers else None)


def agreeing(before: Tensor, after: Tensor, tolerance: float | None = None) -> Tensor:
    """Where two policies act alike, see `agreement`.

    Args:
        before: Scores `[N, A]`, chosen actions `[N]` or `[N, K]`, or, with `tolerance`, continuous
            actions `[N, ...]`.
        after: The other's.
        tolerance: Largest difference of continuous actions that counts as the same.

    Returns:
        Bool, `[N]`.
    """
    if tolerance is not None:
        same = (before - after).abs() <= tolerance
    elif before.is_floating_point():
        same = before.argmax(-1) == after.argmax(-1)
    else:
        same = before == after
    return same.flatten(1).all(1) if same.ndim > 1 else same


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share p = k / n (Wilson 1927).

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). Unlike the normal interval it is right
    where p is near 1, and not of width 0 at 1.

    Args:
        successes: k.
        count: n, at least 1.
        z: Standard normal quantile; 1.96 for 95 %.
    """
    share = successes / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def _count(observations: Any) -> int:
    if isinstance(observations, Mapping) and not isinstance(observations, TensorDictBase):
        return min((_count(value) for value in observations.values()), default=0)
    return len(observations)


def _tensor(actions: Any) -> Any:
    """Actions as `Agent.predict` gives them, as a tensor; anything else as it is."""
    return torch.from_numpy(actions) if isinstance(actions, np.ndarray) else actions


def _rows(observations: Any, rows: slice) -> Any:
    if isinstance(observations, Mapping) and not isinstance(observations, TensorDictBase):
        return {key: _rows(value, rows) for key, value in observations.items()}
    return observations[rows]


def _check_pair(one: Any, other: Any, count: int, start: int, tolerance: float | None) -> None:
    for name, value in (("before", one), ("after", other)):
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"{name} must return a tensor, not a {type(value).__name__}")
        if value.ndim == 0 or len(value) != count:
            raise ConfigurationError(
                f"{name} returned shape {tuple(value.shape)} for {count} observations"
            )
        if tolerance is None and value.is_floating_point() and value.ndim != 2:
            raise ConfigurationError(
                f"{name} returned floats of shape {tuple(value.shape)}: scores must be [N, actions]"
                "; give a tolerance for continuous actions"
            )
        if tolerance is not None and not value.is_floating_point():
            raise ConfigurationError(
                f"tolerance={tolerance} is for continuous actions, and {name} returned "
                f"{value.dtype}: leave it out"
            )
        if bool(value.isnan().any()):
            row = int(value.isnan().reshape(count, -1).any(1).nonzero()[0])
            raise RunError(f"{name} returned NaN, first for observation {start + row}")
    if one.shape != other.shape or one.is_floating_point() != other.is_floating_point():
        raise ConfigurationError(
            f"before returned {one.dtype} {tuple(one.shape)} and after {other.dtype} "
            f"{tuple(other.shape)}: both must give the same kind of action"
        )
