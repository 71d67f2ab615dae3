"""Optimizers: built with errors that name the argument, and paced by the clock of frames."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch

from rl_lightning.agents.groups import group_parameters
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.schedules import Schedule, factor
from rl_lightning.nn.insides import unscale_before_step


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


class OptimizedModule(L.LightningModule):
    """A module whose learning rates follow the clock of frames."""

    encoder: Any
    optimizer: Any
    encoder_lr: float | None
    lr_schedule: Schedule
    _rates_set: bool

    def tick(
        self, frames: int, progress: float, measure: Callable[[], Mapping[str, float]]
    ) -> None:
        """Told by the data module before the updates that new frames pay for.

        Args:
            frames: Environment frames so far, of all ranks.
            progress: Share of the frame budget, in whole epochs, used up before that rollout, in
                [0, 1].
            measure: Gives the statistics of data collection, to be logged with losses.
        """
        # Not one by one: each would have `nn.Module` look for parameters of that name.
        self.__dict__.update(frames=frames, progress=progress, _measure=measure)
        if self.lr_schedule == "constant" and self._rates_set:
            return
        self._rates_set = True
        if not self.trainer.optimizers:
            return
        if self.lr_schedule == "constant" and self.trainer.lr_scheduler_configs:
            return  # a search for a learning rate is trying out others
        scale = factor(self.lr_schedule, progress)
        for group, rate in zip(self.trainer.optimizers[0].param_groups, self._rates, strict=True):
            group["lr"] = rate * scale

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in groups of one learning rate each; without `lr`: the optimizer's."""
        return group_parameters(self, self.encoder, self.encoder_lr)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._rates_set = False
        groups: Any = self.parameter_groups()
        if len(groups) == 1 and "lr" not in groups[0]:
            groups = groups[0]["params"]
        optimizer = make_optimizer(self.optimizer, groups)
        # Not in the groups, where a checkpoint's would replace them: the configuration decides.
        self._rates = [group["lr"] for group in optimizer.param_groups]
        # A fused optimizer offers to unscale mixed-precision gradients inside its step, which is
        # too late for clipping them; Lightning then refuses to clip. Unscale before, as others do.
        unscale_before_step(optimizer)
        return optimizer
