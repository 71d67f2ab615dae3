"""A progress bar in the unit that matters: frames, or updates where nothing is collected."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class FrameProgressBar(ProgressBar):
    """Shows frames (or updates), return of the last episodes, speed and the time left.

    Args:
        refresh_seconds: Time between two updates of the line on a terminal; elsewhere (a log file)
            it is written every 30 seconds.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._enabled = True
        self._next_update = 0.0
        self._train: Any = None
        self._eval: Any = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(kwargs.get("sep", " ").join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._train = self._bar(
            data.total_frames, "training", data.frames, data.unit, unit_scale=True
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.frames > self._train.n and time.monotonic() >= self._next_update:
            self._next_update = time.monotonic() + 0.5 * self._interval
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._show(trainer, pl_module)
        self._train.close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start_evaluation(trainer, trainer.num_val_batches, "validation")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start_evaluation(trainer, trainer.num_test_batches, "test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start_evaluation(trainer, trainer.num_predict_batches, "predict")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._eval.update()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        self._eval.close()

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        for bar in (self._train, self._eval):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        return dict(trainer.progress_bar_metrics)

    @property
    def _interval(self) -> float:
        return self.refresh_seconds if sys.stderr.isatty() else 30.0

    def _show(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        metrics = data.episode_metrics()
        shown = {name: metrics.get(f"train/{name}") for name in ("return", "success", "reward")}
        own = getattr(pl_module, "monitored", ("val/return",))[0]
        judged = [getattr(one, "monitor", None) for one in trainer.checkpoint_callbacks]
        names = [name for name in (*judged, own) if name is not None]
        found = [trainer.callback_metrics.get(name) for name in names]
        shown["val"] = next((value for value in found if value is not None), None)
        text = {k: f"{float(v):.4g}" for k, v in shown.items() if v is not None}
        self._train.set_postfix(text, refresh=False)
        self._train.update(max(pl_module.frames - self._train.n, 0))

    def _start_evaluation(
        self, trainer: L.Trainer, episodes: list[int | float], description: str
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        unit = getattr(data, "evaluated", "episode")
        self._eval = self._bar(int(sum(episodes)), description, unit=unit, leave=False)

    def _bar(
        self,
        total: int,
        description: str,
        initial: int = 0,
        unit: str = "frame",
        unit_scale: bool = False,
        leave: bool = True,
    ) -> Any:
        return tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            unit_scale=unit_scale,
            leave=leave,
            dynamic_ncols=True,
            disable=not self._enabled,
            mininterval=self._interval,
            file=sys.stderr,
        )
