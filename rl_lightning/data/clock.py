"""The clock of frames: how long an epoch is, how many are left, and how fast they pass."""

import math
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import lightning as L

from rl_lightning.core.protocols import Trainee
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.trainer import (
    finished_epochs,
    set_max_epochs,
)


class ClockModule(L.LightningDataModule):
    """A data module that counts frames, and plans the trainer's epochs by them."""

    agent: Trainee
    frames: int
    total_frames: int
    unit: str
    runs: bool
    collector: Stepper | None
    _trainer: Any
    _running: bool
    _max_epochs: Any
    _planned: int
    _began: tuple[float, int] | None
    _mode: Any
    _eval_loaders: dict[str, Any]  # each knows its `seconds`

    @property
    def epoch_length(self) -> int:
        """What one epoch adds to the clock."""
        raise NotImplementedError

    def start(self) -> None:
        """Open the source of experience."""
        raise NotImplementedError

    def _sum_over_ranks(self, frames: int) -> int:
        raise NotImplementedError

    @property
    def _budget(self) -> str:
        return f"data.total_{self.unit}s={self.total_frames}"

    def begin_clock(self) -> None:
        """Start measuring speed, once."""
        if not self._running:  # a search for a learning rate has been here, and has restored
            self.start()
        if self._began is None:
            self._began = (time.perf_counter(), self.frames)

    @property
    def epoch(self) -> int:
        """Finished epochs, also right after a checkpoint was loaded."""
        return finished_epochs(self._trainer)

    def plan(self, epoch: int) -> None:
        """Let the trainer run, from `epoch` on, for as long as the budget lasts."""
        self._mode = None  # a callback may change what the agent consists of
        trainer = self._trainer
        left = max(self.total_frames - self.frames, 0)
        self._planned = epoch + math.ceil(left / self.epoch_length)
        limit = self._max_epochs
        unlimited = limit in (None, -1)
        set_max_epochs(trainer, self._planned if unlimited else min(self._planned, limit))

    @property
    def planned_length(self) -> int:
        """The budget in whole epochs."""
        return math.ceil(self.total_frames / self.epoch_length) * self.epoch_length

    def count(self, frames: int) -> None:
        """Add frames of this rank to the clock, and tell the agent the time."""
        frames = self._sum_over_ranks(frames)
        # Schedules stand where this rollout began, on the way to the end of the last epoch: else
        # the last rollouts would learn at rate 0.
        progress = self.frames / self.planned_length
        self.frames += frames
        metrics = self.metrics()  # now: an encoder's count what was since they were last asked for
        self.agent.tick(self.frames, min(progress, 1.0), lambda: metrics)

    def metrics(self) -> dict[str, float]:
        """Statistics of data collection on this rank, for the logger."""
        stage = None if self.collector is None else self.collector.stage
        return {
            **self.episode_metrics(),
            **({} if stage is None else stage.metrics()),
            **self.agent.encoder_metrics(),
            "time/frames": float(self.frames),
            "time/fps": self.fps(),
        }

    @cached_property
    def weak_metrics(self) -> Callable[[], Mapping[str, float]]:
        """`metrics`, for an agent to hold: it must not keep this module and its buffer alive."""
        return partial(_metrics_of, weakref.ref(self))

    def episode_metrics(self) -> dict[str, float]:
        """Averages over the last training episodes of this rank; empty where there are none."""
        return {} if self.collector is None else self.collector.episodes.metrics("train")

    def fps(self) -> float:
        """What the clock counts per second of this run, evaluation left out."""
        if self._began is None:
            return 0.0
        began, frames = self._began
        evaluating = sum(loader.seconds for loader in self._eval_loaders.values())
        return (self.frames - frames) / max(time.perf_counter() - began - evaluating, 1e-9)


def _metrics_of(held: weakref.ref[ClockModule]) -> Mapping[str, float]:
    data = held()
    return {} if data is None else data.metrics()
