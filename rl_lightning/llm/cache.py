"""Text → row of a tensor, computed once."""

import hashlib
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.remembered import Remembered

# Longer texts are known by a digest: a page of 2 MB is no key.
LONGEST_KEY = 1024
# Of Python's, per entry: a place in the table of keys, a number.
_OVERHEAD = 128

Key = str | bytes
_CACHES = itertools.count()


class TextCache:
    """A bounded map from text to a row, that drops the least recently used texts when it is full.

    The key is the whole text, or of a long one its 256-bit digest, so a hit can only be that text's
    own row. Rows live in one CPU tensor that doubles as needed: a lookup is one dict access per
    text and one `index_select` per batch (about 10 µs for 16 texts). One cache belongs to one
    model: whose rows they are is for its owner to know.

    Args:
        capacity: Most texts kept; 0 keeps none, and only spares the duplicates within one batch.
        width: Elements of a row.
        dtype: Of the rows.
        max_bytes: Most memory of what is kept, rows and keys together; None: no limit.

    Attributes:
        hits: Texts answered without computing them: those in the cache, and second and later
            occurrences within one batch. Owners read it and set it back to 0.
        lookups: Texts asked for.

    Raises:
        ConfigurationError: For a negative `capacity` or `max_bytes`.
    """

    FIRST_ROWS = 1024

    def __init__(
        self,
        capacity: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        max_bytes: int | None = None,
    ) -> None:
        if capacity < 0:
            raise ConfigurationError(f"cache_size={capacity}: give a number of texts, or 0")
        if max_bytes is not None and max_bytes < 0:
            raise ConfigurationError(f"cache_bytes={max_bytes}: give a number of bytes, or 0")
        self.width = width
        self.dtype = dtype
        self._row_bytes = width * dtype.itemsize
        self.max_bytes = max_bytes
        most = capacity if max_bytes is None else max_bytes // (self._row_bytes + _OVERHEAD)
        self.capacity = min(capacity, most)
        self.hits = 0
        self.lookups = 0
        # Rows ever, also of texts that were dropped or forgotten; higher than any other cache's.
        self._added = next(_CACHES) << 40
        self.clear()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        return len(self) * self._row_bytes + self._key_bytes

    def clear(self) -> None:
        """Forget all texts."""
        self._slots: OrderedDict[Key, int] = OrderedDict()  # oldest use first
        self._free: list[int] = []  # slots of dropped texts
        self._key_bytes = 0
        self._rows = torch.empty(0, self.width, dtype=self.dtype)
        self._serials = torch.empty(0, dtype=torch.int64)

    def get(self, texts: Sequence[str], compute: Callable[[list[str]], Tensor]) -> Tensor:
        """Rows of `texts`; `compute` is asked, once, for those that are not here.

        Args:
            texts: `B` texts, with repetitions.
            compute: Rows `[M, width]` of `M` distinct texts. Runs without gradient.

        Returns:
            A new tensor `[B, width]`, on the CPU.
        """
        self.lookups += len(texts)
        slots = self._slots
        try:
            found = [slots[text] for text in texts]
        except KeyError:
            # Not in inference mode: the rows it makes could not be overwritten outside of it.
            with torch.inference_mode(False), torch.no_grad():
                return self._get_and_add(texts, compute)
        self.hits += len(texts)
        for text in texts:
            slots.move_to_end(text)
        return self._rows.index_select(0, torch.tensor(found, dtype=torch.long))

    def _get_and_add(self, texts: Sequence[str], compute: Callable[[list[str]], Tensor]) -> Tensor:
        keys = [_key(text) for text in texts]
        missing = {
            key: text for key, text in zip(keys, texts, strict=True) if key not in self._slots
        }
        known = [i for i, key in enumerate(keys) if key in self._slots]
        out = torch.empty(len(texts), self.width, dtype=self.dtype)
        out[known] = self._rows[[self._slots[keys[i]] for i in known]]
        self.hits += len(texts) - len(missing)
        if missing:
            rows = compute(list(missing.values())).to(self._rows)  # [M, width]
            new = {key: i for i, key in enumerate(missing)}
            unknown = [i for i, key in enumerate(keys) if key in new]
            out[unknown] = rows[[new[keys[i]] for i in unknown]]
        for i in known:
            self._slots.move_to_end(keys[i])
        if missing:
            self._add(list(missing), rows)
        return out

    def _add(self, keys: Sequence[Key], rows: Tensor) -> None:
        """Keep rows of keys that are not here; of too many, the last ones."""
        first = self._first_that_fits(keys)
        keys, rows = keys[first:], rows[first:]
        if not keys:
            return
        for key in keys:
            self._key_bytes += _size(key)
        while self._slots and self._too_much(len(keys)):
            key, slot = self._slots.popitem(last=False)
            self._key_bytes -= _size(key)
            self._free.append(slot)
        used = len(self) + len(self._free)
        slots = self._free[: len(keys)]
        slots += range(used, used + len(keys) - len(slots))
        self._free = self._free[len(keys) :]
        self._reserve(max(slots) + 1)
        self._rows[slots] = rows
        self._serials[slots] = torch.arange(self._added, self._added + len(keys))
        self._added += len(keys)
        self._slots.update(zip(keys, slots, strict=True))

    def _first_that_fits(self, keys: Sequence[Key]) -> int:
        """From where on these keys and their rows have room in an empty cache."""
        first = max(0, len(keys) - self.capacity)
        if self.max_bytes is not None:
            room, start = self.max_bytes, len(keys)
            while start > first:
                room -= self._row_bytes + _size(keys[start - 1])
                if room < 0:
                    return start
                start -= 1
        return first

    def _too_much(self, more: int) -> bool:
        """Whether there is no room for so many more rows, whose keys are counted already."""
        rows = len(self) + more
        return rows > self.capacity or (
            self.max_bytes is not None and rows * self._row_bytes + self._key_bytes > self.max_bytes
        )

    def _reserve(self, rows: int) -> None:
        have = len(self._rows)
        if rows > have:
            size = min(self.capacity, max(rows, 2 * have, self.FIRST_ROWS))
            grown = torch.empty(size, self.width, dtype=self.dtype)
            grown[:have] = self._rows
            self._rows = grown
            serials = torch.zeros(size, dtype=torch.int64)
            serials[:have] = self._serials
            self._serials = serials

    def state(self) -> Remembered:
        """The keys, least recently used first, and copies of their rows and numbers."""
        slots = list(self._slots.values())
        return Remembered(list(self._slots), self._rows[slots], self._serials[slots])

    def load_state(self, keys: Sequence[Key], rows: Tensor) -> None:
        """Hold what `state` returned and nothing else; where it is too much, its newest part.

        Raises:
            ValueError: If these are no finite rows of this width, one for each of different keys.
        """
        self.clear()
        known = [key if isinstance(key, bytes) else _key(key) for key in keys]
        if not known:
            return
        if not all(isinstance(key, str | bytes) for key in known) or len(set(known)) < len(known):
            raise ValueError("not every key is another text")
        if not isinstance(rows, Tensor) or rows.shape != (len(known), self.width):
            raise ValueError(f"they are not {len(known)} rows of {self.width}")
        if rows.dtype != self.dtype or not torch.isfinite(rows).all():
            raise ValueError(f"they are not finite {self.dtype}")
        self._add(known, rows)


def _key(text: str) -> Key:
    if not isinstance(text, str) or len(text) <= LONGEST_KEY:  # what is no text, `compute` refuses
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def _size(key: Key) -> int:
    return sys.getsizeof(key) + _OVERHEAD
