"""What the policy read and thought, in TensorBoard's text tab."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger


class TextPanel(L.Callback):
    """Writes the first steps of one evaluation episode: observation, policy, value, action, reward;
    or the first completions of an evaluation, with their rewards.

    Args:
        tag: Name of the panel of episodes.
    """

    def __init__(self, tag: str = "val/episode") -> None:
        self.tag = tag

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if "transcript" not in batch:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                table = transcript_table(batch["transcript"])
                tag = "val/completions" if "lines" in batch else self.tag
                logger.experiment.add_text(tag, table, pl_module.frames)


def transcript_table(transcript: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with one row a step."""
    columns = ["step", *transcript[0]]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for index, record in enumerate(transcript):
        cells = [str(index), *(_cell(record[name]) for name in columns[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " ".join(_cell(v) for v in value)
    return str(value).replace("|", "\\|").replace("\n", " ")
