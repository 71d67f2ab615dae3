"""Replay contents beside a checkpoint, not in it.

`last.ckpt` holds no transitions; it names a folder `last.replay.<id>` next to it, with one folder
per rank. The order of events makes a save atomic: every rank writes its contents to a spool, the
folder is linked together and renamed into place, only then the checkpoint (which Lightning writes
atomically) replaces the one before it, and only then that one's folder goes. Killed in between,
there is either the old checkpoint with its folder or the new one with its own.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.data.arena import link
from rl_lightning.errors import ConfigurationError


class Spool:
    """Snapshots of one rank's buffer; the newest is kept, and later ones link to its files.

    Args:
        place: Folder, on the file system of the checkpoints.
        rank: Of this process.
    """

    def __init__(self, place: Path, rank: int) -> None:
        place.mkdir(parents=True, exist_ok=True)
        prefix = f".replay-rank{rank}-"
        for old in place.glob(f"{prefix}*"):  # what a killed process left: its lock went with it
            if _lock(old, "r") is not None:
                shutil.rmtree(old, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        self._lock = _lock(self.folder, "w")
        self._clean = weakref.finalize(self, shutil.rmtree, str(self.folder), ignore_errors=True)
        self._newest: tuple[Any, Path] | None = None

    def write(self, version: Any, save: Callable[[Path], dict[str, Any]]) -> Path:
        """The folder with the contents of `version`; written now unless it is the newest.

        Args:
            version: What changes whenever the contents change.
            save: Writes them into an empty folder, and returns plain data to keep beside them.
        """
        if self._newest is None or self._newest[0] != version:
            folder = self.folder / uuid.uuid4().hex
            folder.mkdir()
            state = save(folder)
            torch.save(state, folder / "state.pt")
            old, self._newest = self._newest, (version, folder)
            if old is not None:
                shutil.rmtree(old[1], ignore_errors=True)
        return self._newest[1]

    def close(self) -> None:
        """Delete the spool."""
        self._clean()


def _lock(folder: Path, mode: str) -> IO[Any] | None:
    """A spool's lock, if nobody holds it."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # not on every system: there, nothing is cleaned up

        file = (folder / "lock").open(mode)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    return None


class SidecarIO(CheckpointIO):
    """Saves, moves and removes a checkpoint's replay contents together with it.

    Args:
        inner: What saves and loads the checkpoint itself.
        key: The data module's entry in a checkpoint.
    """

    def __init__(self, inner: CheckpointIO, key: str) -> None:
        self.inner = inner
        self.key = key

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        spooled = (checkpoint.get(self.key) or {}).get("replay")
        if not spooled:
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            _remove(path)
            return
        if "://" in str(path):
            rank_zero_warn(f"replay contents are not saved to {path}: only to local folders")
            checkpoint[self.key]["replay"] = None
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        folder = path.parent / f"{path.stem}.replay.{uuid.uuid4().hex[:12]}"
        building = path.parent / f".{folder.name}"
        building.mkdir(parents=True)
        for rank, source in enumerate(spooled):
            (building / f"rank{rank}").mkdir()
            for file in Path(source).iterdir():
                link(file, building / f"rank{rank}" / file.name)
        os.replace(building, folder)
        checkpoint[self.key]["replay"] = folder.name
        self.inner.save_checkpoint(checkpoint, path, storage_options)
        checkpoint[self.key]["replay"] = spooled
        _remove(path, but=folder)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        self.inner.remove_checkpoint(path)
        _remove(path)

    def teardown(self) -> None:
        self.inner.teardown()


def sidecars(path: Path) -> list[Path]:
    """The folders with replay contents that belong to a checkpoint's name, finished or not."""
    names = (f"{path.stem}.replay.", f".{path.stem}.replay.")
    return [p for p in path.parent.iterdir() if p.is_dir() and p.name.startswith(names)]


def _remove(path: Any, but: Path | None = None) -> None:
    if "://" not in str(path):
        for folder in sidecars(Path(path)):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)


def find_sidecar(checkpoint: Path, name: str, rank: int) -> Path:
    """Where a rank's replay contents of a checkpoint lie.

    Raises:
        ConfigurationError: If they are gone.
    """
    folder = checkpoint.parent / name / f"rank{rank}"
    if not (folder / "state.pt").is_file():
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} goes with replay contents in {folder.parent}, which are not "
            "there (or not whole); move them along with it, or set data.save_replay: false to fill "
            "the buffer anew"
        )
    return folder


def spool_place(trainer: Any) -> Path:
    """A folder on the file system where the trainer's checkpoints go."""
    callback = trainer.checkpoint_callback
    place = getattr(callback, "dirpath", None) or trainer.default_root_dir
    if "://" in str(place):
        place = tempfile.gettempdir()
    if trainer.world_size > 1:  # all ranks' spools must be seen by rank 0
        places = [str(place)]
        dist.broadcast_object_list(places)
        place = places[0]
    return Path(place)
