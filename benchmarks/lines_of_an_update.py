"""How many lines one must read to understand one update of PPO.

    python benchmarks/lines_of_an_update.py

Counted are the lines, comments and docstrings included, of every function of this library that runs
between the beginning of an epoch and its end: a rollout is collected and prepared, and its
minibatches are learned from. What runs before (constructors, checks of arguments, the opening of
environments) and after (evaluation, checkpoints) does not count.
"""

import inspect
import logging
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import lightning as L

import rl_lightning
from rl_lightning import PPO, RolloutDataModule

ROOT = Path(rl_lightning.__file__).parent


class Epoch(L.Callback):
    """Notes the functions that run in one epoch."""

    takes_runs = True

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            sys.setprofile(self.hear)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        sys.setprofile(None)

    def hear(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            self.codes.add(frame.f_code)


def count() -> dict[str, int]:
    """Lines by file."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = RolloutDataModule(
        "CartPole-v1", rollout_steps=32, minibatch_size=64, passes=2, total_frames=768, seed=0
    )
    epoch = Epoch()
    trainer = L.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        gradient_clip_val=0.5, callbacks=[epoch],
    )  # fmt: skip
    trainer.fit(PPO(data.spec), data)
    lines: dict[str, set[int]] = defaultdict(set)
    for code in epoch.codes:
        source, first = inspect.getsourcelines(code)
        file = Path(code.co_filename).relative_to(ROOT).as_posix()
        lines[file].update(range(first, first + len(source)))
    return {file: len(numbers) for file, numbers in lines.items()}


def main() -> None:
    found = count()
    for file, lines in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{lines:5} {file}")
    print(f"{sum(found.values()):5} in {len(found)} files")


if __name__ == "__main__":
    main()
