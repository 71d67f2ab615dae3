"""How a replay buffer stores one entry of its rows: densely, a stack's newest frame, or once.

All columns have one interface over flat row numbers: `write(index, x, age)` takes a batch as an
encoder preprocessed it (of a stack it keeps the frame `age` steps before the newest), `read(index)`
gives it back.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from rl_lightning.core.types import Stored
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.dense import DenseColumn, StackColumn
from rl_lightning.data.replay.once import OnceColumn


class NestedColumn:
    """A mapping of columns.

    Args:
        parts: By key.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)

    def write(self, index: np.ndarray, x: Any, age: int = 0) -> None:
        for key, part in self.parts.items():
            part.write(index, x[key], age)

    def read(self, index: Tensor) -> dict[str, Any]:
        return {key: part.read(index) for key, part in self.parts.items()}


Column = DenseColumn | OnceColumn | NestedColumn


def make_column(
    arena: Arena,
    name: str,
    rows: int,
    example: Stored,
    *,
    dtype: Any = None,
    repeats: bool | Mapping[str, Any] = False,
    stack: int = 1,
    stride: int = 1,
) -> Column:
    """The columns of a nested observation.

    Args:
        arena: Where they live.
        name: Of the outermost.
        rows: R.
        example: A batch `[B, ...]`, or a nested mapping of such.
        dtype: To store floats in.
        repeats: See `Encoder.repeats`.
        stack: Frames of a stack; 1: there is none.
        stride: Distance of an environment's neighbouring rows.
    """
    if repeats is True:
        return OnceColumn(arena, name, rows, example, dtype)
    if isinstance(example, Tensor):
        own = dtype if example.is_floating_point() else None
        if stack > 1:
            return StackColumn(arena, name, rows, example, own, stack, stride)
        return DenseColumn(arena, name, rows, example, own)
    below: Mapping[str, Any] = repeats if isinstance(repeats, Mapping) else {}
    return NestedColumn(
        {
            key: make_column(
                arena,
                f"{name}.{number}",
                rows,
                value,
                dtype=dtype,
                repeats=below.get(key, False),
                stack=stack,
                stride=stride,
            )
            for number, (key, value) in enumerate(example.items())
        }
    )


def leaves(column: Column) -> list[DenseColumn | OnceColumn]:
    """All columns of a nest that are none themselves."""
    if isinstance(column, NestedColumn):
        return [leaf for part in column.parts.values() for leaf in leaves(part)]
    return [column]
