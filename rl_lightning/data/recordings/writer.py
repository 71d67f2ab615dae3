"""Writing episodes to HDF5, in the layout of `rl_lightning.data.recordings.dataset`."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.checks import checked
from rl_lightning.data.recordings.dataset import Dataset
from rl_lightning.data.recordings.episode import PARTS, Episode
from rl_lightning.data.recordings.hdf5 import (
    check_all,
    import_h5py,
    opened,
    part_of,
)
from rl_lightning.data.recordings.layout import (
    INFOS,
    MASK,
    episode_ids,
    write_part,
)
from rl_lightning.data.recordings.minari import describe, space_of
from rl_lightning.data.recordings.spaces import SPACES, check_spaces, spec_of


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
        for name in PARTS:
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
