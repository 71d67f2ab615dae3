"""Text → row of a tensor, computed once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl_lightning.errors import ConfigurationError


class TextCache:
    """A bounded map from text to a row, that drops the least recently used text when it is full.

    The key is the whole text, so a hit can only be that text's own row. Rows live in one CPU tensor
    that doubles until it has `capacity` rows: a lookup is one dict access per text and one
    `index_select` per batch (about 10 µs for 16 texts). One cache belongs to one model: whose rows
    they are is for its owner to know.

    Args:
        capacity: Most texts kept; 0 keeps none, and only spares the duplicates within one batch.
        width: Elements of a row.
        dtype: Of the rows.

    Attributes:
        hits: Texts answered without computing them: those in the cache, and second and later
            occurrences within one batch. Owners read it and set it back to 0.
        lookups: Texts asked for.

    Raises:
        ConfigurationError: For a negative `capacity`.
    """

    FIRST_ROWS = 1024

    def __init__(self, capacity: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        if capacity < 0:
            raise ConfigurationError(f"cache_size={capacity}: give a number of texts, or 0")
        self.capacity = capacity
        self.width = width
        self.dtype = dtype
        self.hits = 0
        self.lookups = 0
        self.clear()

    def __len__(self) -> int:
        return len(self._slots)

    def clear(self) -> None:
        """Forget all texts."""
        self._slots: OrderedDict[str, int] = OrderedDict()  # oldest use first
        self._rows = torch.empty(0, self.width, dtype=self.dtype)

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
        missing = [text for text in dict.fromkeys(texts) if text not in self._slots]
        rows = compute(missing).to(self._rows)  # [M, width]
        self.hits += len(texts) - len(missing)
        known = [i for i, text in enumerate(texts) if text in self._slots]
        out = torch.empty(len(texts), self.width, dtype=self.dtype)
        out[known] = self._rows[[self._slots[texts[i]] for i in known]]
        new = {text: i for i, text in enumerate(missing)}
        unknown = [i for i, text in enumerate(texts) if text in new]
        out[unknown] = rows[[new[texts[i]] for i in unknown]]
        for i in known:
            self._slots.move_to_end(texts[i])
        self._add(missing, rows)
        return out

    def _add(self, texts: list[str], rows: Tensor) -> None:
        if self.capacity == 0:
            return
        texts, rows = texts[-self.capacity :], rows[-self.capacity :]
        too_many = max(0, len(self) + len(texts) - self.capacity)
        slots = [self._slots.popitem(last=False)[1] for _ in range(too_many)]
        used = len(self) + too_many
        slots += range(used, used + len(texts) - too_many)
        self._reserve(used + len(texts) - too_many)
        self._rows[slots] = rows
        self._slots.update(zip(texts, slots, strict=True))

    def _reserve(self, rows: int) -> None:
        have = len(self._rows)
        if rows > have:
            size = min(self.capacity, max(rows, 2 * have, self.FIRST_ROWS))
            grown = torch.empty(size, self.width, dtype=self.dtype)
            grown[:have] = self._rows
            self._rows = grown

    def state(self) -> tuple[list[str], Tensor]:
        """The texts, least recently used first, and a copy of their rows `[n, width]`."""
        return list(self._slots), self._rows[list(self._slots.values())]

    def load_state(self, texts: list[str], rows: Tensor) -> None:
        """Hold what `state` returned and nothing else; where it is too much, its newest part."""
        self.clear()
        self._add(texts, rows)
