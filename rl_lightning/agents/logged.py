"""What is logged of updates: means since the last time, on the axis of environment frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rl_lightning.agents.deprecated import former_log_training, former_should_log
from rl_lightning.agents.finite import FiniteModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.loss import Loss
from rl_lightning.core.protocols import Measuring
from rl_lightning.trainer import is_ever_logged, is_logged, log_again, log_now

MOST_NOTED = 256  # metrics that are kept before they are summed up


class LoggedModule(FiniteModule):
    """A module whose updates leave metrics, which are logged now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._due = False  # whether the trainer writes what the present update leaves
        self._asked = False  # whether our own `training_step` asks for a `loss`
        self._told: Mapping[str, Any] | None = None
        self._noted: list[Mapping[str, Any]] = []  # metrics of updates, and of earlier ones sums
        self._sums: dict[str, tuple[Any, int]] = {}

    should_log = property(former_should_log)
    log_training = former_log_training

    def gauges(self) -> Mapping[str, Tensor | float]:
        """What is logged as it stands, beside the metrics of losses, which are means."""
        return {}

    def is_due(self) -> bool:
        """Whether the trainer writes what the present update leaves."""
        return self._due if self._asked else is_logged(self.trainer)

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """Metrics of a `loss` that does not return them, or of a `training_step` of its own."""
        if self._asked:
            self._told = metrics
        else:
            self.log_losses(metrics)

    def take_told(self) -> Mapping[str, Any] | None:
        """What `tell` was told since the last time."""
        told, self._told = self._told, None
        return told

    def note(self, loss: Loss, more: bool) -> None:
        """Keep an update's metrics, and where it is due log their means since the last time.

        Args:
            loss: Of the update.
            more: Whether the trainer's step goes on.
        """
        if is_ever_logged(self.trainer):
            self._noted.append(loss.metrics)
            if len(self._noted) >= MOST_NOTED:
                self._sum_up()
        if self._due:
            self.log_losses(self.mean_metrics(), more)

    def _sum_up(self) -> None:
        noted: dict[str, list[Any]] = {}
        for metrics in self._noted:
            for name, value in metrics.items():
                noted.setdefault(name, []).append(value)
        self._noted = []
        for name, values in noted.items():
            total, count = self._sums.get(name, (0.0, 0))
            total = total + _sum(name, values)
            self._sums[name] = total, count + len(values)

    def mean_metrics(self, keep: bool = False) -> dict[str, Any]:
        """Means since the last time that they were asked for, and not to be kept."""
        self._sum_up()
        sums = self._sums
        if not keep:
            self._sums = {}
        return {name: total / count for name, (total, count) in sums.items()}

    def log_losses(self, metrics: Mapping[str, Any], more: bool = False) -> None:
        """Log losses beside the clock's metrics, on the axis of environment frames."""
        everything = {**metrics, **self.gauges(), **self._measure()}
        if self.trainer.optimizers:
            everything["optim/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        trainer: Any = self.trainer
        for callback in trainer.callbacks:
            if isinstance(callback, Measuring):
                everything.update(callback.measures())
        # "step" in the same call is what makes frames the x axis of TensorBoard.
        everything["step"] = float(self.frames)
        log_again(self, everything)
        if more:  # the trainer writes what stands there at its step's end
            log_now(self.trainer, everything)

    @property
    def has_notes(self) -> bool:
        """Whether there was an update since metrics were logged."""
        return bool(self._noted or self._sums)


def _sum(name: str, values: Sequence[Any]) -> Any:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if any(value.numel() != 1 for value in tensors):
        raise ConfigurationError(
            f"the metric {name!r} of a loss has {max(v.numel() for v in tensors)} elements; give "
            "one number, such as its mean"
        )
    if len(tensors) < len(values):  # numbers, or now this and now that
        return sum(value.reshape(()) if isinstance(value, Tensor) else value for value in values)
    return torch.stack([value.reshape(()) for value in tensors]).sum()
