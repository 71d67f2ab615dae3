"""Arrays of many rows, in memory or memory-mapped, and their chunks in snapshots."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.core.errors import ConfigurationError

CHUNK_BYTES = 16 * 2**20
RESIDENT_BYTES = 128 * 2**20  # of memory-mapped arrays, about
FAULT_BYTES = 64 * 2**10  # what Linux maps around a page that is asked for


class Arena:
    """Allocates arrays `[rows, ...]`, and writes only what has changed into a snapshot.

    A snapshot is a folder with one file per chunk of some rows. A chunk that has not changed since
    the snapshot before is linked to that one's file, so saving a large buffer costs what is new in
    it. Files are never written again: a snapshot stays what it was while the arrays live on.

    Args:
        folder: Where the arrays' files lie, without a name, so that they vanish with the process
            however it ends; None keeps arrays in memory. What was never written takes no room in
            either case.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.arrays: dict[str, np.ndarray] = {}
        self._last: Path | None = None
        self._touched = 0  # bytes, at most, that became resident since the last release
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def new(self, name: str, rows: int, shape: Iterable[int], dtype: Any) -> np.ndarray:
        """A zeroed array `[rows, *shape]`.

        Raises:
            ConfigurationError: If there is no room for it.
        """
        full = (rows, *shape)
        size = int(np.prod(full, dtype=np.int64)) * np.dtype(dtype).itemsize
        try:
            if self.folder is None or size == 0:
                array = np.zeros(full, dtype)
            else:
                self._check_room(size)
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    array = np.memmap(file, dtype, "w+", shape=full)
                array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        except MemoryError as error:
            raise ConfigurationError(
                f"data.buffer_frames: {rows:,} rows of {name} {tuple(shape)} need "
                f"{size / 2**30:.1f} GiB of memory, which there are not; make it smaller, or set "
                "data.storage: disk"
            ) from error
        self.arrays[name] = array
        return array

    def touch(self, rows: int, scattered: bool = False) -> None:
        """Say that rows of all arrays were written or read, so that memory stays bounded.

        Args:
            rows: Their number.
            scattered: Whether they lie apart; the system then maps the pages around each.
        """
        if self.folder is None:
            return
        for array in self.arrays.values():
            row = array.nbytes // max(len(array), 1)
            self._touched += rows * (max(row, FAULT_BYTES) if scattered else row)
        if self._touched > RESIDENT_BYTES:
            self.release()

    def release(self) -> None:
        """Give pages of memory-mapped arrays back to the system; their contents stay."""
        self._touched = 0
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def save(
        self, folder: Path, used: dict[str, int], dirty: Callable[[str, int, int], bool]
    ) -> None:
        """Write a snapshot.

        Args:
            folder: An empty folder on the file system of the snapshots before.
            used: Rows in use, by array.
            dirty: Whether an array's rows from `start` to `stop` changed since the last snapshot.
        """
        last = self._last if self._last is not None and self._last.is_dir() else None
        for name, array in self.arrays.items():
            size = _chunk_rows(array)
            for start in range(0, used[name], size):
                stop = min(start + size, len(array))
                file = _chunk_file(name, start)
                old = None if last is None else last / file
                if old is not None and old.is_file() and not dirty(name, start, stop):
                    link(old, folder / file)
                else:
                    np.save(folder / file, array[start:stop], allow_pickle=False)
        self._last = folder

    def load(self, folder: Path, used: dict[str, int]) -> None:
        """Fill the arrays from a snapshot.

        Raises:
            ConfigurationError: If a file is missing or does not fit.
        """
        alike = True
        for name, array in self.arrays.items():
            start = 0
            while start < used[name]:
                file = folder / _chunk_file(name, start)
                if not file.is_file():
                    raise ConfigurationError(f"the replay contents are incomplete: no {file}")
                chunk = np.load(file, mmap_mode="r", allow_pickle=False)
                if chunk.dtype != array.dtype or chunk.shape[1:] != array.shape[1:]:
                    raise ConfigurationError(
                        f"the replay contents hold {name} as {chunk.dtype} {chunk.shape[1:]}, this "
                        f"run has {array.dtype} {array.shape[1:]}"
                    )
                if not len(chunk):
                    raise ConfigurationError(f"the replay contents are incomplete: {file} is empty")
                stop = start + len(chunk)
                array[start:stop] = chunk[: len(array) - start]
                alike &= len(chunk) == min(_chunk_rows(array), len(array) - start)
                start = stop
        self._last = folder if alike else None  # chunks of another size cannot be linked to

    def _check_room(self, size: int) -> None:
        assert self.folder is not None
        size += sum(array.nbytes for array in self.arrays.values())  # none of it is written yet
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ConfigurationError(
                f"data.buffer_frames: {size / 2**30:.1f} GiB on disk are needed, but {self.folder} "
                f"has {free / 2**30:.1f} GiB; make it smaller, or set data.storage_dir"
            )


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _chunk_rows(array: np.ndarray) -> int:
    row = array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    return max(1, CHUNK_BYTES // max(row, 1))


def _chunk_file(name: str, start: int) -> str:
    return f"{name}.{start:012d}.npy"
