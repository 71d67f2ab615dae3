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
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.checks import checked
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.hdf5 import (
    MOST_EXPANSION,
    SMALL_BYTES,
    Node,
    check_all,
    find,
    import_h5py,
    load,
    opened,
    part_of,
)
from rl_lightning.data.recordings.layout import (
    INFOS,
    MASK,
    episode_group,
    episode_ids,
    file_in,
    mask_parts,
    rewards_of,
    step_count,
    write_part,
)
from rl_lightning.data.recordings.minari import describe, space_of
from rl_lightning.data.recordings.spaces import SPACES, check_spaces, spec_of

_PARTS = [field.name for field in fields(Episode) if field.name != "action_masks"]


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

    @property
    def total_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(self._lengths_and_returns[0])

    @cached_property
    def mask_dim(self) -> int:
        """Width of the action masks; 0 if no episode has any."""
        with opened(self.path) as file:
            for index in self._ids:
                parts = mask_parts(*episode_group(file, index, self.path))
                if parts:
                    return sum(part.shape[1] for part in parts)
        return 0

    @property
    def mean_return(self) -> float:
        """Undiscounted return, averaged over episodes."""
        return float(np.mean(self._lengths_and_returns[1]))

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
            ConfigurationError: If an episode is incomplete, if it takes anything from another file
                or more memory than there is, or if it is not what an environment can have said,
                see `checked`.
        """
        with opened(self.path) as file:
            for index in self._ids:
                yield self._read(*episode_group(file, index, self.path))

    def _read(self, group: Any, where: str) -> Episode:
        seen: set[int] = set()
        found: dict[str, Node] = {name: find(group, name, where, seen) for name in _PARTS}
        masks = mask_parts(group, where) if self.mask_dim else []
        width = sum(part.shape[1] for part in masks)
        if masks and width != self.mask_dim:
            raise ConfigurationError(
                f"{where}: the action masks are {width} actions wide, but those of an earlier "
                f"episode {self.mask_dim}"
            )
        found |= {str(i): part for i, part in enumerate(masks)}
        steps = step_count(found["rewards"])
        values = load(found, where, steps + 1)
        allowed = np.ones((steps + 1, self.mask_dim), bool) if self.mask_dim else None
        if masks:
            allowed = np.concatenate([values[str(i)] for i in range(len(masks))], axis=1)
        parts = (values[name] for name in _PARTS)
        return checked(Episode(*parts, action_masks=allowed), self.spec, where)

    def check(self, spec: EnvSpec) -> None:
        """Refuse an environment whose observations or actions are not those recorded.

        Bounds and lengths of observations may differ, since they change with versions of an
        environment and say nothing of its rows. Passes if `self.spec` is None.

        Raises:
            ConfigurationError: If the spaces differ.
        """
        if self.spec is not None:
            check_spaces(self.path, self.spec, spec)

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

    @cached_property
    def _lengths_and_returns(self) -> tuple[list[int], list[Any]]:
        lengths, returns, claimed = [], [], 0
        with opened(self.path) as file:
            most = max(SMALL_BYTES, MOST_EXPANSION * file.id.get_filesize())
            for index in self._ids:
                group, where = episode_group(file, index, self.path)
                found = rewards_of(group, where)
                claimed += found.size
                if claimed > most:
                    raise ConfigurationError(
                        f"{where}: the rewards up to here claim {claimed / 2**30:,.1f} GiB, which "
                        "a file of this size cannot hold: it is damaged or forged"
                    )
                rewards = load(found, where)
                lengths.append(len(rewards))
                returns.append(rewards.sum())
        return lengths, returns


def read_dataset(path: str | Path) -> Dataset:
    """Open recorded episodes.

    Args:
        path: An HDF5 file, or the folder of a Minari data set (the one with
            `data/main_data.hdf5`).

    Raises:
        ConfigurationError: If there is no such file, if it is none of recorded episodes, if it lies
            behind a link inside the folder, or if h5py is not installed.
    """
    path = file_in(Path(path).expanduser())
    with opened(path) as file:
        ids = episode_ids(file, path)
        if not ids:
            raise ConfigurationError(
                f"{path} holds no group episode_0: it is not in Minari's layout, or empty"
            )
        return Dataset(path, spec_of(file, path), ids)


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

    Attributes:
        before: Episodes that the file holds already.

    Raises:
        ConfigurationError: If the file holds episodes of other spaces or takes something from
            another file, if it is no file of episodes, if a `.part` of it exists, if it cannot be
            written, if a space cannot be described, or if h5py is not installed.
    """

    def __init__(self, path: str | Path, spec: EnvSpec) -> None:
        import_h5py()
        self.path = path = Path(path).expanduser()
        if not path.name:
            raise ConfigurationError(
                f"data.record: {str(path)!r} names no file; give the name of an HDF5 file"
            )
        self._part = part_of(path)
        spaces = {name: describe(getattr(spec, name), name) for name in SPACES}
        self.spec = EnvSpec(*(space_of(data) for data in spaces.values()), id=spec.id)
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder; give the name of an HDF5 file")
        if os.path.lexists(self._part):
            raise ConfigurationError(
                f"{self._part} exists: another process is recording to {path}, or one was "
                "interrupted; delete it, or rename it to keep the episodes that it holds"
            )
        self.before, self.mask_dim = self._check_old() if os.path.lexists(path) else (0, 0)
        try:
            self._file = self._begin(spaces)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be written: {shortened(error)}; give data.record the name of a "
                "file in a folder that can be written to"
            ) from error

    def _check_old(self) -> tuple[int, int]:
        """Whether episodes may be added to the file that is there; their number and the masks'
        width."""
        path = self.path
        with opened(path) as file:
            known = spec_of(file, path) if all(name in file.attrs for name in SPACES) else None
            if known is None:
                raise ConfigurationError(
                    f"{path} does not say its spaces, so nothing can be added; choose another file"
                )
            check_spaces(path, known, self.spec)
            check_all(file, path)
            ids = episode_ids(file, path)
            said = file.attrs.get("total_episodes")
            steps = isinstance(file.attrs.get("total_steps"), np.integer)
            if ids != list(range(len(ids))) or said != len(ids) or not steps:
                raise ConfigurationError(
                    f"{path} says that it holds {shortened(said, 20)} episodes, but it holds "
                    f"{len(ids)}, so nothing can be added; choose another file"
                )
        return len(ids), Dataset(path, known, ids).mask_dim

    def _begin(self, spaces: dict[str, Any]) -> Any:
        h5py = import_h5py()
        if self.path.exists():
            shutil.copyfile(self.path, self._part)
            return h5py.File(self._part, "r+")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(self._part, "x")
        file.attrs.update({name: json.dumps(data) for name, data in spaces.items()})
        file.attrs.update({"env_id": self.spec.id, "total_episodes": 0, "total_steps": 0})
        return file

    def add(self, episode: Episode) -> None:
        """Write one episode.

        Raises:
            ConfigurationError: As `Dataset.episodes`.
            RunError: If the disk fails.
        """
        index = int(self._file.attrs["total_episodes"])
        where = f"episode {index} for {self.path}"
        episode = checked(episode, self.spec, where)
        if episode.action_masks is not None:
            width = episode.action_masks.shape[1]
            if width != (self.mask_dim or width):
                raise ConfigurationError(
                    f"{where}: the action masks are {width} actions wide, but those of an earlier "
                    f"episode {self.mask_dim}"
                )
            self.mask_dim = width
        try:
            self._append(index, episode)
        except (OSError, RuntimeError) as error:
            raise self._lost(error) from error

    def _append(self, index: int, episode: Episode) -> None:
        # A group gets its name last: no file, however it ends, shows half an episode.
        group = self._file.create_group(None)
        group.attrs.update({"id": index, "total_steps": len(episode)})
        for name in _PARTS:
            write_part(group, name, getattr(episode, name))
        if episode.action_masks is not None:
            group.create_dataset(f"{INFOS}/{MASK}", data=episode.action_masks, compression="gzip")
        self._file[f"episode_{index}"] = group
        self._file.attrs["total_episodes"] = index + 1
        self._file.attrs["total_steps"] += len(episode)
        self._file.flush()

    def close(self) -> None:
        """Give the file its name."""
        if self._file:
            try:
                self._file.close()
                self._part.replace(self.path)
            except (OSError, RuntimeError) as error:
                raise self._lost(error) from error

    def _lost(self, error: Exception) -> RunError:
        return RunError(
            f"episodes could not be written to {self._part}: {shortened(error)}; what {self.path} "
            "held before is as it was: make room, or give data.record another place, and begin anew"
        )

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError, RuntimeError):  # what went wrong before is the news
                self._file.close()
