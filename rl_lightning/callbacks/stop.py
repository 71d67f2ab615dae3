"""Stopping without losing anything."""

import signal
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from rl_lightning.core.stopping import SIGNALS, Stopped, stop, take_signals, within_command


class GracefulStop(L.Callback):
    """On SIGINT or SIGTERM, finish the epoch, so that its checkpoint is exact, and stop.

    Only at an epoch's end do weights, environments and frame count belong together. A second signal
    takes its usual effect at once; the checkpoint of the last finished epoch then stands. On the
    command line that effect, which before training and in other commands the first signal has, is
    to end it in one sentence.

    Attributes:
        received: The signal that ended training, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: whoever is in charge there handles signals
                return

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A signal may have reached one rank only.
        stopping = self.received is not None
        if trainer.strategy.reduce_boolean_decision(stopping, all=False):
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_validation_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        # Lightning's handler of SIGTERM first talks to the other ranks, which may never answer.
        if trainer.state.fn != "fit":
            take_signals()

    on_test_start = on_predict_start = on_validation_start

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._restore()
        launcher: Any = trainer.strategy.launcher
        if isinstance(exception, Stopped) and launcher is not None:
            launcher.kill(exception.number)  # it may have reached this rank only

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        rank_zero_info(
            f"\n{self.received.name}: finishing this epoch, then saving and stopping; "
            "once more to stop at once"
        )

    def _restore(self) -> None:
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            if self.received:
                # Lightning's own SIGTERM handler would stop between two minibatches.
                usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
                handler = stop if within_command() else usual[number]
            signal.signal(number, handler)
