"""What data modules have in common that step no environments to train: a clock of updates."""

from rl_lightning.data.base_module import RLDataModule


class RecordedDataModule(RLDataModule):
    """Learns from what is there already, so its length is in updates.

    Attributes:
        updates_per_epoch: Updates that make one epoch of the trainer.
    """

    unit = "update"
    updates_per_epoch: int

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
