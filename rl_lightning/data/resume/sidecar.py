"""Replay contents beside a checkpoint, not in it.

`last.ckpt` holds no transitions; it names a folder `last.replay.<id>` next to it, with one folder
per rank. The order of events makes a save atomic: every rank writes its contents to a spool, the
folder is linked together and renamed into place, only then the checkpoint (atomically, see
`CheckpointFiles`) replaces the one before it, and only then that one's folder goes. Killed in
between, there is either the old checkpoint with its folder or the new one with its own.
"""

import io
import os
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay.arrays import link
from rl_lightning.data.resume.checkpoint_files import (
    CheckpointFiles,
    Places,
    flush,
    flush_folder,
    is_remote,
    lock,
    saving,
)
from rl_lightning.trainer import wrapped_ios, write_by, written_by


class Spool:
    """Snapshots of one rank's buffer; the newest is kept, and later ones link to its files.

    Args:
        place: Folder, on the file system of the checkpoints.
        rank: Of this process.
    """

    def __init__(self, place: Path, rank: int) -> None:
        with saving(f"replay contents in {place}"):
            place.mkdir(parents=True, exist_ok=True)
            prefix = f".replay-rank{rank}-"
            # What a killed process left: its lock went with it.
            for old in place.glob(f"{prefix}*"):
                if _is_abandoned(old):
                    shutil.rmtree(old, ignore_errors=True)
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            self._lock = (self.folder / "lock").open("w")
            lock(self._lock)
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
            try:
                with saving(f"replay contents in {self.folder.parent}"):
                    folder.mkdir()
                    contents = io.BytesIO()
                    torch.save(save(folder), contents)
                    (folder / "state.pt").write_bytes(contents.getbuffer())
                    _flush_all(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            old, self._newest = self._newest, (version, folder)
            if old is not None:
                shutil.rmtree(old[1], ignore_errors=True)
        return self._newest[1]

    def close(self) -> None:
        """Delete the spool."""
        self._clean()


def _is_abandoned(spool: Path) -> bool:
    try:
        with (spool / "lock").open() as file:
            return lock(file)
    except OSError:
        return False


def _flush_all(folder: Path) -> None:
    """Have a snapshot's new files on the disk; those with other names were flushed before."""
    for path in folder.iterdir():
        if path.stat().st_nlink == 1:
            with path.open("r+b") as file:
                flush(file)
    flush_folder(folder)


class PairedFiles(CheckpointFiles):
    """Checkpoint files that take replay contents they no longer name along.

    Args:
        key: The data module's entry in a checkpoint.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        name = (checkpoint.get(self.key) or {}).get("replay")
        _remove(path, but=name)

    def remove_checkpoint(self, path: Any) -> None:
        known = self.places.hold(path)
        super().remove_checkpoint(path)
        if known:
            _remove(path)


class SidecarIO(CheckpointIO):
    """Saves, moves and removes a checkpoint's replay contents together with it.

    Args:
        inner: What saves and loads the checkpoint itself.
        key: The data module's entry in a checkpoint.
        keeps_spools: Whether spools serve further saves; otherwise they go after each.
    """

    def __init__(
        self, inner: CheckpointIO, key: str, keeps_spools: Callable[[], bool] = lambda: True
    ) -> None:
        self.inner = inner
        self.key = key
        self.keeps_spools = keeps_spools
        self.places = Places()

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.places.note(path)
        spooled = (checkpoint.get(self.key) or {}).get("replay")
        if not spooled:
            self._save(checkpoint, path, storage_options)
            return
        try:
            if is_remote(path):
                rank_zero_warn(f"replay contents are not saved to {path}: only to local folders")
                checkpoint[self.key]["replay"] = None
                self._save(checkpoint, path, storage_options)
            else:
                self._save_both(checkpoint, Path(path), spooled, storage_options)
        finally:
            checkpoint[self.key]["replay"] = spooled
            if not self.keeps_spools():
                for folder in spooled:
                    shutil.rmtree(Path(folder).parent, ignore_errors=True)

    def _save_both(
        self, checkpoint: Any, path: Path, spooled: list[str], storage_options: Any
    ) -> None:
        folder = path.parent / f"{path.stem}.replay.{uuid.uuid4().hex[:12]}"
        building = path.parent / f".{folder.name}"
        before = _identity(path)
        try:
            with saving(f"checkpoint {path}"):
                building.mkdir(parents=True)
                for rank, source in enumerate(spooled):
                    (building / f"rank{rank}").mkdir()
                    for file in Path(source).iterdir():
                        link(file, building / f"rank{rank}" / file.name)
                os.replace(building, folder)
            checkpoint[self.key]["replay"] = folder.name
            self._save(checkpoint, path, storage_options)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            # Not where the new checkpoint stands, or another plugin may still write it.
            if type(self.inner) is PairedFiles and _identity(path) == before:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _save(self, checkpoint: Any, path: Any, storage_options: Any) -> None:
        self.inner.save_checkpoint(checkpoint, path, storage_options)
        if not isinstance(_base(self.inner), PairedFiles):  # which do so in their own time
            _remove(path, but=(checkpoint.get(self.key) or {}).get("replay"))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        known = self.places.hold(path)
        self.inner.remove_checkpoint(path)
        if known:
            _remove(path)

    def teardown(self) -> None:
        self.inner.teardown()


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def install(trainer: Any, key: str, keeps_spools: Callable[[], bool]) -> None:
    """Have a trainer save and load checkpoints as told here, from now on.

    A plugin of the user's stays: one that only says when files are written (`AsyncCheckpointIO`)
    has ours written, one that writes them itself answers for them. So do strategies that shard.

    Args:
        trainer: The trainer; a second time replaces the first.
        key: As in `SidecarIO`, as is `keeps_spools`.
    """
    strategy = trainer.strategy
    if type(strategy).save_checkpoint is not Strategy.save_checkpoint:
        return
    inner, files = strategy.checkpoint_io, PairedFiles(key)
    if isinstance(inner, SidecarIO):
        inner = inner.inner
    for outer in wrapped_ios(inner):
        if _is_plain(written_by(outer)):
            write_by(outer, files)
            break
    strategy.checkpoint_io = SidecarIO(files if _is_plain(inner) else inner, key, keeps_spools)


def _is_plain(inner: CheckpointIO | None) -> bool:
    return inner is None or type(inner) in (TorchCheckpointIO, PairedFiles)


def _base(inner: CheckpointIO | None) -> CheckpointIO | None:
    for outer in wrapped_ios(inner):
        inner = written_by(outer)
    return inner


def sidecars(path: Path) -> list[Path]:
    """The folders with replay contents that belong to a checkpoint's name, finished or not."""
    if not path.parent.is_dir():
        return []
    names = (f"{path.stem}.replay.", f".{path.stem}.replay.")
    return [p for p in path.parent.iterdir() if p.is_dir() and p.name.startswith(names)]


def _remove(path: Any, but: str | None = None) -> None:
    if not is_remote(path):
        for folder in sidecars(Path(path)):
            if folder.name != but:
                shutil.rmtree(folder, ignore_errors=True)


def find_sidecar(checkpoint: Path, name: str, rank: int) -> Path:
    """Where a rank's replay contents of a checkpoint lie.

    The name comes out of the checkpoint, and that perhaps from a stranger: it may lead to a folder
    beside the checkpoint, and to nothing else.

    Raises:
        ConfigurationError: If they are gone, or elsewhere.
    """
    if not re.fullmatch(r"[^/\\\0]+\.replay\.[0-9a-f]+", name):
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} names replay contents {name!r}, which is no folder beside it "
            "that this library would have made; set data.save_replay: false to go on without them"
        )
    folder = checkpoint.parent / name / f"rank{rank}"
    if not (folder / "state.pt").is_file():
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} goes with replay contents in {folder.parent}, which are not "
            "there (or not whole); move them along with it, or set data.save_replay: false to fill "
            "the buffer anew"
        )
    files = list(folder.iterdir())
    links = [p for p in (folder.parent, folder, *files) if p.is_symlink()]
    if strange := links + [p for p in files if not p.is_file()]:
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} goes with replay contents of which {strange[0]} is a link or "
            "no file; copy the files themselves, or set data.save_replay: false"
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
