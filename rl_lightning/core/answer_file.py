"""Answers on disk: one line each, written when it arrives, shared by processes."""

import contextlib
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rl_lightning.core.errors import ConfigurationError

_LOCK = threading.RLock()  # of all files: whoever holds one can be copied and pickled


class AnswerFile:
    """A JSONL file of `{"key", "question", "answer"}` that only ever grows.

    A line is written under a lock, with one call, as soon as there is an answer: what a process
    killed in the middle of it leaves is passed over, and costs its own answer alone. Processes that
    share the file see each other's answers. Where two have asked the same, the first answer stands.

    Args:
        path: The file; it, and its folder, are made with the first answer.

    Raises:
        ConfigurationError: If the path is a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            raise ConfigurationError(f"cache: {path} is a folder; name a file, e.g. answers.jsonl")
        self.known: dict[str, Any] = {}
        """Answers by key, as far as the file has been read."""
        self._read = 0  # bytes

    def refresh(self) -> None:
        """Read what others have written since."""
        with _LOCK:
            if self.path.is_file():
                with self._opened("rb") as file:
                    self._read_on(file)

    def keep(self, key: str, question: Any, answer: Any) -> Any:
        """Write an answer down, unless there is one.

        Returns:
            The answer that stands.
        """
        with _LOCK:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._opened("a+b") as file:
                torn = self._read_on(file)
                if key not in self.known:
                    entry = {"key": key, "question": question, "answer": answer}
                    line = b"\n" * torn + json.dumps(entry).encode() + b"\n"
                    file.write(line)
                    file.flush()
                    self._read += 0 if torn else len(line)
                    self.known[key] = answer
        return self.known[key]

    @contextlib.contextmanager
    def _opened(self, mode: str) -> Iterator[IO[bytes]]:
        with self.path.open(mode) as file:
            with contextlib.suppress(ImportError, OSError):
                import fcntl  # not on every system: there, one process at a time

                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read_on(self, file: IO[bytes]) -> bool:
        """Read whole lines that are new; whether there is the beginning of another one behind."""
        file.seek(self._read)
        rest = file.read()
        whole, newline, begun = rest.rpartition(b"\n")
        self._read += len(whole) + len(newline)
        damaged = 0
        for line in whole.split(b"\n"):
            entry = _entry(line)
            if entry is not None:
                self.known.setdefault(entry["key"], entry["answer"])
            elif line.strip():
                damaged += 1
        if damaged:
            warnings.warn(
                f"cache: {damaged} lines of {self.path} are no answers, as those of a killed "
                "process may be: they are passed over, and asked for again",
                stacklevel=2,
            )
        return bool(begun)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and isinstance(entry.get("key"), str) and "answer" in entry
    return entry if known else None
