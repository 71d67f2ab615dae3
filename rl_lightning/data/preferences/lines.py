"""A JSONL file of comparisons, or of scored texts, as items."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.charset import PRINTABLE
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.order import split
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.preferences.questions import Questions
from rl_lightning.rewards.labels.rule import read_rows


class Lines:
    """The texts of a file, as a `Source`; an item is a different text.

    Args:
        path: JSONL. For comparisons `{"a": text, "b": text, "label": 0}` a line, 1 if b is the
            better one, 0.5 for a tie; for single labels `{"text": text, "label": number}`. A line
            without label is asked about.

    Raises:
        ConfigurationError: If there is no such file, or a line is neither.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._rows = read_rows(path)
        if not self._rows:
            raise ConfigurationError(f"data.dataset: {path} is empty")
        numbers: dict[str, int] = {}
        self._items, self._labels = [], []
        self.size = 1 if "text" in self._rows[0] else 2
        names = ("text",) if self.size == 1 else ("a", "b")
        for number, row in enumerate(self._rows, 1):
            texts, label = [row.get(name) for name in names], row.get("label")
            known = label is None or (
                isinstance(label, int | float)
                and not isinstance(label, bool)
                and math.isfinite(label)
            )
            if not all(isinstance(text, str) for text in texts) or not known:
                raise ConfigurationError(
                    f"data.dataset: line {number} of {path} must have {' and '.join(names)}, texts "
                    'as in the first line, and a number as label, or none: {"a": …, "b": …, '
                    '"label": 0}'
                )
            self._items.append([numbers.setdefault(str(t), len(numbers)) for t in texts])
            self._labels.append(math.nan if label is None else float(label))
        self._texts = list(numbers)
        longest = max(map(len, self._texts))
        space = gym.spaces.Text(max(longest, 1), min_length=0, charset=PRINTABLE)
        self.spec = EnvSpec(space, gym.spaces.Discrete(1), "texts")

    def questions(self, count: int, val_share: float, size: int, seed: int) -> Sequence[Questions]:
        if size != self.size:
            has, wants = ("single texts", "pairs") if self.size == 1 else ("pairs", "single texts")
            raise ConfigurationError(
                f"data.dataset: {self.path} holds {has}, and this model.objective needs {wants}"
            )
        items, labels = np.array(self._items, np.int64), np.array(self._labels)
        # The same pair the other way round stays on the same side.
        _, keys = np.unique(np.sort(items, axis=1), axis=0, return_inverse=True)
        validates = split(keys.reshape(-1), val_share, np.random.default_rng([seed, 0]))
        return [Questions(items[which], labels[which]) for which in (~validates, validates)]

    def text(self, item: int) -> str:
        return self._texts[item]

    def observations(self, items: np.ndarray, size: int) -> Iterator[tuple[Any, Any, Any]]:
        for start in range(0, len(items), size):
            texts = tuple(self._texts[i] for i in items[start : start + size])
            yield None, None, texts
