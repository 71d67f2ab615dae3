"""What has been written already need not be read again: keys and values of conversations."""

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lightning.llm.continuation import Continuation


class Known(NamedTuple):
    """Prompts that go on from rows of a continuation: `numbers` of the prompts, their `rows`
    there, and how many of their tokens have been read, int64 `[N]` each but for the numbers."""

    step: Continuation
    numbers: list[int]
    rows: Tensor
    length: Tensor


class Memory:
    """Keys and values of what was read and written in the last call, found by its tokens.

    It is of a model with the weights of that call: who changes them must forget it.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._steps: list[Continuation] = []
        self._found: dict[bytes, tuple[int, int]] = {}  # tokens → continuation, row
        self._lengths: set[int] = set()

    def recall(self, prompts: Sequence[Sequence[int]]) -> Iterator[Known]:
        """Those prompts that begin with something known, by continuation; it is forgotten then."""
        steps, found, lengths = self._steps, self._found, sorted(self._lengths, reverse=True)
        self._forget()
        parts: dict[int, list[tuple[int, int, int]]] = {}
        for number, ids in enumerate(prompts):
            for length in lengths:
                place = found.get(_key(ids[:length])) if length < len(ids) else None
                if place is not None:
                    parts.setdefault(place[0], []).append((number, place[1], length))
                    break
        for index, part in parts.items():
            numbers, rows, known = zip(*part, strict=True)
            yield Known(steps[index], list(numbers), torch.tensor(rows), torch.tensor(known))

    def keep(self, step: Continuation, written: Sequence[Sequence[int]]) -> None:
        """Remember a continuation.

        Args:
            step: It.
            written: All tokens of each of its rows; the last one has not been read.
        """
        if not step.recalls:
            return
        for row, ids in enumerate(written):
            self._found[_key(ids[:-1])] = len(self._steps), row
            self._lengths.add(len(ids) - 1)
        self._steps.append(step)


def _key(ids: Sequence[int]) -> bytes:
    return array("q", ids).tobytes()
