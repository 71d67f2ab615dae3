"""Columns that keep each distinct entry once: texts, which repeat."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.types import Stored
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.dense import DenseColumn


class OnceColumn:
    """Each distinct entry once, and its number in every row: for texts, which repeat.

    What is equal is found by a 128-bit digest. Floats (features of a frozen language model) lie in
    one table; integers (token ids) at their own length, without trailing zeros. An entry goes when
    its last row is overwritten.

    Args:
        arena: Where the numbers and the table live.
        name: Of the arrays.
        rows: R.
        example: A batch `[B, ...]`, or a mapping of such.
        dtype: See `DenseColumn`.
    """

    def __init__(
        self, arena: Arena, name: str, rows: int, example: Stored, dtype: Any = None
    ) -> None:
        self.name = name
        self.slot = arena.new(f"{name}.slot", rows, (), np.int32)  # 0: none yet
        self._slot = torch.from_numpy(self.slot)
        self.nested = isinstance(example, Mapping)
        leaves: Any = example if isinstance(example, Mapping) else {"": example}
        self.tables: dict[str, _DenseTable | _RaggedTable] = {}
        for key, leaf in leaves.items():
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{name}.{key} must be a tensor to be stored once, not {leaf}")
            where = f"{name}.table.{key}".rstrip(".")
            self.tables[key] = (
                _DenseTable(arena, where, rows + 2, leaf, dtype)
                if leaf.is_floating_point()
                else _RaggedTable(leaf)
            )
        self._slots: dict[bytes, int] = {}
        self._digests: list[bytes] = [b""]
        self._uses: list[int] = [0]
        self._free: list[int] = []
        self.fresh: set[int] = set()  # table rows written since the last snapshot

    def __len__(self) -> int:
        return len(self._slots)

    def write(self, index: np.ndarray, x: Any, age: int = 0) -> None:
        leaves = x if self.nested else {"": x}
        arrays = {k: leaf.detach().cpu().contiguous().numpy() for k, leaf in leaves.items()}
        for number, row in enumerate(index.tolist()):
            digest = hashlib.blake2b(digest_size=16)
            for array in arrays.values():
                digest.update(array[number].data)
            new = self._slots.get(digest.digest())
            if new is None:
                new = self._add(digest.digest(), {k: a[number] for k, a in arrays.items()})
            self._uses[new] += 1
            old = int(self.slot[row])
            self.slot[row] = new
            if old:
                self._uses[old] -= 1
                if not self._uses[old]:
                    self._drop(old)

    def read(self, index: Tensor) -> Any:
        slots = self._slot.index_select(0, index).long()
        out = {key: table.read(slots) for key, table in self.tables.items()}
        return out if self.nested else out[""]

    @property
    def table_rows(self) -> int:
        """Rows of the tables that are or were in use, the empty first one included."""
        return len(self._digests)

    @property
    def table_bytes(self) -> int:
        """Bytes of all entries, with what finds them."""
        return sum(t.nbytes(self._slots.values()) for t in self.tables.values()) + 160 * len(self)

    def state(self) -> dict[str, Any]:
        """What a snapshot needs beside the arena's arrays."""
        ragged = {k: t.state() for k, t in self.tables.items() if isinstance(t, _RaggedTable)}
        return {
            "digests": _to_tensor(b"".join(self._digests[1:])),
            "uses": torch.tensor(self._uses),
            "free": torch.tensor(self._free, dtype=torch.int64),
            "ragged": ragged,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        all_digests = state["digests"].numpy().tobytes()
        self._uses, self._free = state["uses"].tolist(), state["free"].tolist()
        count = len(self._uses) - 1
        self._digests = [b"", *(all_digests[16 * i : 16 * i + 16] for i in range(count))]
        free = set(self._free)
        self._slots = {d: i for i, d in enumerate(self._digests) if i and i not in free}
        for key, rows in state["ragged"].items():
            table = self.tables[key]
            assert isinstance(table, _RaggedTable)
            table.load_state(rows)

    def _add(self, digest: bytes, leaves: dict[str, np.ndarray]) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._digests)
            self._digests.append(b"")
            self._uses.append(0)
        self._digests[slot] = digest
        self._slots[digest] = slot
        self.fresh.add(slot)
        for key, leaf in leaves.items():
            self.tables[key].put(slot, leaf)
        return slot

    def _drop(self, slot: int) -> None:
        del self._slots[self._digests[slot]]
        self._digests[slot] = bytes(16)
        self._free.append(slot)


class _DenseTable(DenseColumn):
    def put(self, slot: int, leaf: np.ndarray) -> None:
        self.keep(slot, leaf)

    def nbytes(self, slots: Any) -> int:
        return len(slots) * self.row_bytes()


class _RaggedTable:
    def __init__(self, example: Tensor) -> None:
        self.given = example.dtype
        self.shape = example.shape[1:]
        self.dtype = example.cpu().numpy().dtype
        self.rows: list[bytes] = [b""]

    def put(self, slot: int, leaf: np.ndarray) -> None:
        flat = leaf.reshape(-1)
        used = np.flatnonzero(flat)
        data = flat[: used[-1] + 1 if len(used) else 0].tobytes()
        if slot == len(self.rows):
            self.rows.append(data)
        else:
            self.rows[slot] = data

    def read(self, slots: Tensor) -> Tensor:
        out = np.zeros((len(slots), int(np.prod(self.shape))), self.dtype)
        for row, slot in zip(out, slots.tolist(), strict=True):
            data = np.frombuffer(self.rows[slot], self.dtype)
            row[: len(data)] = data
        return torch.from_numpy(out).view(len(slots), *self.shape)

    def nbytes(self, slots: Any) -> int:
        return sum(len(self.rows[slot]) + 33 for slot in slots)

    def state(self) -> dict[str, Tensor]:
        return {
            "lengths": torch.tensor([len(row) for row in self.rows]),
            "data": _to_tensor(b"".join(self.rows)),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        data, self.rows, start = state["data"].numpy().tobytes(), [], 0
        for length in state["lengths"].tolist():
            self.rows.append(data[start : start + length])
            start += length


def _to_tensor(data: bytes) -> Tensor:
    """Bytes as `torch.load` takes them from strangers."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
