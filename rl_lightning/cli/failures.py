"""What ended a run, in one sentence, where it is no defect of the library."""

import ast
import re

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from rl_lightning.core.errors import ConfigurationError, RunError, nearest

# What the backends of torch.distributed say when the other side is gone.
_DISCONNECTED = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "Connection was likely closed",
    "Timed out waiting",
    "remote process exited",
    "wait timeout after",
)
_NO_MEMORY = ("can't allocate memory", "out of memory", "Invalid buffer size", "array is too big")


def explain_failure(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit status of an exception; None for one that needs its traceback."""
    message = str(error)
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    tells = isinstance(error, RuntimeError | ValueError)  # of torch's and NumPy's allocators
    if memory or (tells and any(mark in message for mark in _NO_MEMORY)):
        return (
            f"there is not enough memory ({' '.join(message.split())[:160]}); make data.num_envs, "
            "data.rollout_steps, data.batch_size or the network smaller",
            1,
        )
    if isinstance(error, ConfigurationError):
        return message, 2
    if isinstance(error, RunError):
        return message, 1
    if isinstance(error, OmegaConfBaseException):
        return _interpolation(error), 2
    if monitored := _monitor(message):
        return monitored, 2
    if isinstance(error, MisconfigurationException):
        return message + _way_out(message), 2
    if isinstance(error, KeyError) and "checkpoint contains only the model" in message:
        return "ckpt_path: the checkpoint holds weights only, with which training cannot go on", 2
    unfit = ("loading state_dict", "loaded state dict")  # of modules, of optimizers
    if isinstance(error, RuntimeError | ValueError) and any(mark in message for mark in unfit):
        return f"the checkpoint does not fit this configuration: {message}", 2
    distributed = isinstance(error, RuntimeError) and dist.is_available() and dist.is_initialized()
    if distributed and any(mark in message for mark in _DISCONNECTED):
        return (
            f"rank {dist.get_rank()} stops, because another rank is gone: what ended it stands in "
            "its own output (nothing there: it was killed, maybe for want of memory)",
            1,
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", 1
    return None


def _interpolation(error: OmegaConfBaseException) -> str:
    """An interpolation `${…}` that leads nowhere, by the argument it stands for."""
    where = re.sub(r"^(fit|validate|test|predict)\.", "", str(error.full_key or ""))
    where = where.replace(".init_args", "") or "config"
    reason = str(error).partition("\n")[0]
    reason = re.sub(
        r"Interpolation key '\.*([\w.]+)' not found( \(resolved to .*\))?",
        r"there is no \1",
        reason,
    )
    return f"{where}: the interpolation ${{…}} cannot be resolved: {reason}"


def _monitor(message: str) -> str | None:
    """A callback's or scheduler's metric that is never logged; what there is, nearest first."""
    for pattern, who in (
        (r"Early stopping conditioned on metric `([^`]*)` which is not available.*: (.*)",
         "EarlyStopping"),
        (r"`ModelCheckpoint\(monitor='([^']*)'\)` could not find .* metrics: (\[.*?\])",
         "checkpoint.monitor"),
        (r"ReduceLROnPlateau conditioned on metric ([^ ]*) which is not available.*: (\[.*?\])",
         "ReduceLROnPlateau"),
    ):  # fmt: skip
        found = re.search(pattern, message, re.DOTALL)
        if found:
            listed = found[2].strip()
            known = (
                ast.literal_eval(listed)
                if listed.startswith("[")
                else re.findall(r"`(.+?)`", listed)
            )
            names = nearest(found[1], (k for k in known if k not in ("step", "epoch")))
            there = ", ".join(names[:5]) or "nothing yet"
            return f"{who}: no metric {found[1]!r} is logged; there is {there}"
    return None


def _way_out(message: str) -> str:
    """What Lightning cannot know of agents that make their updates without gradients."""
    if "gradient clipping is not supported" in message:
        return " A table has no gradients: give --trainer.gradient_clip_val null."
    if "gradient accumulation is not supported" in message:
        return " A table has no gradients: leave out --trainer.accumulate_grad_batches."
    return ""
