"""The trainer's arguments that it accepts, and that mean nothing to training, or something else."""

import math
from typing import Any

from rl_lightning.core.errors import ConfigurationError


def check_trainer(trainer: Any, budget: str) -> None:
    """Refuse arguments with which training would fail later, or do what nobody meant.

    Args:
        trainer: The trainer.
        budget: The data module's budget, in words.

    Raises:
        ConfigurationError: That names the argument, its value, and what would be right.
    """
    if str(trainer.precision) in ("16-true", "bf16-true", "64-true"):
        raise ConfigurationError(
            f"trainer.precision: {trainer.precision} would round observations, returns and "
            "statistics too; use 32-true or a mixed precision such as bf16-mixed (a "
            "language model's own dtype is LLMEncoder's dtype)"
        )
    name, limit = "limit_train_batches", trainer.limit_train_batches
    if trainer.overfit_batches:
        name, limit = "overfit_batches", trainer.overfit_batches
    # The int 1 is one batch.
    whole = name != "overfit_batches" and (limit == 0 or (type(limit) is float and limit == 1.0))
    if not trainer.fast_dev_run and not whole:
        raise ConfigurationError(
            f"trainer.{name}: {limit} would throw away what an epoch was planned for; leave it "
            f"out, and make {budget.partition('=')[0]} smaller, or epochs shorter"
        )
    clip = trainer.gradient_clip_val
    if clip is not None and not (clip >= 0 and math.isfinite(clip)):
        raise ConfigurationError(
            f"trainer.gradient_clip_val: {clip} is no largest norm; give a positive number, or "
            "leave it out for no clipping"
        )
    every = trainer.check_val_every_n_epoch
    if every is not None and every < 1:
        raise ConfigurationError(
            f"trainer.check_val_every_n_epoch: {every} must be at least 1, which validates after "
            "every epoch; trainer.limit_val_batches: 0 never validates"
        )
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and not interval > 0:
        raise ConfigurationError(
            f"trainer.val_check_interval: {interval} must be positive; trainer.limit_val_batches: "
            "0 never validates"
        )
    least = {"accumulate_grad_batches": 1, "log_every_n_steps": 0, "num_sanity_val_steps": -1}
    for name, low in least.items():
        value = getattr(trainer, name)
        if not value >= low:
            raise ConfigurationError(f"trainer.{name} must be at least {low}, not {value}")


def trains_nothing(trainer: Any) -> str | None:
    """Which of the trainer's arguments keeps it from training at all, if one does."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            return f"trainer.{name} is 0"
    return None
