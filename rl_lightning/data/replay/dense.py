"""Columns that keep every row: one array, or of a stack of frames the newest."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.storage import store_narrow


class DenseColumn:
    """One array `[rows, ...]`.

    Args:
        arena: Where it lives.
        name: Of the array.
        rows: R.
        example: A batch `[B, ...]`, for shape and dtype.
        dtype: To store it in, such as float16; None: the example's. Reading gives the example's
            dtype back.
    """

    def __init__(
        self, arena: Arena, name: str, rows: int, example: Tensor, dtype: Any = None
    ) -> None:
        self.given = example.dtype
        self.name = name
        own = example.cpu().numpy().dtype
        self.array = arena.new(name, rows, example.shape[1:], own if dtype is None else dtype)
        self.tensor = torch.from_numpy(self.array)
        self._narrow = self.array.dtype == np.float16

    def write(self, index: np.ndarray, x: Any, age: int = 0) -> None:
        self.keep(index, x.cpu().numpy())

    def write_one(self, row: int, x: Tensor) -> None:
        """`write` of a batch of one."""
        self.keep(row, x.cpu().numpy()[0])

    def keep(self, index: Any, values: np.ndarray) -> None:
        """Write rows, unless a smaller type would make infinities of them."""
        if self._narrow:
            store_narrow(self.array, index, values, self.name)
        else:
            self.array[index] = values

    def read(self, index: Tensor) -> Tensor:
        x = self.tensor.index_select(0, index)
        return x if x.dtype == self.given else x.to(self.given)

    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.array[:1].nbytes


class StackColumn(DenseColumn):
    """Of a stack of S frames only the newest: the others are rows of their own.

    The stack's frames are S equal parts of the entry's first axis, oldest first. The rows before an
    episode's first hold the rest of its first stack, so whatever the environment pads with comes
    back exactly.

    Args:
        arena: Where it lives.
        name: Of the array.
        rows: R.
        example: A batch `[B, S · k, ...]`.
        dtype: See `DenseColumn`.
        stack: S.
        stride: Distance of an environment's neighbouring rows.
    """

    CHECKED = 64  # writes, until a stack is believed to be one

    def __init__(
        self,
        arena: Arena,
        name: str,
        rows: int,
        example: Tensor,
        dtype: Any,
        stack: int,
        stride: int,
    ) -> None:
        self.depth = example.shape[1] // stack if example.ndim > 1 else 0
        if not self.depth or example.shape[1] % stack:
            raise ConfigurationError(
                f"data.frame_stack: {stack} does not divide the first axis of {name}, stored as "
                f"{list(example.shape[1:])}; it is the stack_size of FrameStackObservation, or "
                "left out"
            )
        super().__init__(arena, name, rows, example[:, : self.depth], dtype)
        self.stack = stack
        self.rows = rows
        self.offsets = torch.arange(-(stack - 1), 1) * stride
        self.unchecked = self.CHECKED

    def write(self, index: np.ndarray, x: Any, age: int = 0) -> None:
        super().write(index, x.narrow(1, (self.stack - 1 - age) * self.depth, self.depth))

    def check(self, index: np.ndarray, x: Tensor) -> None:
        """Make sure that a stack can be put together again from the rows at and before `index`."""
        if self.unchecked:
            self.unchecked -= 1
            if not torch.equal(self.read(torch.from_numpy(index)), self._stored(x)):
                raise ConfigurationError(
                    f"data.frame_stack: {self.stack}, but an observation is not the one before it, "
                    "shifted by one frame; leave it out"
                )

    def read(self, index: Tensor) -> Tensor:
        all_frames = (index[:, None] + self.offsets) % self.rows  # (N, S)
        x = super().read(all_frames.view(-1))
        return x.view(len(index), self.stack * self.depth, *x.shape[2:])

    def _stored(self, x: Tensor) -> Tensor:
        return x.cpu().to(self.tensor.dtype).to(self.given)
