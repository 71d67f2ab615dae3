"""JSON lines that judged completions are written to."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.errors import ConfigurationError, RunError

_BLOCK = 1 << 16  # bytes that are looked through at a time


class LinesWriter:
    """Writes lines behind those that a file holds, each batch at once: whatever ends the process,
    what was written before stays.

    Args:
        name: JSONL file; its folder is made if need be.

    Raises:
        ConfigurationError: If it is no JSONL file, or cannot be written.
    """

    def __init__(self, name: str) -> None:
        self.name, self.path = name, Path(name).expanduser()
        if self.path.suffix not in (".jsonl", ".ndjson"):
            raise ConfigurationError(
                f"data.record: completions are written as JSON lines, to a file such as "
                f"completions.jsonl, not {name!r}"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
            cut = mend_end(self.path)
            before = self.path.stat().st_size
        except OSError as error:
            raise ConfigurationError(
                f"data.record: {name} cannot be written: {error.strerror}"
            ) from error
        if cut:
            rank_zero_warn(
                f"data.record: the last line of {name} was half-written, {cut} bytes that are no "
                "JSON, and is cut off"
            )
        if before:
            rank_zero_warn(
                f"data.record: {name} holds completions, and new ones come behind them; the same "
                "model under the same data.val_seed writes the same ones again"
            )

    def __call__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write some lines.

        Raises:
            RunError: If the disk fails.
        """
        try:
            with self.path.open("ab") as file:
                file.write(as_lines(lines).encode())
        except OSError as error:
            with suppress(OSError):  # what went wrong first is the news
                mend_end(self.path)
            raise RunError(
                f"completions could not be written to {self.name}: {error.strerror}; what it held "
                "before stays: make room, or give data.record another place"
            ) from error


def as_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    """Mappings as JSON, a line each."""
    known = ({k: None if v != v else v for k, v in line.items()} for line in lines)
    return "".join(json.dumps(line) + "\n" for line in known)  # JSON has no NaN


def count_lines(path: Path) -> int:
    """How many lines that are not empty a file holds."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def only_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some values that JSON can hold."""
    known = {}
    for name, value in values.items():
        with suppress(TypeError, ValueError, RecursionError):
            json.dumps({name: value}, allow_nan=False)
            known[name] = value
    return known


def mend_end(path: Path) -> int:
    """End a file's last line, if nothing does, or cut it off where it is no JSON.

    Returns:
        Bytes that were cut off.
    """
    size = path.stat().st_size
    if not size:
        return 0
    with path.open("rb+") as file:
        line, start = b"", size
        while start and b"\n" not in line:
            start = max(start - _BLOCK, 0)
            file.seek(start)
            line = file.read(size - start)
        line = line.rpartition(b"\n")[2]
        if not line:
            return 0
        if line.strip() and not _is_json(line):
            file.truncate(size - len(line))
            return len(line)
        file.seek(size)
        file.write(b"\n")
    return 0


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
