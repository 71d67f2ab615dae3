"""Replay contents and what encoders remember beside a checkpoint, not in it.

`last.ckpt` holds no transitions and no vectors of texts; it names folders `last.replay.<id>` and
`last.texts.<id>` next to it, with one folder per rank each. The order of events makes a save
atomic: every rank writes its contents to a spool, the folders are linked together and renamed into
place, only then the checkpoint (atomically, see `CheckpointFiles`) replaces the one before it, and
only then that one's folders go. Killed in between, there is either the old checkpoint with its
folders or the new one with its own.
"""

import io
import os
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Collection
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
from rl_lightning.data.resume.remembered import inside, put_back, read
from rl_lightning.trainer import wrapped_ios, write_by, written_by

KINDS = {"replay": "replay contents", "texts": "remembered texts"}
"""Entries of a data module's state that name what goes beside a checkpoint."""


class Spool:
    """Snapshots of one rank's contents; the newest is kept, and later ones link to its files.

    Args:
        place: Folder, on the file system of the checkpoints.
        rank: Of this process.
        kind: One of `KINDS`.
    """

    def __init__(self, place: Path, rank: int, kind: str = "replay") -> None:
        self._what = KINDS[kind]
        with saving(f"{self._what} in {place}"):
            place.mkdir(parents=True, exist_ok=True)
            prefix = f".{kind}-rank{rank}-"
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
                with saving(f"{self._what} in {self.folder.parent}"):
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
    """Checkpoint files that take what they no longer name along.

    Args:
        key: The data module's entry in a checkpoint.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        _remove(path, but=_named(checkpoint, self.key))

    def remove_checkpoint(self, path: Any) -> None:
        known = self.places.hold(path)
        super().remove_checkpoint(path)
        if known:
            _remove(path)


class SidecarIO(CheckpointIO):
    """Saves, moves and removes what goes beside a checkpoint together with it.

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
        entry = checkpoint.get(self.key) or {}
        spooled = {kind: entry[kind] for kind in KINDS if entry.get(kind)}
        if not spooled:
            self._save(checkpoint, path, storage_options)
            return
        try:
            if is_remote(path):
                self._save_alone(checkpoint, path, spooled, storage_options)
            else:
                self._save_together(checkpoint, Path(path), spooled, storage_options)
        finally:
            checkpoint[self.key] = entry
            if not self.keeps_spools():
                for folder in (folder for folders in spooled.values() for folder in folders):
                    shutil.rmtree(Path(folder).parent, ignore_errors=True)

    def _save_alone(
        self, checkpoint: Any, path: Any, spooled: dict[str, list[str]], storage_options: Any
    ) -> None:
        """Where no folder can stand beside a checkpoint."""
        entry = {**checkpoint[self.key], **dict.fromkeys(spooled)}
        if "replay" in spooled:
            rank_zero_warn(f"replay contents are not saved to {path}: only to local folders")
        if "texts" in spooled:
            ranks = zip(entry["ranks"], spooled["texts"], strict=True)
            entry["ranks"] = [inside(put_back(state, read(Path(f)))) for state, f in ranks]
        checkpoint[self.key] = entry
        self._save(checkpoint, path, storage_options)

    def _save_together(
        self, checkpoint: Any, path: Path, spooled: dict[str, list[str]], storage_options: Any
    ) -> None:
        folders = {k: path.parent / f"{_name(path)}.{k}.{uuid.uuid4().hex[:12]}" for k in spooled}
        before = _identity(path)
        try:
            with saving(f"checkpoint {path}"):
                for kind, folder in folders.items():
                    building = path.parent / f".{folder.name}"
                    building.mkdir(parents=True)
                    for rank, source in enumerate(spooled[kind]):
                        (building / f"rank{rank}").mkdir()
                        for file in Path(source).iterdir():
                            link(file, building / f"rank{rank}" / file.name)
                    os.replace(building, folder)
            names = {kind: folder.name for kind, folder in folders.items()}
            checkpoint[self.key] = {**checkpoint[self.key], **names}
            self._save(checkpoint, path, storage_options)
        except BaseException:
            for folder in folders.values():
                shutil.rmtree(path.parent / f".{folder.name}", ignore_errors=True)
                # Not where the new checkpoint stands, or another plugin may still write it.
                if type(self.inner) is PairedFiles and _identity(path) == before:
                    shutil.rmtree(folder, ignore_errors=True)
            raise

    def _save(self, checkpoint: Any, path: Any, storage_options: Any) -> None:
        self.inner.save_checkpoint(checkpoint, path, storage_options)
        if not isinstance(_base(self.inner), PairedFiles):  # which do so in their own time
            _remove(path, but=_named(checkpoint, self.key))

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


def saves_beside(trainer: Any) -> bool:
    """Whether a trainer's checkpoints may name what goes beside them."""
    return isinstance(trainer.strategy.checkpoint_io, SidecarIO)


def sidecars(path: Path) -> list[Path]:
    """The folders that belong to a checkpoint's name, finished or not."""
    if not path.parent.is_dir():
        return []
    names = tuple(f"{dot}{_name(path)}.{kind}." for kind in KINDS for dot in ("", "."))
    return [p for p in path.parent.iterdir() if p.is_dir() and p.name.startswith(names)]


def _name(path: Path) -> str:
    """What a checkpoint's folders are named after: `model.v1` is another one than `model.v2`."""
    return path.name.removesuffix(".ckpt")


def _named(checkpoint: Any, key: str) -> set[str]:
    """Of which folders a checkpoint says that they go with it."""
    entry = checkpoint.get(key) or {}
    return {entry[kind] for kind in KINDS if isinstance(entry.get(kind), str)}


def _remove(path: Any, but: Collection[str] = ()) -> None:
    if not is_remote(path):
        for folder in sidecars(Path(path)):
            if folder.name not in but:
                shutil.rmtree(folder, ignore_errors=True)


def find_sidecar(checkpoint: Path, name: str, rank: int, kind: str = "replay") -> Path:
    """Where a rank's contents of a checkpoint lie.

    The name comes out of the checkpoint, and that perhaps from a stranger: it may lead to a folder
    beside the checkpoint, and to nothing else.

    Raises:
        ConfigurationError: If they are gone, or elsewhere.
    """
    what, other = KINDS[kind], ", or set data.save_replay: false" if kind == "replay" else ""
    if not re.fullmatch(rf"[^/\\\0]+\.{kind}\.[0-9a-f]+", name):
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} names {what} {name!r}, which is no folder beside it "
            f"that this library would have made; copy it from where it came from{other}"
        )
    folder = checkpoint.parent / name / f"rank{rank}"
    if not (folder / "state.pt").is_file():
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} goes with {what} in {folder.parent}, which are not "
            f"there (or not whole); move them along with it{other}"
        )
    files = list(folder.iterdir())
    links = [p for p in (folder.parent, folder, *files) if p.is_symlink()]
    if strange := links + [p for p in files if not p.is_file()]:
        raise ConfigurationError(
            f"ckpt_path: {checkpoint} goes with {what} of which {strange[0]} is a link or "
            f"no file; copy the files themselves{other}"
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
