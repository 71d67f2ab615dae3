"""Schedules: a factor in [0, 1] as a function of training progress in [0, 1]."""

import math
from typing import Literal

from rl_lightning.core.errors import ConfigurationError

Schedule = Literal["constant", "linear", "cosine"]


def anneal(start: float, end: float, fraction: float, progress: float) -> float:
    """From `start` to `end`, linearly over the first `fraction` of training, `end` afterwards.

    Args:
        start: Value at progress 0.
        end: Value from progress `fraction` on.
        fraction: In [0, 1]; 0 is `end` from the beginning.
        progress: Share of the frame budget that is used up.
    """
    share = 1.0 if progress >= fraction else max(progress, 0.0) / fraction
    return start + (end - start) * share


def factor(schedule: Schedule, progress: float) -> float:
    """The factor a scheduled value is multiplied by.

    Args:
        schedule: `constant` (always 1), `linear` (1 → 0) or `cosine` (1 → 0, half a period).
        progress: Share of the frame budget that is used up; values outside [0, 1] are clamped.
    """
    progress = min(max(progress, 0.0), 1.0)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case _:
            raise ConfigurationError(
                f"schedule must be constant, linear or cosine, not {schedule!r}"
            )
