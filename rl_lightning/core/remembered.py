"""What an encoder remembers of observations it has seen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Remembered(NamedTuple):
    """Rows that were computed once, as a part of a `collection_state`.

    There may be many, and few new ones since the last checkpoint: so they are saved beside
    checkpoints, by what is new, and not in them.
    """

    keys: list[str | bytes]
    """Whose rows they are, least recently used first: a text, or the digest of a long one."""
    rows: Tensor
    """`[n, D]`."""
    serials: Tensor
    """int64 `[n]`: they rise from row to row in the order in which rows were computed, and the
    same number means the same row, for as long as the encoder lives."""

    def plain(self) -> dict[str, Any]:
        """As a checkpoint holds it that nothing goes beside."""
        return {"keys": self.keys, "rows": self.rows}

    @classmethod
    def of(cls, saved: "Remembered | Mapping[str, Any]") -> "Remembered":
        """What was saved in either way."""
        if isinstance(saved, Remembered):
            return saved
        return cls(saved["keys"], saved["rows"], saved["rows"].new_zeros(0))
