"""What a trainer iterates over where many updates make one of its steps."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from tensordict import TensorDict
from torch import Tensor


class UpdateSource(Protocol):
    """A data module whose epochs are rounds of so many updates each."""

    gradient_steps: int
    row_errors: Any
    """How wrong the agent was on each row of the last batch, `[N]`; None for nobody to know."""

    @property
    def rounds(self) -> int:
        """Rounds of one epoch."""
        ...

    def begin_epoch(self) -> None:
        """Called before an epoch's first batch."""

    def batches(self) -> Iterator[TensorDict]:
        """The batches of an epoch, `gradient_steps` a round, each made when it is asked for."""
        ...


class UpdateLoader:
    """Yields an epoch as runs of several updates, whole rounds of them.

    It has an exact length: without one, Lightning fetches a run ahead.

    Args:
        source: The data module.
        runs: Whether a step of the trainer may be several updates; otherwise each is one.
    """

    UPDATES = 64  # of one run, about: enough to make the trainer's own time of no account

    def __init__(self, source: UpdateSource, runs: bool = True) -> None:
        self.source = source
        self.updates = source.rounds * source.gradient_steps
        rounds = max(1, self.UPDATES // source.gradient_steps)
        self.run_updates = rounds * source.gradient_steps if runs else 1

    def __len__(self) -> int:
        return -(-self.updates // self.run_updates)

    def __iter__(self) -> Iterator["UpdateRun"]:
        self.source.begin_epoch()
        batches = self.source.batches()
        for begin in range(0, self.updates, self.run_updates):
            yield UpdateRun(batches, min(self.run_updates, self.updates - begin), self.source)


class UpdateRun:
    """The updates of one trainer step: each batch is made after the update before it.

    Args:
        batches: Where they come from.
        length: How many of them.
        source: Who is told how wrong the agent was; None for nobody.
    """

    def __init__(
        self, batches: Iterator[TensorDict], length: int, source: UpdateSource | None = None
    ) -> None:
        self._batches, self._length, self.source = batches, length, source

    @property
    def row_errors(self) -> Tensor | None:
        """How wrong the agent was on each row of the last batch, for whoever prioritises."""
        return None if self.source is None else self.source.row_errors

    @row_errors.setter
    def row_errors(self, errors: Tensor | None) -> None:
        if self.source is not None:
            self.source.row_errors = errors

    def __len__(self) -> int:
        return self._length

    # No iterator: Lightning looks into iterable batches for their size, and would play on.
    def batches(self) -> Iterator[TensorDict]:
        """The batches, in turn; once only."""
        return islice(self._batches, self._length)
