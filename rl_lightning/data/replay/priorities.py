"""Priorities of replayed rows, and drawing by them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning.data.replay.sum_tree import SumTree


class Priorities:
    """Proportional prioritisation (Schaul et al. 2016) of a buffer's rows.

    What is written and overwritten is only noted down, and brought into the tree all at once, right
    before the next draw. New rows get the largest priority so far.

    Args:
        size: Rows.
        starting: Of rows, int64 `[N]`, says whether transitions start there, bool `[N]`.
    """

    def __init__(self, size: int, starting: Callable[[np.ndarray], np.ndarray]) -> None:
        self.tree = SumTree(size)
        self.starting = starting
        self.largest = 1.0
        self._new: list[np.ndarray] = []  # rows that wait for a priority
        self._gone: list[np.ndarray] = []  # rows that lost theirs

    @property
    def itemsize(self) -> int:
        """Bytes of one priority."""
        return self.tree.leaves.itemsize

    def add(self, rows: np.ndarray) -> None:
        """Transitions start at these rows from now on."""
        self._new.append(rows)

    def remove(self, rows: np.ndarray) -> None:
        """What these rows held is gone."""
        self._gone.append(rows)

    def draw(self, count: int, beta: float) -> tuple[Tensor, Tensor]:
        """Rows in proportion to their priorities, stratified.

        Returns:
            Rows, int64 `[count]`, and importance weights (n · P(i))^−β / max, float32 `[count]`.
        """
        self.settle()
        uniform = torch.rand(count, dtype=torch.float64).numpy()
        rows = self.tree.sample(uniform)
        share = self.tree.get(rows) / self.tree.total
        weight = share**-beta  # n would cancel
        weight = torch.from_numpy(weight / weight.max()).float()
        return torch.from_numpy(rows), weight

    def change(self, index: Tensor, priority: Tensor) -> None:
        """Set the priorities of rows that were drawn before, `[N]` each."""
        values = priority.detach().double().cpu().numpy()
        rows = index.numpy()
        self.largest = max(self.largest, float(values.max()))
        alive = self.starting(rows)
        if self._gone:  # since they were drawn: the row is another transition's, or none's
            alive &= ~np.isin(rows, np.concatenate(self._gone))
        self.settle()
        self.tree.update(rows[alive], values[alive])

    def settle(self) -> None:
        """Bring the tree up to date with what was written."""
        if self._gone:
            gone = np.concatenate(self._gone)
            self.tree.update(gone, np.zeros(len(gone)))
            self._gone.clear()
        if self._new:
            new = np.concatenate(self._new)
            new = new[self.starting(new)]
            self.tree.update(new, np.full(len(new), self.largest))
            self._new.clear()

    def state(self, used: int) -> dict[str, Any]:
        """What `load` restores, of the first `used` rows."""
        self.settle()
        leaves = torch.from_numpy(self.tree.leaves[:used].copy())
        return {"priorities": leaves, "max_priority": self.largest}

    def load(self, state: dict[str, Any], started: np.ndarray) -> None:
        """Restore what `state` returned; where there is nothing of it, all are drawn alike.

        Args:
            state: Of a buffer, prioritised or not.
            started: All rows at which transitions start.
        """
        values = np.zeros(self.tree.size)
        if "priorities" in state:
            saved = state["priorities"].numpy()
            values[: len(saved)] = saved
            self.largest = state["max_priority"]
        else:
            values[started] = 1.0
        self.tree.load(values)
