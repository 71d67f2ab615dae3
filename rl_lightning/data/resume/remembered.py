"""What encoders remember, in files beside a checkpoint: each save writes what is new.

A folder `last.texts.<id>` holds, per rank, parts of rows and `state.pt`, which says which rows
there are. A later save links to the parts of the one before it, so that they cost no room twice.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from rl_lightning.core.checkpoints import read_archive
from rl_lightning.core.remembered import Remembered
from rl_lightning.data.replay.arrays import link

MOST_PARTS = 32  # more are written anew, as one
_PLACE = "beside the checkpoint"  # stands in the checkpoint where something is beside it


def take_out(state: Any) -> tuple[Any, list[Remembered]]:
    """A state without what is to be saved beside a checkpoint, and that, in its order."""
    found: list[Remembered] = []

    def keep(one: Remembered) -> Any:
        found.append(one)
        return {_PLACE: len(found) - 1}

    return _replaced(state, Remembered, keep), found


def put_back(state: Any, found: list[Remembered]) -> Any:
    """A state as it was before `take_out`, with what that has taken out."""
    return _replaced(state, Mapping, lambda one: found[one[_PLACE]])


def left_out(state: Any) -> tuple[Any, bool]:
    """A state that remembers nothing, and whether anything had been taken out of it."""
    taken: list[Any] = []

    def nothing(one: Any) -> Remembered:
        taken.append(one)
        return Remembered([], torch.empty(0, 0), torch.empty(0, dtype=torch.int64))

    return _replaced(state, Mapping, nothing), bool(taken)


def inside(state: Any) -> Any:
    """A state as plain data, with everything in it."""
    return _replaced(state, Remembered, Remembered.plain)


def _replaced(state: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(state, kind) and (kind is Remembered or _PLACE in state):
        return change(state)
    if isinstance(state, Mapping):
        return {key: _replaced(value, kind, change) for key, value in state.items()}
    if type(state) is list:
        return [_replaced(value, kind, change) for value in state]
    return state


class RememberedFiles:
    """Writes what a rank's encoders remember, save by save."""

    def __init__(self) -> None:
        self._last: Path | None = None
        self._parts: list[list[tuple[str, torch.Tensor]]] = []  # of the last save: names, serials

    def save(self, folder: Path, found: list[Remembered]) -> dict[str, Any]:
        """Write into an empty folder; returns what `read` needs besides.

        Args:
            folder: Where to. That of the save before must still be there.
            found: As `take_out` gave it.
        """
        if self._last is None or not self._last.is_dir() or len(self._parts) != len(found):
            self._parts = [[] for _ in found]
        written = [self._save(folder, *both) for both in zip(found, self._parts, strict=True)]
        self._last, self._parts = folder, written
        lists = zip(found, written, strict=True)
        return {"lists": [{"serials": one.serials, "parts": [n for n, _ in p]} for one, p in lists]}

    def _save(
        self, folder: Path, one: Remembered, parts: list[tuple[str, torch.Tensor]]
    ) -> list[tuple[str, torch.Tensor]]:
        newest = max((int(serials.max()) for _, serials in parts), default=-1)
        fresh = one.serials > newest
        there = sum(len(serials) for _, serials in parts)
        dropped = there - (len(fresh) - int(fresh.sum()))
        if len(parts) >= MOST_PARTS or 2 * dropped > there:
            parts, fresh = [], torch.ones_like(fresh)
        for name, _ in parts:
            assert self._last is not None
            link(self._last / name, folder / name)
        index = fresh.nonzero()[:, 0]
        if not len(index):
            return parts
        name, contents = f"{uuid4().hex}.pt", io.BytesIO()
        serials = one.serials[index]
        keys = [one.keys[i] for i in index.tolist()]
        torch.save({"keys": keys, "rows": one.rows[index], "serials": serials}, contents)
        (folder / name).write_bytes(contents.getbuffer())
        return [*parts, (name, serials)]


def read(folder: Path) -> list[Remembered]:
    """What `RememberedFiles.save` wrote into a folder, with its `state.pt`.

    Raises:
        Exception: Of any kind, if files are missing, damaged or a stranger's.
    """
    found = []
    for saved in read_archive(folder / "state.pt")["lists"]:
        parts = [read_archive(folder / Path(name).name) for name in saved["parts"]]
        places = {}
        for p, part in enumerate(parts):
            if not len(part["keys"]) == len(part["rows"]) == len(part["serials"]):
                raise ValueError("a part has not as many rows as keys")
            if part["serials"].dtype != torch.int64 or part["rows"].dim() != 2:
                raise ValueError("a part holds other things than rows")
            places.update({serial: (p, i) for i, serial in enumerate(part["serials"].tolist())})
        wanted = [places[serial] for serial in saved["serials"].tolist()]
        if len(set(wanted)) < len(wanted):
            raise ValueError("a row stands there twice")
        keys = [parts[p]["keys"][i] for p, i in wanted]
        starts = torch.tensor([0, *(len(part["keys"]) for part in parts)]).cumsum(0)
        index = torch.tensor([int(starts[p]) + i for p, i in wanted], dtype=torch.int64)
        rows = torch.cat([part["rows"] for part in parts])[index] if parts else torch.empty(0, 0)
        found.append(Remembered(keys, rows, saved["serials"]))
    return found
