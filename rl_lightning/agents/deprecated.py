"""How agents of the version before told the trainer of their loss; this goes with the next one."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_lightning.core.errors import FormerWarning
from rl_lightning.core.loss import Loss

_told: set[tuple[type, str]] = set()  # a loss is asked for thousands of times


def former_loss(agent: Any, value: Tensor) -> Loss:
    """A loss that is its value alone, with what the agent has set beside it."""
    _tell(type(agent), "loss", "returned a tensor: return rl_lightning.Loss(value, metrics={...})")
    return Loss(value, agent.take_told(), row_errors=agent.__dict__.pop("row_errors", None))


def former_should_log(agent: Any) -> bool:
    """Whether the trainer will write what this training step logs."""
    _tell(type(agent), "should_log", "is not needed any more: return Loss(value, metrics={...})")
    return agent.is_due()


def former_log_training(agent: Any, metrics: Mapping[str, Any]) -> None:
    """Log losses."""
    _tell(type(agent), "log_training", "is not needed any more: return Loss(value, metrics={...})")
    agent.tell(dict(metrics))


def _tell(cls: type, name: str, what: str) -> None:
    if (cls, name) in _told:
        return
    _told.add((cls, name))
    warnings.warn(f"{cls.__name__}.{name} {what}", FormerWarning, stacklevel=4)
