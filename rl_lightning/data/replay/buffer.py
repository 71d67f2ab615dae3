"""The replay buffer: rows that are observations, each stored once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import Stored
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.columns import (
    DenseColumn,
    NestedColumn,
    OnceColumn,
    StackColumn,
    leaves,
    make_column,
)
from rl_lightning.data.replay.priorities import Priorities
from rl_lightning.maths.returns import n_step_return

STARTS, TERMINATED, TRUNCATED = 1, 2, 4  # bits of a row's flags


class ReplayBuffer:
    """A ring of C rows for each of B environments.

    A row is an *observation*; with an action and a reward it starts a transition, whose next
    observation is the row after it. So no observation is stored twice, the final observation of an
    episode is a row that starts nothing, n steps are n rows, and a frame stack is S rows.

    Writing an episode: `begin`, then `act` and `push` in turn, `push` of the final observation
    last. Rows are numbered flat, `row · B + environment`.

    Args:
        frames: Capacity in rows of all environments.
        num_envs: B.
        stack: Frames S of stacked observations, of which one is stored; 1: they are no stacks.
        dtype: To store floating-point observations in, e.g. float16; None as they are.
        repeats: Which observations are stored once and numbered, see `Encoder.repeats`.
        prioritized: Keep priorities.
        episodes: Keep track of where episodes end (for hindsight relabelling).
        action_dtype: To store actions in, e.g. uint8; None as they are.
        folder: Memory-map the arrays to files in this folder; None keeps them in memory.
    """

    def __init__(
        self,
        frames: int,
        num_envs: int,
        *,
        stack: int = 1,
        dtype: Any = None,
        repeats: bool | Mapping[str, Any] = False,
        prioritized: bool = False,
        episodes: bool = False,
        action_dtype: Any = None,
        folder: Path | None = None,
    ) -> None:
        if frames < (stack + 1) * num_envs:
            raise ConfigurationError(
                f"data.buffer_frames: {frames} hold no transition; make it at least "
                f"(frame_stack + 1) · num_envs = {(stack + 1) * num_envs}"
            )
        self.num_envs = num_envs
        self.rows = -(-frames // num_envs) + stack  # the newest row waits for its action
        self.size = self.rows * num_envs
        self.stack, self.dtype, self.repeats = stack, dtype, repeats
        self.action_dtype = action_dtype
        self.arena = Arena(folder)
        self._flags = self.arena.new("flags", self.size, (), np.uint8)
        self._reward = self.arena.new("reward", self.size, (), np.float32)
        self._end = self.arena.new("end", self.size, (), np.int32) if episodes else None
        self.flags, self.reward = torch.from_numpy(self._flags), torch.from_numpy(self._reward)
        self.columns: dict[str, Any] = {}
        self.head = np.full(num_envs, -1)  # row of the newest observation
        self._counts = np.zeros(num_envs, np.int64)
        self._first = np.zeros(num_envs, np.int64)  # count at which the open episode began
        self._all = np.arange(num_envs)
        self._saved_counts: np.ndarray | None = None
        self._stacks: list[StackColumn] = []
        self._is_plain = False  # whether a row of it is no more than an entry of each array
        self.priorities = Priorities(self.size, self._starting) if prioritized else None

    # --- writing --------------------------------------------------------------------------------

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

    # --- reading --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return int(np.count_nonzero(self._flags & STARTS))

    @property
    def used(self) -> int:
        """Rows in use, flat."""
        return min(int(self._counts.max(initial=0)), self.rows) * self.num_envs

    def draw(self, count: int) -> Tensor:
        """Rows of `count` transitions, uniformly with replacement, int64 `[count]`.

        Raises:
            RuntimeError: If there is none.
        """
        found: list[Tensor] = []
        have, tries = 0, 0
        while have < count:
            # Few rows start nothing, so drawing again is cheaper than a list of those that do.
            index = torch.randint(self.used, (count - have + 8 + (count >> 4),))
            index = index[(self.flags.index_select(0, index) & STARTS).bool()]
            found.append(index)
            have += index.shape[0]
            tries += 1
            if tries == 64 and not len(self):
                raise RuntimeError("the replay buffer holds no transition yet")
        return (found[0] if len(found) == 1 else torch.cat(found))[:count]

    def draw_by_priority(self, count: int, beta: float) -> tuple[Tensor, Tensor]:
        """Rows in proportion to their priorities (Schaul et al. 2016), stratified.

        Returns:
            Rows, int64 `[count]`, and importance weights (n · P(i))^−β / max, float32 `[count]`.
        """
        assert self.priorities is not None
        return self.priorities.draw(count, beta)

    def set_priorities(self, index: Tensor, priority: Tensor) -> None:
        """Change the priorities (already raised to the power α) of drawn rows, `[N]` each."""
        assert self.priorities is not None
        self.priorities.change(index, priority)

    def _starting(self, rows: np.ndarray) -> np.ndarray:
        """Whether transitions start at rows, bool `[N]`."""
        return (self._flags[rows] & STARTS).astype(bool)

    def read(self, index: Tensor, gamma: float, n_step: int = 1) -> dict[str, Any]:
        """Transitions of n steps that begin at given rows.

        They stop early where the episode ends in either way, and at the newest row. A truncated
        episode goes on in `discount`: its last row is the final observation.

        Args:
            index: Rows, int64 `[N]`.
            gamma: γ.
            n_step: n.

        Returns:
            `obs`, `action`, `reward` Σₖ γᵏ rₖ, `discount` γᵐ or 0 after a terminal step,
            `next_obs` after m ≤ n steps, and with masks `action_mask` and `next_action_mask`.
        """
        count = index.shape[0]  # not `len`, which torch takes a way round to
        if n_step == 1:
            following = (index + self.num_envs) % self.size
            reward = self.reward.index_select(0, index)
            terminated = self.flags.index_select(0, index) & TERMINATED
            discount = torch.where(terminated == 0, gamma, 0.0)
        else:
            steps = (index[:, None] + self.num_envs * torch.arange(n_step)) % self.size  # (N, n)
            flags = self.flags[steps]
            reward, discount, taken = n_step_return(
                self.reward[steps],
                (flags & STARTS) != 0,
                (flags & TERMINATED) != 0,
                (flags & TRUNCATED) != 0,
                gamma,
            )
            following = (index + self.num_envs * taken) % self.size
        both = torch.cat([index, following])
        self.arena.touch(2 * count, scattered=True)
        batch = {"action": self.columns["action"].read(index), "reward": reward}
        batch["discount"] = discount
        batch["obs"], batch["next_obs"] = _halves(self.columns["obs"].read(both), count)
        if "action_mask" in self.columns:
            masks = self.columns["action_mask"].read(both)
            batch["action_mask"], batch["next_action_mask"] = masks[:count], masks[count:]
        return batch

    def later(self, index: Tensor, uniform: Tensor) -> Tensor:
        """A row after `index` of the same episode, uniformly: up to its final observation, or the
        newest one if it is still open.

        Args:
            index: Rows, int64 `[N]`.
            uniform: In [0, 1), `[N]`.
        """
        return self._within(index, uniform, begin=index // self.num_envs + 1)

    def last(self, index: Tensor) -> Tensor:
        """The final (or newest) row of the same episodes."""
        return self._within(index, torch.ones(len(index)), begin=index // self.num_envs + 1)

    def _within(self, index: Tensor, uniform: Tensor, begin: Tensor) -> Tensor:
        assert self._end is not None
        column = index % self.num_envs
        end = torch.from_numpy(self._end)[index].long()
        end = torch.where(end < 0, torch.from_numpy(self.head)[column], end)
        length = (end - begin) % self.rows + 1
        offset = torch.minimum((uniform * length).long(), length - 1)
        return (begin + offset) % self.rows * self.num_envs + column

    # --- size -----------------------------------------------------------------------------------

    @property
    def storage(self) -> TensorDict:
        """All dense arrays as one TensorDict `[R]`, without copying."""
        entries = {name: torch.from_numpy(a) for name, a in self.arena.arrays.items() if len(a)}
        same = {name: t for name, t in entries.items() if len(t) == self.size}
        return TensorDict(same, batch_size=[self.size])

    @property
    def bytes_per_frame(self) -> float:
        """Bytes in use for each transition that can be drawn."""
        once = sum(c.table_bytes for c in self._leaves() if isinstance(c, OnceColumn))
        row = sum(a[:1].nbytes for n, a in self.arena.arrays.items() if ".table" not in n)
        if self.priorities is not None:
            row += self.priorities.itemsize
        return (row * self.used + once) / max(len(self), 1)

    def _leaves(self) -> list[DenseColumn | OnceColumn]:
        return [leaf for column in self.columns.values() for leaf in leaves(column)]

    # --- snapshots ------------------------------------------------------------------------------

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


def _ended(terminated: np.ndarray, truncated: np.ndarray) -> np.ndarray:
    """Flags of transitions `[n]` by how they end; what is both has terminated."""
    return STARTS + TERMINATED * terminated + TRUNCATED * (truncated > terminated)


def action_example(space: gym.Space, num_envs: int) -> Tensor:
    """A batch of zeros shaped and typed as an agent's actions for a space, `[B, ...]`."""
    if isinstance(space, gym.spaces.Box):
        return torch.zeros(num_envs, *space.shape)
    return torch.zeros(num_envs, *(space.shape or ()), dtype=torch.int64)


def action_dtype(space: gym.Space) -> Any:
    """The smallest type that holds every action of a space; None for that of the actions."""
    s = gym.spaces
    if isinstance(space, s.Discrete):
        first, last = int(space.start), int(space.start + space.n - 1)
    elif isinstance(space, s.MultiDiscrete):
        first, last = int(space.start.min()), int((space.start + space.nvec).max() - 1)
    elif isinstance(space, s.MultiBinary):
        first, last = 0, 1
    else:
        return None
    # Not the other unsigned ones, which torch cannot index.
    types = (np.uint8, np.int8, np.int16, np.int32, np.int64)
    return next(t for t in types if np.iinfo(t).min <= first and last <= np.iinfo(t).max)


def _check(column: Any, flat: np.ndarray, x: Any) -> None:
    if isinstance(column, NestedColumn):
        for key, part in column.parts.items():
            _check(part, flat, x[key])
    elif isinstance(column, StackColumn):
        column.check(flat, x)


def _halves(x: Any, count: int) -> tuple[Any, Any]:
    if isinstance(x, Tensor):
        return x[:count], x[count:]
    parts = {key: _halves(value, count) for key, value in x.items()}
    return {k: v[0] for k, v in parts.items()}, {k: v[1] for k, v in parts.items()}
