"""Where a replay buffer keeps observations, in memory or on disk, and in which precision."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

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
