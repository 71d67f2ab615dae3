"""Labelled comparisons as tensors: what an encoder makes of each item once, and batches of it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from rl_lightning.core.tree import to_device
from rl_lightning.data.preferences.questions import Questions, Source

READ_ROWS = 256  # observations that an encoder is shown at a time


class Table:
    """Questions with answers, and the stored observations of their items.

    Args:
        rows: What an encoder has preprocessed, one row an item, `[M]`: `next_obs`, of transitions
            `obs` and `action` too.
        index: Rows of each question, int64 `[P, K]`.
        label: Float32 `[P]`.
    """

    def __init__(self, rows: TensorDict, index: torch.Tensor, label: torch.Tensor) -> None:
        self.rows, self.index, self.label = rows, index, label

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, which: torch.Tensor, device: torch.device) -> TensorDict:
        """Some questions `[n]`, as a batch `[n, K]` of their items, on a device."""
        index = self.index[which]
        rows: Any = self.rows[index]
        rows["label"] = self.label[which, None].expand(index.shape)
        return rows.to(device)

    def observations(self, size: int, device: torch.device) -> Iterator[TensorDict]:
        """The items of all questions, `[n]` at a time, each as often as it was drawn."""
        flat = self.index.reshape(-1)
        for start in range(0, len(flat), size):
            rows: Any = self.rows[flat[start : start + size]]
            yield rows.to(device)


class Batches:
    """All questions of a table once through, as a loader.

    Args:
        table: Makes it, when it is first needed.
        size: Of a batch.
        device: Where batches are wanted.
    """

    def __init__(
        self, table: Callable[[], Table], size: int, device: Callable[[], torch.device]
    ) -> None:
        self._table, self._size, self._device = table, size, device

    def __len__(self) -> int:
        return -(-len(self._table()) // self._size)

    def __iter__(self) -> Iterator[TensorDict]:
        table = self._table()
        for which in torch.arange(len(table)).split(self._size):
            yield table.batch(which, self._device())


def make_table(
    source: Source, questions: Questions, agent: Any, bar: Any, observe: bool = False
) -> Table:
    """What an agent's encoder makes of the items of answered questions.

    Args:
        source: Of the items.
        questions: All with an answer.
        agent: Preprocesses, see `Actor.preprocess`.
        bar: Is told how many items were read.
        observe: Show them to the agent's running statistics, too.
    """
    items, index = np.unique(questions.items, return_inverse=True)
    parts: list[TensorDict] = []
    cpu = torch.device("cpu")
    for obs, action, after in source.observations(items, READ_ROWS):
        if observe:
            agent.observe(after)
        stored: dict[str, Any] = {"next_obs": to_device(agent.preprocess(after), cpu)}
        if obs is not None:
            stored["obs"] = to_device(agent.preprocess(obs), cpu)
            stored["action"] = torch.as_tensor(np.ascontiguousarray(action))
        count = len(next(iter(_leaves(stored))))
        parts.append(TensorDict(stored, batch_size=[count]))
        bar.update(count)
    rows: Any = torch.cat(parts)  # type: ignore[arg-type]
    where = torch.from_numpy(index.reshape(questions.items.shape))
    return Table(rows, where, torch.from_numpy(questions.labels.astype(np.float32)))


def _leaves(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    else:
        for part in x.values():
            yield from _leaves(part)
