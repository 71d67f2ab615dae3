"""What this library knows of Lightning's insides: all its private names are used here alone.

Lightning 2.6 is what it was written for (`pyproject.toml` bounds the version), and
`tests/test_trainer.py` is the contract: it fails where an insider has moved.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor

# A classmethod that is refused on an instance, as `load_from_checkpoint` must be.
restricted_classmethod = _restricted_classmethod

HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")

# What else a callback or an agent may do around each update, and miss where many are one step.
STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad")
AGENT_HOOKS = (
    "training_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    *STEP_HOOKS,
)

# Attributes of a LightningModule that belong to a run, and what they are outside of any.
NO_RUN = {"_trainer": None, "_fabric": None, "_fabric_optimizers": [], "_compiler_ctx": None}


# --- hyper-parameters -----------------------------------------------------------------------------


def built_by_command_line() -> bool:
    """Whether LightningCLI is building an object just now, and knows its arguments."""
    return hparams_mixin._given_hyperparameters.get() is not None


def set_hyperparameters(module: Any, arguments: dict[str, Any]) -> None:
    """Give a LightningModule or LightningDataModule the hyper-parameters of its checkpoints."""
    module._set_hparams(arguments)
    module._hparams_initial = copy.copy(module._hparams)


# --- the clock ------------------------------------------------------------------------------------


def finished_epochs(trainer: Any) -> int:
    """Epochs that are over, also right after a checkpoint was loaded."""
    return trainer.fit_loop.epoch_progress.current.processed


def max_epochs(trainer: Any) -> int | None:
    """Where training ends; None or −1 for nowhere."""
    return trainer.fit_loop.max_epochs


def set_max_epochs(trainer: Any, epochs: int | None) -> None:
    """Change, before or while training runs, where it ends."""
    trainer.fit_loop.max_epochs = epochs


def is_logged(trainer: Any, index: int = 0) -> bool:
    """Whether the trainer writes what an update logs, of a training step the one at `index`."""
    every, loop = trainer.log_every_n_steps, trainer.fit_loop.epoch_loop
    if every <= 0 or (loop._batches_that_stepped + 1 + index) % every:
        return False
    return trainer.accumulate_grad_batches == 1 or not loop._should_accumulate()


def is_ever_logged(trainer: Any) -> bool:
    """Whether the trainer writes anything that updates log."""
    return trainer.log_every_n_steps > 0


def log_again(agent: L.LightningModule, metrics: Mapping[str, Any]) -> None:
    """`log_dict` of a training step, quickly where it has logged the same names before.

    Lightning moves each metric to the device of what is logged, whether it is there or not, by
    looking into all that the metric consists of: a millisecond each.

    Args:
        agent: In its training step.
        metrics: Scalars, and all that is logged.
    """
    trainer, hook = agent.trainer, agent._current_fx_name
    results: Any = trainer._results
    if results is None or hook is None or trainer._logger_connector.should_reset_tensors(hook):
        return agent.log_dict(metrics)
    values: dict[str, Tensor] = {}
    for name, given in metrics.items():
        known, value = results.get(f"{hook}.{name}"), given
        if known is None:
            return agent.log_dict(metrics)
        if not isinstance(value, Tensor):
            kind = torch.get_default_dtype()
            value = torch.tensor(value, device=known.value.device, dtype=kind)
        if value.numel() != 1 or known.value.device != value.device:
            return agent.log_dict(metrics)
        values[f"{hook}.{name}"] = value.detach().squeeze()
    for key, value in values.items():
        results.update_metrics(key, value, 1)
    return None


def log_now(trainer: Any, metrics: Mapping[str, Any]) -> None:
    """Write scalars to the loggers, in the middle of a training step, at their `step`."""
    trainer._logger_connector.log_metrics(dict(metrics))


def count_updates(trainer: Any, updates: int) -> None:
    """Tell the trainer, at the end of a training step, that it was so many updates.

    Its clock of what to log when then goes on in updates, as where each is a step of its own.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped += updates - 1


def share_count(trainer: Any) -> None:
    """Go on counting optimizer steps, which Lightning does in two places, in the other one too."""
    loop = trainer.fit_loop.epoch_loop
    automatic = loop.automatic_optimization.optim_progress.optimizer.step.total
    manual = loop.manual_optimization.optim_step_progress.total
    for count in (automatic, manual):
        count.ready = count.completed = max(automatic.completed, manual.completed)


def count_update(trainer: Any) -> None:
    """Count a step where no optimizer makes one: without a new step there is no new checkpoint."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


# --- updates --------------------------------------------------------------------------------------


def single_updates(
    trainer: Any, agent: L.LightningModule, base: type[L.LightningModule]
) -> str | None:
    """What needs each update to be a training step of its own; None if nothing does.

    Args:
        trainer: Its arguments and callbacks are looked at.
        agent: Likewise its hooks,
        base: as far as they differ from this class's.
    """
    for callback in trainer.callbacks:
        if _needs_single_updates(callback):
            return f"the callback {type(callback).__name__}"
    own = [name for name in AGENT_HOOKS if _differs(agent, base, name)]
    interval = trainer.val_check_interval
    asked = {
        "trainer.fast_dev_run": trainer.fast_dev_run,
        "trainer.max_steps": trainer.max_steps != -1,
        "trainer.min_steps": trainer.fit_loop.min_steps is not None,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
        "trainer.val_check_interval": isinstance(interval, int | float) and interval != 1.0,
        "trainer.profiler": type(trainer.profiler) is not PassThroughProfiler,
        "trainer.strategy": not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy),
        "a learning rate scheduler": bool(trainer.lr_scheduler_configs),
        "an optimizer that needs a closure": any(map(_needs_closure, trainer.optimizers)),
        f"{type(agent).__name__}.{own[0]}" if own else "": bool(own),
    }
    return next((name for name, wanted in asked.items() if wanted), None)


def _needs_single_updates(callback: Any) -> bool:
    if getattr(callback, "takes_runs", False):
        return False
    if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
        return True
    if isinstance(callback, StochasticWeightAveraging | GradientAccumulationScheduler):
        return True
    heard = {name for name in STEP_HOOKS if _differs(callback, Callback, name)}
    known: set[str] = set()
    for kind in (ProgressBar, Timer, ModelCheckpoint):  # these look at a step's end, not at updates
        if isinstance(callback, kind):
            known = {name for name in heard if not _is_own(callback, name)}
    if isinstance(callback, LearningRateMonitor) and callback.logging_interval == "epoch":
        known = {"on_train_batch_start"}
    return bool(heard - known)


def _is_own(callback: Any, hook: str) -> bool:
    """Whether a callback's hook is neither Lightning's nor this library's."""
    module = getattr(getattr(callback, hook), "__module__", "")
    return not module.startswith(("lightning.", "rl_lightning."))


def _needs_closure(optimizer: Any) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def take_step(optimizer: Any, step: Callable[[], Any]) -> None:
    """A step of a `LightningOptimizer` that is counted, and of which nobody is told.

    Call it only where `is_plain` says that nobody listens.

    Args:
        optimizer: Whose step it is.
        step: Takes it.
    """
    optimizer._on_before_step()
    step()
    optimizer._on_after_step()


def is_plain(trainer: Any, agent: L.LightningModule, base: type[L.LightningModule]) -> bool:
    """Whether Lightning's way from the loss to the step has no one to call and nothing to do.

    On that way, it asks every callback three times, and wraps the step in closures and profiler
    records: for a small network a tenth of the whole. On one device, in full precision, unprofiled,
    and with nobody who listens, all of it comes to `loss.backward()` and `optimizer.step()`.

    Args:
        trainer: Its strategy, precision, profiler and callbacks are looked at.
        agent: Likewise its hooks,
        base: as far as they differ from this class's.
    """
    heard = any(
        _differs(callback, Callback, hook) for callback in trainer.callbacks for hook in HOOKS
    )
    own = any(_differs(agent, base, name) for name in (*HOOKS, "backward", "manual_backward"))
    return (
        not heard
        and not own
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and type(trainer.profiler) is PassThroughProfiler
    )


def _differs(thing: object, base: type, method: str) -> bool:
    """Whether a method is another than the base class's: a subclass's, or one set on `thing`."""
    return getattr(getattr(thing, method), "__func__", None) is not getattr(base, method)


def updated_attribute(finder: Any) -> tuple[bool, str]:
    """Whether a `LearningRateFinder` sets what it finds, and as which attribute."""
    return finder._update_attr, finder._attr_name


# --- checkpoints ----------------------------------------------------------------------------------


def wrapped_ios(outer: Any) -> Iterator[Any]:
    """Plugins that only say when files are written (`AsyncCheckpointIO`), from the outside in."""
    while isinstance(outer, _WrappingCheckpointIO):
        yield outer
        outer = outer._checkpoint_io


def written_by(wrapper: Any) -> Any:
    """What writes the files of such a plugin, or the next one inside it."""
    return wrapper._checkpoint_io


def write_by(wrapper: Any, files: Any) -> None:
    """Have `files` write the files of such a plugin."""
    wrapper._checkpoint_io = files
