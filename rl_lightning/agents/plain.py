"""Whether an update is nothing but arithmetic."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


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
        differs(callback, Callback, hook) for callback in trainer.callbacks for hook in HOOKS
    )
    own = any(differs(agent, base, name) for name in (*HOOKS, "backward", "manual_backward"))
    return (
        not heard
        and not own
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and type(trainer.profiler) is PassThroughProfiler
    )


def differs(thing: object, base: type, method: str) -> bool:
    """Whether a method is another than the base class's: a subclass's, or one set on `thing`."""
    return getattr(getattr(thing, method), "__func__", None) is not getattr(base, method)
