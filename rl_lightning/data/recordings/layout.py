"""Where a file in Minari's layout keeps its episodes, their rewards and their action masks."""

from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.data.recordings.hdf5 import Node, Rows, entry, find, holds, import_h5py

INFOS, MASK = "infos", "action_mask"


def file_in(path: Path) -> Path:
    """The HDF5 file in the folder of a Minari data set; any other path as it is.

    Raises:
        ConfigurationError: If there is none in the folder, or if a link inside leads to it.
    """
    if not path.is_dir():
        return path
    inside = [path / "data" / "main_data.hdf5", path / "main_data.hdf5"]
    found = next((file for file in inside if file.is_file()), None)
    if found is None:
        raise ConfigurationError(
            f"there is no {inside[0]}; give an HDF5 file or the folder of a Minari data set in "
            "HDF5 (not Arrow)"
        )
    if found.resolve() != path.resolve() / found.relative_to(path):
        raise ConfigurationError(
            f"{found} is, or lies behind, a link to {found.resolve()}; if you trust the "
            "folder, give the name of that file itself"
        )
    return found


def episode_ids(file: Any, path: Path) -> list[int]:
    """Numbers of the episodes in a file, in order."""
    names = [name for name in file if name.startswith("episode_")]
    numbers = [name.removeprefix("episode_") for name in names]
    for name, number in zip(names, numbers, strict=True):
        plain = number.isascii() and number.isdecimal() and len(number) < 19
        if not plain or str(int(number)) != number:
            raise ConfigurationError(
                f"{path} holds {shortened(name, 60)!r}, but episodes are called episode_0, "
                "episode_1, …: it is not in Minari's layout"
            )
    return sorted(map(int, numbers))


def episode_group(file: Any, index: int, path: Path) -> tuple[Any, str]:
    """An episode's group, and where it lies."""
    where = f"{path}: episode_{index}"
    group = entry(file, f"episode_{index}", str(path))
    if not isinstance(group, import_h5py().Group):
        raise ConfigurationError(
            f"{where} is no group, so no episode: it is not in Minari's layout"
        )
    return group, where


def mask_parts(group: Any, where: str) -> list[Rows]:
    """The data sets `[T+1, …]` that make up an episode's action masks, one after the other; none
    if it has no masks, or what it has is not of this form."""
    h5py = import_h5py()
    if not holds(group, INFOS):
        return []
    infos = entry(group, INFOS, where)
    if not isinstance(infos, h5py.Group) or not holds(infos, MASK):
        return []
    node = find(infos, MASK, f"{where}: {INFOS}", set(), "/")
    parts = [node]
    if isinstance(node, dict):
        parts = [node.get(f"_index_{i}", {}) for i in range(len(node))]
    rows = rewards_of(group, where).shape[0] + 1
    found = [x for x in parts if isinstance(x, Rows) and _of_flags(x, rows)]
    return found if len(found) == len(parts) else []


def _of_flags(masks: Rows, rows: int) -> bool:
    return len(masks.shape) == 2 and masks.shape[0] == rows and masks.dtype.kind in "biuf"


def rewards_of(group: Any, where: str) -> Rows:
    """The rewards of an episode, whose number is that of its steps."""
    rewards = find(group, "rewards", where, set())
    if isinstance(rewards, dict) or len(rewards.shape) != 1 or rewards.dtype.kind not in "biuf":
        raise ConfigurationError(f"{where}: rewards must be real numbers of the shape [T]")
    return rewards


def step_count(rewards: Node) -> int:
    """Steps of an episode whose rewards were found; 0 if they are no rewards."""
    return rewards.shape[0] if not isinstance(rewards, dict) and rewards.shape else 0


def write_part(group: Any, name: str, value: Any) -> None:
    """Write observations, actions, … into an episode's group."""
    if isinstance(value, tuple):
        value = {f"_index_{i}": entry for i, entry in enumerate(value)}
    if isinstance(value, dict):
        inner = group.create_group(name)
        for key, entry in value.items():
            write_part(inner, key, entry)
    elif isinstance(value, list):
        group.create_dataset(name, data=value, dtype=import_h5py().string_dtype())
    elif value.dtype == np.uint8 and value.ndim > 2:
        group.create_dataset(name, data=value, compression="gzip", compression_opts=1)
    else:
        group.create_dataset(name, data=value)
