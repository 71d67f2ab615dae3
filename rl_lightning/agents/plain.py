"""Whether an update is nothing but arithmetic."""

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import Optimizer

HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


def is_plain(trainer: L.Trainer, agent: L.LightningModule, base: type[L.LightningModule]) -> bool:
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
        getattr(type(callback), hook) is not getattr(Callback, hook)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for hook in HOOKS
    )
    own = any(
        getattr(type(agent), hook) is not getattr(base, hook)
        for hook in (*HOOKS, "backward", "manual_backward")
    )
    plain = (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and all(isinstance(optimizer, Optimizer) for optimizer in trainer.optimizers)
    )
    return plain and not heard and not own
