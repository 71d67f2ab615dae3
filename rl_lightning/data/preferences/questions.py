"""Comparisons to be labelled, and where their observations come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec

TRIES = 100  # at drawing a second text that differs from the first


@dataclass
class Questions:
    """P questions: which of K = 2 items is the better one, or what K = 1 item is worth.

    Attributes:
        items: Numbers of items of a source, int64 `[P, K]`.
        labels: Answers, float64 `[P]`; NaN where somebody is to be asked.
    """

    items: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def known(self) -> "Questions":
        """Those that have an answer."""
        there = ~np.isnan(self.labels)
        return Questions(self.items[there], self.labels[there])


class Source(Protocol):
    """Where items come from: observations, or transitions, with the text of each."""

    spec: EnvSpec

    def questions(self, count: int, val_share: float, size: int, seed: int) -> Sequence[Questions]:
        """Questions to train on, and others to validate by.

        Args:
            count: Of both together; a source with questions of its own has as many as it has.
            val_share: Share of the latter.
            size: K.
            seed: The same seed draws the same.
        """
        ...

    def text(self, item: int) -> str:
        """What is asked about an item."""
        ...

    def observations(self, items: np.ndarray, size: int) -> Iterator[tuple[Any, Any, Any]]:
        """What items consist of, in blocks of `size`: observations, actions, next observations,
        batched as a vector env batches; the first two are None where there are no transitions.

        Args:
            items: Their numbers, ascending, each once.
            size: Of a block.
        """
        ...


def draw(
    rows: np.ndarray, keys: np.ndarray, count: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw items uniformly from rows, int64 `[count, size]`; the keys of the two of a pair differ.

    Args:
        rows: Numbers of the items to draw from.
        keys: Of all items, by number.
        count: Of draws.
        size: 1 or 2.
        rng: Draws.

    Raises:
        ConfigurationError: If there are not enough different ones.
    """
    if not count:
        return np.zeros((0, size), np.int64)
    different = len(np.unique(keys[rows]))
    if different < size:
        raise ConfigurationError(
            f"data.dataset: a comparison needs {size} different observations, and there are "
            f"{different} to draw from: record more episodes, or change data.val_share"
        )
    drawn = rng.choice(rows, (count, size))
    for _ in range(TRIES):
        if size == 1:
            break
        same = keys[drawn[:, 0]] == keys[drawn[:, 1]]
        if not same.any():
            break
        drawn[same, 1] = rng.choice(rows, int(same.sum()))
    else:  # nearly all rows are alike: the second ones from those that are not
        for row in np.flatnonzero(keys[drawn[:, 0]] == keys[drawn[:, 1]]):
            drawn[row, 1] = rng.choice(rows[keys[rows] != keys[drawn[row, 0]]])
    return drawn
