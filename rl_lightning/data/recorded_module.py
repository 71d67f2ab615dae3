"""What data modules have in common that step no environments to train: a clock of updates."""

from collections.abc import Iterator
from typing import Any

from tensordict import TensorDict

from rl_lightning.data.base_module import RLDataModule
from rl_lightning.data.update_loader import UpdateLoader


class RecordedDataModule(RLDataModule):
    """Learns from what is there already, so its length is in updates.

    Attributes:
        updates_per_epoch: Updates that make one epoch of the trainer.
    """

    unit = "update"
    updates_per_epoch: int
    gradient_steps = 1  # a round of updates is a single one
    row_errors: Any = None  # nobody prioritises

    def next_batch(self) -> TensorDict:
        """What the next update learns from, on the agent's device."""
        raise NotImplementedError

    def train_dataloader(self) -> UpdateLoader:
        self.start()
        return UpdateLoader(self, self.runs)

    @property
    def rounds(self) -> int:
        """Updates of one epoch."""
        return self.epoch_length

    def begin_epoch(self) -> None:
        self.begin_clock()

    def batches(self) -> Iterator[TensorDict]:
        for left in reversed(range(self.rounds)):
            batch = self.next_batch()
            self.count(1)
            if not left:
                self.plan(self.epoch + 1)
            yield batch

    @property
    def total_updates(self) -> int:
        """The budget."""
        return self.total_frames

    @total_updates.setter
    def total_updates(self, updates: int) -> None:
        self.total_frames = updates

    @property
    def epoch_length(self) -> int:
        """Updates of one epoch: all ranks make them together."""
        return min(self.updates_per_epoch, self.total_updates)

    def count(self, frames: int) -> None:
        progress = self.frames / self.planned_length
        self.frames += frames
        self.agent.tick(self.frames, min(progress, 1.0), self.weak_metrics)

    def metrics(self) -> dict[str, float]:
        return {
            **self.agent.encoder_metrics(),
            "time/updates": float(self.frames),
            "time/updates_per_second": self.fps(),
        }
