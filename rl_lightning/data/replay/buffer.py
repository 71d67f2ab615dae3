"""The replay buffer: rows that are observations, each stored once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.contents import ReplayFiles
from rl_lightning.data.replay.dense import StackColumn
from rl_lightning.data.replay.once import OnceColumn
from rl_lightning.data.replay.priorities import Priorities
from rl_lightning.data.replay.rows import STARTS, TERMINATED, TRUNCATED
from rl_lightning.maths.returns import n_step_return


class ReplayBuffer(ReplayFiles):
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
            next_index = (index + self.num_envs) % self.size
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
            next_index = (index + self.num_envs * taken) % self.size
        both = torch.cat([index, next_index])
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


def _halves(x: Any, count: int) -> tuple[Any, Any]:
    if isinstance(x, Tensor):
        return x[:count], x[count:]
    parts = {key: _halves(value, count) for key, value in x.items()}
    return {k: v[0] for k, v in parts.items()}, {k: v[1] for k, v in parts.items()}
