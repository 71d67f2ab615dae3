"""Writing the rows of a replay buffer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.types import Stored
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.columns import NestedColumn, leaves, make_column
from rl_lightning.data.replay.dense import DenseColumn, StackColumn
from rl_lightning.data.replay.priorities import Priorities

STARTS, TERMINATED, TRUNCATED = 1, 2, 4  # bits of a row's flags


class ReplayRows:
    """A ring of rows for each environment, into which episodes are written."""

    rows: int
    num_envs: int
    size: int
    stack: int
    dtype: Any
    repeats: bool | Mapping[str, Any]
    action_dtype: Any
    arena: Arena
    columns: dict[str, Any]
    priorities: Priorities | None
    head: np.ndarray
    _flags: np.ndarray
    _reward: np.ndarray
    _end: np.ndarray | None
    _counts: np.ndarray
    _first: np.ndarray
    _all: np.ndarray
    _stacks: list[StackColumn]
    _is_plain: bool

    @property
    def used(self) -> int:
        """Rows in use, flat."""
        raise NotImplementedError

    def begin(
        self, x: Stored, columns: np.ndarray | None = None, mask: Tensor | None = None
    ) -> None:
        """Write the first observation of an episode.

        Args:
            x: Preprocessed, `[b, ...]`.
            columns: The b environments; None: all of them.
            mask: Allowed actions, bool `[b, A]`.
        """
        columns = self._all if columns is None else columns
        if self._end is not None:
            self._close(columns)
        for age in range(self.stack - 1, 0, -1):
            self._push(x, columns, mask, age)
        self._first[columns] = self._counts[columns]
        self._push(x, columns, mask)

    def push(
        self, x: Stored, columns: np.ndarray | None = None, mask: Tensor | None = None
    ) -> None:
        """Write the next observation of an episode; arguments as for `begin`."""
        if columns is None and mask is None and self._is_plain:
            self._push_one(x)
            return
        flat = self._push(x, self._all if columns is None else columns, mask)
        if self._stacks:
            self._check_stacks(flat, x)

    def act(
        self,
        action: Tensor,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        columns: np.ndarray | None = None,
    ) -> None:
        """Write what was done at the newest observations, and what came of it, `[b, ...]` each."""
        if "action" not in self.columns:
            self.columns["action"] = self._action_column(action)
        if columns is None and self._is_plain:
            row = int(self.head[0])
            self.columns["action"].write_one(row, action)
            self._reward[row] = reward[0]
            ended = TERMINATED if terminated[0] else TRUNCATED if truncated[0] else 0
            self._flags[row] = STARTS | ended
            return
        columns = self._all if columns is None else columns
        flat = self.head[columns] * self.num_envs + columns
        self.columns["action"].write(flat, action)
        self._reward[flat] = reward
        self._flags[flat] = _ended(terminated, truncated)
        if self.priorities is not None:
            self.priorities.add(flat)

    def extend(
        self,
        x: Stored,
        action: Tensor,
        reward: np.ndarray,
        starts: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        mask: Tensor | None = None,
    ) -> None:
        """Write n consecutive rows of a single environment at once, of recorded episodes.

        Args:
            x: Preprocessed, `[n, ...]`.
            action: `[n, ...]`; what stands at a final observation does not matter.
            reward: `[n]`.
            starts: Whether a transition begins there: everywhere but at final observations, `[n]`.
            terminated: `[n]`.
            truncated: `[n]`.
            mask: Allowed actions, bool `[n, A]`.
        """
        assert self.num_envs == 1
        assert self.stack == 1
        assert self.priorities is None
        assert self._end is None
        if "obs" not in self.columns:
            self._make_columns(x)
            self.columns["action"] = self._action_column(action)
        count = len(reward)
        flat = (self.head[0] + 1 + np.arange(count)) % self.rows
        self.head[0] = flat[-1]
        self._counts[0] += count
        self.columns["obs"].write(flat, x)
        self.columns["action"].write(flat, action)
        self._write_mask(flat, mask)
        self._reward[flat] = reward
        self._flags[flat] = _ended(terminated, truncated) * starts

    def _close(self, columns: np.ndarray) -> None:
        """Remember where the last episodes of some environments ended."""
        assert self._end is not None
        for b in columns.tolist():
            end = int(self._counts[b]) - 1
            counts = np.arange(max(int(self._first[b]), end - self.rows + 1), end + 1)
            self._end[counts % self.rows * self.num_envs + b] = self.head[b]

    def _action_column(self, action: Tensor) -> DenseColumn:
        return DenseColumn(self.arena, "action", self.size, action, self.action_dtype)

    def _push(
        self, x: Stored, columns: np.ndarray, mask: Tensor | None, age: int = 0
    ) -> np.ndarray:
        if "obs" not in self.columns:
            self._make_columns(x)
        self.head[columns] = head = (self.head[columns] + 1) % self.rows
        self._counts[columns] += 1
        flat = head * self.num_envs + columns
        # The row's transition is gone, and so is the oldest stack that needed its frame.
        lost = flat
        if self.stack > 1:
            lost = np.concatenate([flat, (flat + (self.stack - 1) * self.num_envs) % self.size])
        self._flags[lost] = 0
        if self.priorities is not None:
            self.priorities.remove(lost)
        self.columns["obs"].write(flat, x, age)
        self._write_mask(flat, mask)
        if self._end is not None:
            self._end[flat] = -1
        self.arena.touch(len(flat))
        return flat

    def _push_one(self, x: Stored) -> None:
        """`_push` of a plain buffer, for which one row is a number and no array of numbers."""
        row = int(self.head[0]) + 1
        if row == self.rows:
            row = 0
        self.head[0] = row
        self._counts[0] += 1
        self._flags[row] = 0
        self.columns["obs"].write_one(row, x)
        self.arena.touch(1)

    def _write_mask(self, flat: np.ndarray, mask: Tensor | None) -> None:
        """Some rows have masks and others none, if recorded episodes differ from those played."""
        if mask is None and "action_mask" not in self.columns:
            return
        if mask is None:
            mask = torch.ones(len(flat), self.mask_dim, dtype=torch.bool)
        elif "action_mask" not in self.columns:
            self._make_mask_column(mask.shape[-1])
            every = torch.ones(self.used, mask.shape[-1], dtype=torch.bool)
            self.columns["action_mask"].write(np.arange(self.used), every)
        self.columns["action_mask"].write(flat, mask)

    @property
    def mask_dim(self) -> int:
        """Width of action masks; 0 where no row ever had one."""
        column = self.columns.get("action_mask")
        return 0 if column is None else column.array.shape[1]

    def _make_mask_column(self, width: int) -> None:
        example = torch.zeros(1, width, dtype=torch.bool)
        self._is_plain = False
        self.columns["action_mask"] = DenseColumn(self.arena, "action_mask", self.size, example)

    def _make_columns(self, x: Stored) -> None:
        self.columns["obs"] = make_column(
            self.arena,
            "obs",
            self.size,
            x,
            dtype=self.dtype,
            repeats=self.repeats,
            stack=self.stack,
            stride=self.num_envs,
        )
        self._stacks = [c for c in leaves(self.columns["obs"]) if isinstance(c, StackColumn)]
        self._is_plain = (
            self.num_envs == 1
            and type(self.columns["obs"]) is DenseColumn
            and self.priorities is None
            and self._end is None
            and "action_mask" not in self.columns
        )

    def _check_stacks(self, flat: np.ndarray, x: Stored) -> None:
        _check(self.columns["obs"], flat, x)
        if not any(column.unchecked for column in self._stacks):
            self._stacks = []


def _ended(terminated: np.ndarray, truncated: np.ndarray) -> np.ndarray:
    """Flags of transitions `[n]` by how they end; what is both has terminated."""
    return STARTS + TERMINATED * terminated + TRUNCATED * (truncated > terminated)


def _check(column: Any, flat: np.ndarray, x: Any) -> None:
    if isinstance(column, NestedColumn):
        for key, part in column.parts.items():
            _check(part, flat, x[key])
    elif isinstance(column, StackColumn):
        column.check(flat, x)
