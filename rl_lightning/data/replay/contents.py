"""A replay buffer as files, and back."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import Stored
from rl_lightning.data.replay.columns import leaves
from rl_lightning.data.replay.dense import DenseColumn
from rl_lightning.data.replay.once import OnceColumn
from rl_lightning.data.replay.rows import STARTS, ReplayRows


class ReplayFiles(ReplayRows):
    """Rows that can be written into a folder, what is new alone, and read again."""

    _saved_counts: np.ndarray | None

    def _leaves(self) -> list[DenseColumn | OnceColumn]:
        return [leaf for column in self.columns.values() for leaf in leaves(column)]

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the contents into an empty folder; returns what `load` needs besides."""
        before, tables = self._saved_counts, {}
        for leaf in self._leaves():
            if isinstance(leaf, OnceColumn):
                fresh = np.array(sorted(leaf.fresh), np.int64)
                tables |= {f"{leaf.name}.table{k and '.'}{k}": fresh for k in leaf.tables}

        def dirty(name: str, start: int, stop: int) -> bool:
            if name == "end":  # an episode's end is written to all of its rows
                return True
            if ".table" in name:
                fresh = next(v for k, v in tables.items() if k == name)
                return bool(((fresh >= start) & (fresh < stop)).any())
            return before is None or self._touched(before, start, stop)

        self.arena.save(folder, self._used_rows(), dirty)
        self._saved_counts = self._counts.copy()
        once = {}
        for leaf in self._leaves():
            if isinstance(leaf, OnceColumn):
                leaf.fresh.clear()
                once[leaf.name] = leaf.state()
        state: dict[str, Any] = {
            "rows": self.rows,
            "head": torch.from_numpy(self.head.copy()),
            "counts": torch.from_numpy(self._counts.copy()),
            "first": torch.from_numpy(self._first.copy()),
            "once": once,
            "mask_dim": self.mask_dim,
        }
        if self.priorities is not None:
            state |= self.priorities.state(self.used)
        return state

    def load(
        self,
        folder: Path,
        state: dict[str, Any],
        x: Stored,
        action: Tensor,
    ) -> None:
        """Restore what `save` wrote.

        Args:
            folder: Where `save` wrote to.
            state: What it returned.
            x: An observation `[B, ...]`, for the columns' shapes.
            action: An action `[B, ...]`, likewise.

        Raises:
            ConfigurationError: If it was another kind of buffer.
        """
        if state["rows"] != self.rows or len(state["head"]) != self.num_envs:
            raise ConfigurationError(
                f"data.buffer_frames: the saved replay buffer has {state['rows']} rows for "
                f"{len(state['head'])} environments, this one {self.rows} for {self.num_envs}; "
                "resume with the same data.buffer_frames and data.num_envs"
            )
        if "mask_dim" not in state:
            raise ConfigurationError(
                f"the replay contents in {folder} are of an earlier version; set "
                "data.save_replay: false to go on without them"
            )
        self._make_columns(x)
        if state["mask_dim"]:
            self._make_mask_column(state["mask_dim"])
        self._stacks = []
        self.columns["action"] = self._action_column(action)
        self.head = state["head"].numpy().copy()
        self._counts = state["counts"].numpy().copy()
        self._first = state["first"].numpy().copy()
        for leaf in self._leaves():
            if isinstance(leaf, OnceColumn):
                leaf.load_state(state["once"][leaf.name])
        self.arena.load(folder, self._used_rows())
        self._saved_counts = self._counts.copy()
        if self.priorities is not None:
            self.priorities.load(state, np.flatnonzero(self._flags & STARTS))

    def _used_rows(self) -> dict[str, int]:
        used = dict.fromkeys(self.arena.arrays, self.used)
        for leaf in self._leaves():
            if isinstance(leaf, OnceColumn):
                for key in leaf.tables:
                    used[f"{leaf.name}.table{key and '.'}{key}"] = leaf.table_rows
        return used

    def _touched(self, before: np.ndarray, start: int, stop: int) -> bool:
        """Whether flat rows `start` to `stop` were written since `before`."""
        if (self._counts - before >= self.rows).any():
            return True
        low, high = start // self.num_envs, (stop - 1) // self.num_envs
        for old, new in zip(before.tolist(), self._counts.tolist(), strict=True):
            # The newest row at `before` was completed after it; a stack's loss reaches further.
            begin = max(old - 1, 0) % self.rows
            length = new - max(old - 1, 0) + self.stack - 1
            if length >= self.rows or (low - begin) % self.rows < length:
                return True
            if (begin - low) % self.rows <= high - low:
                return True
        return False
