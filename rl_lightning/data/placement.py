"""Where a replay buffer keeps observations, in memory or on disk, and in which precision."""

import tempfile
from pathlib import Path

import numpy as np

from rl_lightning.errors import ConfigurationError

OBS_DTYPES = {"float32": None, "float16": np.float16}


def check_storage(obs_dtype: str, storage: str, storage_dir: str | None) -> None:
    """Refuse what `data.obs_dtype`, `data.storage` and `data.storage_dir` cannot be.

    Raises:
        ConfigurationError: If one of them is unknown, or the folder would not be used.
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


def storage_folder(storage: str, storage_dir: str | None) -> Path | None:
    """Where a buffer on disk makes its files; None for one in memory."""
    return Path(storage_dir or tempfile.gettempdir()) if storage == "disk" else None
