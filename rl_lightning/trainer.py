"""What this library knows of Lightning's insides: all its private names are used here alone.

Lightning 2.6 is what it was written for (`pyproject.toml` bounds the version), and
`tests/test_trainer.py` is the contract: it fails where an insider has moved.
"""

import copy
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod

# A classmethod that is refused on an instance, as `load_from_checkpoint` must be.
restricted_classmethod = _restricted_classmethod

HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")

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


def is_logged(trainer: Any) -> bool:
    """Whether the trainer will write what the present training step logs."""
    every = trainer.log_every_n_steps
    return every > 0 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0


def count_update(trainer: Any) -> None:
    """Count a step where no optimizer makes one: without a new step there is no new checkpoint."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


# --- updates --------------------------------------------------------------------------------------


def take_step(optimizer: Any) -> None:
    """A step of a `LightningOptimizer` that is counted, and of which nobody is told.

    Call it only where `is_plain` says that nobody listens.
    """
    optimizer._on_before_step()
    optimizer.optimizer.step()
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
