"""Building an optimizer, with errors that name the argument."""

import math
from collections.abc import Callable
from typing import Any

import torch

from rl_lightning.core.errors import ConfigurationError


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


def check_restored(optimizer: torch.optim.Optimizer) -> None:
    """Refuse to go on with what another kind of optimizer has left in a checkpoint.

    torch loads it without a word, and fails in the middle of the first update, or not at all.

    Raises:
        ConfigurationError: That names what is missing.
    """
    for group in optimizer.param_groups:
        missing = [name for name in optimizer.defaults if name not in group]
        if missing:
            known = ", ".join(name for name in group if name != "params")
            raise ConfigurationError(
                f"model.optimizer: {type(optimizer).__name__} has {', '.join(missing)}, but the "
                f"checkpoint was trained by another optimizer ({known}): go on with that one, or "
                "begin a new run"
            )
