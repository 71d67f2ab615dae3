"""Which data are learned from and which are held out, and in which order: by numbers alone."""

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError


class Order:
    """The numbers 0 … total − 1 in passes that follow each other, each in an order of its own.

    Which number stands at which place of that endless line is a function of the seed and the place,
    so a resumed run needs to know no more than how far it had come.

    Args:
        total: How many there are.
        *seed: Whole numbers; the same ones give the same order.

    Raises:
        ConfigurationError: If there are none.
    """

    def __init__(self, total: int, *seed: int) -> None:
        if total < 1:
            raise ConfigurationError("there is nothing to learn from: the data are empty")
        self.total, self.seed = total, seed
        self._last: tuple[int, Tensor] | None = None  # the pass that was asked for last

    def __call__(self, first: int, count: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """A rank's share of the next numbers, int64 `[count]`.

        The ranks together have `count · ranks` numbers from place `first` on; each rank has every
        ranks-th of them, and within a pass no two have the same.

        Args:
            first: Place of the first one of all ranks.
            count: Numbers of each rank.
            rank: Whose.
            ranks: How many there are.
        """
        places = torch.arange(first + rank, first + count * ranks, ranks)
        passes = places // self.total
        parts = [
            self._pass(int(number))[places[passes == number] % self.total]
            for number in passes.unique()  # in order
        ]
        return torch.cat(parts) if parts else places

    def _pass(self, number: int) -> Tensor:
        if self._last is None or self._last[0] != number:
            rng = np.random.default_rng([*self.seed, number])
            self._last = number, torch.from_numpy(rng.permutation(self.total))
        return self._last[1]


def split(keys: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which rows are for validation, bool `[n]`: those of a random share of the different keys.

    Equal keys are on one side, so nothing that is validated by was trained on.

    Args:
        keys: Whole numbers `[n]`.
        share: In [0, 1).
        rng: Draws.
    """
    different = np.unique(keys)
    held_out = rng.permutation(different)[: round(share * len(different))]
    return np.isin(keys, held_out)
