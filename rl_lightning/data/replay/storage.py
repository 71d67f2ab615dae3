"""Where a replay buffer keeps observations, in memory or on disk, and in which precision."""

import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError

OBS_DTYPES = {"float32": None, "float16": np.float16}


def check_storage(obs_dtype: str, storage: str, storage_dir: str | None) -> None:
    """Refuse what `data.obs_dtype`, `data.storage` and `data.storage_dir` cannot be.

    Raises:
        ConfigurationError: If one of them is unknown, or if the folder would not be used or is a
            file.
    """
    if obs_dtype not in OBS_DTYPES:
        raise ConfigurationError(
            f"data.obs_dtype must be one of {', '.join(OBS_DTYPES)}, not {obs_dtype!r}"
        )
    if storage not in ("memory", "disk"):
        raise ConfigurationError(f"data.storage must be memory or disk, not {storage!r}")
    if storage_dir is not None and storage == "memory":
        raise ConfigurationError(
            f"data.storage_dir: {storage_dir} means nothing with data.storage: memory"
        )
    if storage_dir is not None and Path(storage_dir).exists() and not Path(storage_dir).is_dir():
        raise ConfigurationError(f"data.storage_dir: {storage_dir} is a file; give a folder")


def storage_folder(storage: str, storage_dir: str | None) -> Path | None:
    """Where a buffer on disk makes its files; None for one in memory.

    Raises:
        ConfigurationError: If the folder cannot be made or written to.
    """
    if storage != "disk":
        return None
    folder = Path(storage_dir or tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"data.storage_dir: no file can be made in {folder}: {error.strerror}; give a folder "
            "that can be written to"
        ) from error
    return folder


def store_narrow(array: np.ndarray, index: Any, values: np.ndarray, name: str) -> None:
    """`array[index] = values`, unless float16 would make infinities of large numbers.

    Raises:
        ConfigurationError: That names a value that `data.obs_dtype` cannot hold.
    """
    try:
        with np.errstate(over="raise"):
            array[index] = values
    except FloatingPointError:
        largest = values.reshape(-1)[np.nanargmax(np.abs(values))]
        raise ConfigurationError(
            f"data.obs_dtype: float16 holds numbers up to {np.finfo(np.float16).max:,.0f}, but an "
            f"observation (stored as {name}) has {largest:,g}; set data.obs_dtype: float32, or "
            "make observations smaller"
        ) from None


def check_multiple(name: str, value: int, other: str, unit: int) -> None:
    """Refuse a number of frames that is no multiple of another."""
    if value % unit:
        raise ConfigurationError(
            f"data.{name}: {value} is no multiple of data.{other}: {unit}; choose e.g. "
            f"{max(round(value / unit), 1) * unit}"
        )


def check_room(buffer_frames: int, name: str, value: int, unit: int, world: int = 1) -> None:
    """Refuse a buffer that would forget a frame before it was of use.

    Args:
        buffer_frames: Frames of a rank that the buffer holds.
        name: The argument that needs room.
        value: Its share of one rank.
        unit: Frames of the buffer that 1 of it takes.
        world: Ranks that share it.
    """
    if value * unit > buffer_frames:
        each = f" · num_envs: {unit}" if unit > 1 else ""
        share = f" over {world} ranks" if world > 1 else ""
        raise ConfigurationError(
            f"data.buffer_frames: {buffer_frames} hold less than data.{name}: {value * world}"
            f"{each}{share}; make it at least {value * unit}, or data.{name} smaller"
        )


def action_example(space: gym.Space, num_envs: int) -> Tensor:
    """A batch of zeros shaped and typed as an agent's actions for a space, `[B, ...]`."""
    if isinstance(space, gym.spaces.Box):
        return torch.zeros(num_envs, *space.shape)
    return torch.zeros(num_envs, *(space.shape or ()), dtype=torch.int64)


def action_dtype(space: gym.Space) -> Any:
    """The smallest type that holds every action of a space; None for that of the actions."""
    s = gym.spaces
    if isinstance(space, s.Discrete):
        first, last = int(space.start), int(space.start + space.n - 1)
    elif isinstance(space, s.MultiDiscrete):
        first, last = int(space.start.min()), int((space.start + space.nvec).max() - 1)
    elif isinstance(space, s.MultiBinary):
        first, last = 0, 1
    else:
        return None
    # Not the other unsigned ones, which torch cannot index.
    types = (np.uint8, np.int8, np.int16, np.int32, np.int64)
    return next(t for t in types if np.iinfo(t).min <= first and last <= np.iinfo(t).max)
