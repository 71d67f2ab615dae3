"""Reading checkpoint files: whole, plain data, and nothing that runs."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import rl_lightning.core.types  # noqa: F401  (registers what a checkpoint may hold beside plain data)
from rl_lightning.core.errors import ConfigurationError


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's contents, if the file is whole and holds plain data only.

    The archive's own checksums are verified: weights with flipped bits would load without a word.

    Args:
        path: A local file.
        map_location: As for `torch.load`.

    Raises:
        ConfigurationError: If there is no such file, if it is damaged, if it is no checkpoint, or
            if reading it would need more than plain data and tensors.
    """
    contents = read_archive(path, map_location)
    if not isinstance(contents, Mapping) or "state_dict" not in contents:
        raise ConfigurationError(f"checkpoint {path}: it holds no state_dict of an agent")
    return dict(contents)


def read_archive(path: str | Path, map_location: Any = "cpu", trusted: bool = False) -> Any:
    """What `torch.save` wrote to a file, if it is whole and, unless `trusted`, plain data only.

    Raises:
        ConfigurationError: As `read_checkpoint` does.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise ConfigurationError(f"checkpoint {path}: the file {what}")
    if not zipfile.is_zipfile(path):
        raise ConfigurationError(
            f"checkpoint {path}: this is no checkpoint, or the end of one is missing"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged list of contents fails in many ways
        raise _damaged(path) from error
    if broken is not None:
        raise _damaged(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"checkpoint {path}: it holds more than plain data and tensors, and loading that could "
            "run its author's code; it was not written by this library, and is not loaded"
        ) from error
    except OSError:
        raise
    except Exception as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"checkpoint {path}: the file is damaged (its checksums do not fit its contents); use "
        "another checkpoint, or copy it again from where it came from"
    )
