"""Recorded episodes in HDF5: what `predict` writes down, and offline learning reads.

The layout is that of `main_data.hdf5` in Minari 0.5 (https://minari.farama.org):

    episode_0, episode_1, …                 attributes id, total_steps
        observations                        T+1 rows: the final observation is the last one
        actions                             T rows
        rewards, terminations, truncations  [T]
        infos/action_mask                   T+1 rows of allowed actions, where there are masks

Entries of a Dict space lie in a group, those of a Tuple space in a group as `_index_0`, `_index_1`,
…; texts are variable-length strings. Attributes of the file are total_episodes, total_steps, env_id
and both spaces in Minari's JSON, which Minari itself keeps in a `metadata.json` beside the file.

What Minari writes can be read, its JPEG images too (with Pillow); other `infos`, and masks that are
no rows of flags, are passed over. What is written here, Minari's `HDF5Storage` reads if the file is
called `main_data.hdf5` and it is given the spaces. One exception: images of at least 32 × 32
pixels, which are exact here and JPEG there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.data.minari import describe, form_of, space_of
from rl_lightning.data.recording import Episode, checked
from rl_lightning.errors import ConfigurationError
from rl_lightning.types import EnvSpec

_SPACES = ("observation_space", "action_space")
_PARTS = [field.name for field in fields(Episode) if field.name != "action_masks"]
_MASK = "infos/action_mask"


class Dataset:
    """Episodes in a file, read one at a time; made by `read_dataset`.

    Attributes:
        path: The HDF5 file.
        spec: Spaces of the environment, or None if the file does not say.
    """

    def __init__(self, path: Path, spec: EnvSpec | None, ids: list[int]) -> None:
        self.path = path
        self.spec = spec
        self._ids = ids

    @property
    def total_episodes(self) -> int:
        return len(self._ids)

    @cached_property
    def total_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(len(rewards) for rewards in self._rewards())

    @cached_property
    def mask_dim(self) -> int:
        """Width of the action masks; 0 if no episode has any."""
        with _opened(self.path) as file:
            for index in self._ids:
                masks = _masks(file[f"episode_{index}"])
                if masks is not None:
                    return masks.shape[1]
        return 0

    @cached_property
    def mean_return(self) -> float:
        """Undiscounted return, averaged over episodes."""
        return float(np.mean([rewards[()].sum() for rewards in self._rewards()]))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the file from another one."""
        return {
            "episodes": self.total_episodes,
            "steps": self.total_steps,
            "mean_return": self.mean_return,
        }

    def episodes(self) -> Iterator[Episode]:
        """All episodes in the order in which they were recorded, each read when its turn comes.

        Where `spec` is known, arrays have the dtypes of its spaces. If some episodes have action
        masks, those that do not allow everything.

        Raises:
            ConfigurationError: If an episode is incomplete, if its lengths do not fit, if its rows
                are not of the space, or if a reward is not finite.
        """
        with _opened(self.path) as file:
            for index in self._ids:
                where = f"{self.path}: episode_{index}"
                group = file[f"episode_{index}"]
                parts = [_read(_member(group, name, where)) for name in _PARTS]
                masks = _masks(group)
                if masks is None and self.mask_dim:
                    masks = np.ones((len(parts[2]) + 1, self.mask_dim), bool)
                yield checked(Episode(*parts, action_masks=masks), self.spec, where)

    def check(self, spec: EnvSpec) -> None:
        """Refuse an environment whose observations or actions are not those recorded.

        Bounds and lengths of observations may differ, since they change with versions of an
        environment and say nothing of its rows. Passes if `self.spec` is None.

        Raises:
            ConfigurationError: If the spaces differ.
        """
        if self.spec is not None:
            _check_spaces(self.path, self.spec, spec)

    def check_masks(self, width: int) -> None:
        """Refuse action masks that a policy does not understand.

        Args:
            width: Of the masks that it takes; 0 if it takes none.

        Raises:
            ConfigurationError: If those in the file are of another width.
        """
        if self.mask_dim not in (0, width):
            takes = f"takes masks of {width} actions" if width else "takes no masks"
            raise ConfigurationError(
                f"{self.path} holds action masks of {self.mask_dim} actions, but the policy {takes}"
            )

    def _rewards(self) -> Iterator[Any]:
        with _opened(self.path) as file:
            for index in self._ids:
                group = file[f"episode_{index}"]
                yield _member(group, "rewards", f"{self.path}: episode_{index}")


def read_dataset(path: str | Path) -> Dataset:
    """Open recorded episodes.

    Args:
        path: An HDF5 file, or the folder of a Minari data set (the one with
            `data/main_data.hdf5`).

    Raises:
        ConfigurationError: If there is no such file, if it is none of recorded episodes, or if h5py
            is not installed.
    """
    path = Path(path)
    if path.is_dir():
        inside = [path / "data" / "main_data.hdf5", path / "main_data.hdf5"]
        found = next((file for file in inside if file.is_file()), None)
        if found is None:
            raise ConfigurationError(
                f"there is no {inside[0]}; give an HDF5 file or the folder of a Minari data set in "
                "HDF5 (not Arrow)"
            )
        path = found
    with _opened(path) as file:
        names = [n.removeprefix("episode_") for n in file if n.startswith("episode_")]
        ids = sorted(int(name) for name in names if name.isdigit())
        if not ids:
            raise ConfigurationError(
                f"{path} holds no group episode_0: it is not in Minari's layout, or empty"
            )
        return Dataset(path, _spec(file, path), ids)


def read_recorded(path: str | Path, spec: EnvSpec) -> Dataset:
    """Open the recorded episodes of an environment with these spaces.

    Raises:
        ConfigurationError: As `read_dataset`, and if they are of other spaces.
    """
    recorded = read_dataset(path)
    recorded.check(spec)
    if recorded.spec is None:  # the file does not say: let the environment judge its rows
        recorded.spec = spec
    return recorded


def spell(fingerprint: dict[str, Any]) -> str:
    """A `Dataset.fingerprint` in words."""
    return "{episodes} episodes of {steps} steps and mean return {mean_return:.4g}".format(
        **fingerprint
    )


class DatasetWriter:
    """Writes episodes to a file, behind those that it holds already.

    Until `close` everything goes to a file of the same name with `.part` behind it, so that what is
    called `path` is always whole. An interrupted process leaves `path` as it was and the `.part`
    beside it, where the next writer and the reader point to it.

    Args:
        path: HDF5 file; its folder is made if need be.
        spec: Spaces of what will be written.

    Raises:
        ConfigurationError: If the file holds episodes of other spaces or is no file of episodes, if
            a `.part` of it exists, if a space cannot be described, or if h5py is not installed.
    """

    def __init__(self, path: str | Path, spec: EnvSpec) -> None:
        h5py = _h5py()
        self.path = path = Path(path)
        self._part = _part(path)
        spaces = {name: describe(getattr(spec, name)) for name in _SPACES}
        self.spec = EnvSpec(*(space_of(data) for data in spaces.values()), id=spec.id)
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder; give the name of an HDF5 file")
        if self._part.exists():
            raise ConfigurationError(
                f"{self._part} exists: another process is recording to {path}, or one was "
                "interrupted; delete it, or rename it to keep the episodes that it holds"
            )
        if path.exists():
            with _opened(path) as file:
                known = _spec(file, path) if all(name in file.attrs for name in _SPACES) else None
            if known is None:
                raise ConfigurationError(
                    f"{path} does not say its spaces, so nothing can be added; choose another file"
                )
            _check_spaces(path, known, self.spec)
            shutil.copyfile(path, self._part)
            self._file = h5py.File(self._part, "r+")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._part, "x")
            self._file.attrs.update({name: json.dumps(data) for name, data in spaces.items()})
            self._file.attrs.update({"env_id": spec.id, "total_episodes": 0, "total_steps": 0})

    def add(self, episode: Episode) -> None:
        """Write one episode.

        Raises:
            ConfigurationError: As `Dataset.episodes`.
        """
        index = int(self._file.attrs["total_episodes"])
        episode = checked(episode, self.spec, f"episode {index} for {self.path}")
        # A group gets its name last: no file, however it ends, shows half an episode.
        group = self._file.create_group(None)
        group.attrs.update({"id": index, "total_steps": len(episode)})
        for name in _PARTS:
            _write(group, name, getattr(episode, name))
        if episode.action_masks is not None:
            group.create_dataset(_MASK, data=episode.action_masks, compression="gzip")
        self._file[f"episode_{index}"] = group
        self._file.attrs["total_episodes"] = index + 1
        self._file.attrs["total_steps"] += len(episode)
        self._file.flush()

    def close(self) -> None:
        """Give the file its name."""
        if self._file:
            self._file.close()
            self._part.replace(self.path)

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


# --- files ------------------------------------------------------------------------------------


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigurationError(
            'recorded episodes need h5py: pip install "rl-lightning[offline]"'
        ) from error
    return h5py


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = _h5py()
    if not path.is_file():
        part = _part(path)
        hint = f"; {part} is what an interrupted recording left" if part.exists() else ""
        raise ConfigurationError(f"there is no file {path}{hint}")
    if not h5py.is_hdf5(path):
        raise ConfigurationError(f"{path} is no HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read, it may be incomplete: {error}") from error


def _member(group: Any, name: str, where: str) -> Any:
    if name not in group:
        raise ConfigurationError(f"{where} has no {name!r}; it has {', '.join(group) or 'nothing'}")
    return group[name]


def _masks(group: Any) -> np.ndarray | None:
    """The action masks of an episode `[T+1, A]`, those of several parts one after the other; None
    if there are none, or none of this form."""
    if _MASK not in group:
        return None
    value, rows = _read(group[_MASK]), len(group["rewards"]) + 1
    parts = [np.asarray(part) for part in (value if isinstance(value, tuple) else (value,))]
    if any(part.ndim != 2 or len(part) != rows for part in parts):
        return None
    return np.concatenate(parts, axis=1).astype(bool)


def _read(node: Any) -> Any:
    h5py = _h5py()
    if isinstance(node, h5py.Group):
        entries = {key: _read(child) for key, child in node.items()}
        if "_index_0" in entries:
            return tuple(entries[f"_index_{i}"] for i in range(len(entries)))
        return entries
    if h5py.check_string_dtype(node.dtype):
        return node.asstr()[()].tolist()
    return node[()]


def _write(group: Any, name: str, value: Any) -> None:
    if isinstance(value, tuple):
        value = {f"_index_{i}": entry for i, entry in enumerate(value)}
    if isinstance(value, dict):
        inner = group.create_group(name)
        for key, entry in value.items():
            _write(inner, key, entry)
    elif isinstance(value, list):
        group.create_dataset(name, data=value, dtype=_h5py().string_dtype())
    elif value.dtype == np.uint8 and value.ndim > 2:
        group.create_dataset(name, data=value, compression="gzip", compression_opts=1)
    else:
        group.create_dataset(name, data=value)


def _spec(file: Any, path: Path) -> EnvSpec | None:
    """What the file's attributes say of the environment, or else the `metadata.json` beside it."""
    said: Mapping[str, Any] = file.attrs
    beside = path.with_name("metadata.json")
    try:
        if _SPACES[0] not in said and beside.is_file():
            said = json.loads(beside.read_text())
        if any(name not in said for name in _SPACES):
            return None
        spaces = [space_of(json.loads(said[name])) for name in _SPACES]
        made = json.loads(said["env_spec"])["id"] if "env_spec" in said else "environment"
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"the spaces that belong to {path} cannot be read: {error!r}"
        ) from error
    return EnvSpec(*spaces, id=str(said.get("env_id", made)))


def _check_spaces(path: Path, known: EnvSpec, spec: EnvSpec) -> None:
    for name in _SPACES:
        own, other = getattr(known, name), getattr(spec, name)
        described = [describe(own), describe(other)]
        if name == "observation_space":
            described = [form_of(data) for data in described]
        if described[0] != described[1]:
            raise ConfigurationError(
                f"{path} was recorded with the {name} {own}, but {spec.id!r} has {other}; use "
                "another file, or the environment and wrappers it was recorded with"
            )
