"""Checkpoint files: whatever happens while one is written, the one before it stays whole."""

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from rl_lightning.core.checkpoints import read_archive, read_checkpoint
from rl_lightning.core.errors import ConfigurationError, RunError


class Places:
    """Where a run saves, and so may remove.

    Lightning removes what the last checkpoint was, and takes its name from the checkpoint that the
    run went on from: whoever wrote that file must not choose what is removed.
    """

    def __init__(self) -> None:
        self._folders: set[str] = set()

    def note(self, path: Any) -> None:
        """A checkpoint is saved there."""
        self._folders.add(_folder(path))

    def hold(self, path: Any) -> bool:
        """Whether a path is that of a file, and of one beside others that were saved."""
        if _folder(path) not in self._folders:
            return False
        if is_remote(path):
            return ".." not in str(path).split("/")
        return Path(path).is_file() and not Path(path).is_symlink()


def _folder(path: Any) -> str:
    if is_remote(path):
        return str(path).rpartition("/")[0]
    return str(Path(path).parent.resolve())


class CheckpointFiles(TorchCheckpointIO):
    """Writes beside the target, flushes and replaces; reads whole files of plain data only.

    Lightning writes to the system's folder for temporary files and moves, which across two file
    systems is a copy over the old checkpoint. What a killed process left beside a checkpoint goes
    with the next save of it. Addresses (`s3://…`) are left to Lightning.
    """

    def __init__(self) -> None:
        self.places = Places()

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Replace the checkpoint at `path`, or leave it as it is.

        Raises:
            RunError: If it cannot be written, e.g. because the disk is full.
        """
        self.places.note(path)
        if is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        # Into memory first: torch does not survive a full disk, Python does.
        contents = io.BytesIO()
        torch.save(checkpoint, contents)
        with saving(f"checkpoint {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, contents.getbuffer())

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint that stands where this run saves its own.

        Nothing happens if it stands elsewhere, or is a folder or a link.
        """
        if self.places.hold(path):
            if is_remote(path):
                super().remove_checkpoint(path)
            else:
                Path(path).unlink()

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`.

        Args:
            path: Of the file.
            map_location: As for `torch.load`.
            weights_only: False, which only a caller who trusts the file says, unpickles anything.

        Raises:
            ConfigurationError: If it is missing or damaged, or none of this library's.
        """
        if is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only)
        if weights_only is False:
            return read_archive(path, map_location, trusted=True)
        checkpoint = read_checkpoint(path, map_location)
        if not isinstance(checkpoint.get("pytorch-lightning_version"), str):
            raise ConfigurationError(
                f"checkpoint {path}: it was not written by Lightning, so that nothing can be "
                "restored from it; torch.load reads it"
            )
        return checkpoint


def is_remote(path: Any) -> bool:
    """Whether a path is an address that only Lightning's file systems understand."""
    return "://" in str(path)


@contextlib.contextmanager
def saving(what: str) -> Iterator[None]:
    """Tells what the system refuses while something is saved.

    Raises:
        RunError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{what} cannot be saved: {error.strerror or error}; what was saved before is still "
            "there: make room, or choose another folder (checkpoint.dirpath), and go on from that"
        ) from error


def replace_file(path: Path, contents: Any) -> None:
    """Write a file so that at any time its old contents or its new ones are there.

    Args:
        path: Of the file.
        contents: Bytes.
    """
    mark = f".{path.name[:60]}."  # no name may be longer than the file system allows
    for old in path.parent.iterdir():  # what a killed process left: its lock went with it
        if old.name.startswith(mark) and old.suffix == ".tmp":
            _remove_abandoned(old)
    while True:
        temporary = path.parent / f"{mark}{uuid.uuid4().hex[:12]}.tmp"
        with temporary.open("xb") as file:
            lock(file)
            if not temporary.exists():  # another process found it in the moment before the lock
                continue
            try:
                file.write(contents)
                flush(file)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            break
    flush_folder(path.parent)


def _remove_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if lock(file):
            path.unlink(missing_ok=True)


def lock(file: IO[Any] | int) -> bool:
    """Lock a file, or an open folder, for as long as this process has it open.

    Returns:
        Whether it is ours now; not so if another process has it, or the system knows no locks.
    """
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # not on every system: there, nothing is cleaned up

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def flush(file: IO[Any]) -> None:
    """Have an open file's contents on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have a folder's list of names on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
