"""What a trainer iterates over where many updates make one of its steps."""

from collections.abc import Iterator
from typing import Protocol

from tensordict import TensorDict
from torch import Tensor


class UpdateSource(Protocol):
    """A data module whose epochs are rounds of so many updates each."""

    gradient_steps: int
    row_errors: Tensor | None

    @property
    def rounds(self) -> int:
        """Rounds of one epoch."""
        ...

    def begin_epoch(self) -> None:
        """Called before an epoch's first batch."""

    def batches(self, rounds: int, last: bool) -> Iterator[TensorDict]:
        """The batches of some rounds, `gradient_steps` each; `last`: the epoch ends with them."""
        ...


class UpdateLoader:
    """Yields an epoch as runs of several updates, whole rounds of them.

    It has an exact length: without one, Lightning fetches a run ahead.

    Args:
        source: The data module.
    """

    UPDATES = 64  # of one run, about: enough to make the trainer's own time of no account

    def __init__(self, source: UpdateSource) -> None:
        self.source = source
        self.run_rounds = max(1, self.UPDATES // source.gradient_steps)

    def __len__(self) -> int:
        return -(-self.source.rounds // self.run_rounds)

    def __iter__(self) -> Iterator["UpdateRun"]:
        source = self.source
        source.begin_epoch()
        for begin in range(0, source.rounds, self.run_rounds):
            rounds = min(self.run_rounds, source.rounds - begin)
            yield UpdateRun(source, rounds, last=begin + rounds == source.rounds)


class UpdateRun:
    """The updates of one trainer step: each batch is sampled after the update before it.

    Args:
        source: The data module.
        rounds: Rounds of updates.
        last: Whether the epoch ends with them.
    """

    def __init__(self, source: UpdateSource, rounds: int, last: bool) -> None:
        self.source, self.rounds, self.last = source, rounds, last

    @property
    def row_errors(self) -> Tensor | None:
        """How wrong the agent was on each row of the last batch, for whoever prioritises."""
        return self.source.row_errors

    @row_errors.setter
    def row_errors(self, errors: Tensor | None) -> None:
        self.source.row_errors = errors

    def __len__(self) -> int:
        return self.rounds * self.source.gradient_steps

    # No iterator: Lightning looks into iterable batches for their size, and would play on.
    def batches(self) -> Iterator[TensorDict]:
        """The batches, in turn; once only."""
        return self.source.batches(self.rounds, self.last)
