"""Building an optimizer, with errors that name the argument."""

import math
from collections.abc import Callable
from typing import Any

import torch

from rl_lightning.errors import ConfigurationError


def make_optimizer(build: Callable[[Any], torch.optim.Optimizer], groups: Any) -> Any:
    """The optimizer of parameter groups.

    torch.optim refuses most wrong numbers, but not all of them in every optimizer, and its message
    does not say whose they are.

    Raises:
        ConfigurationError: If the optimizer refuses its arguments, or one is NaN or infinite.
    """
    try:
        optimizer = build(groups)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"model.optimizer: {error}") from error
    for group in optimizer.param_groups:
        for name, value in group.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
                raise ConfigurationError(f"model.optimizer: {name} must be finite, not {value}")
            if name == "lr" and isinstance(value, int | float) and value < 0:
                raise ConfigurationError(f"model.optimizer: lr must be at least 0, not {value}")
    return optimizer
