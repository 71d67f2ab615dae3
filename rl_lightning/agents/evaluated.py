"""Evaluation, as Lightning asks for it: what the episodes of a validation come to."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from rl_lightning.agents.finite import check_returns
from rl_lightning.core.types import EnvSpec


class EvaluatedModule(L.LightningModule):
    """A module whose validation, test and prediction are whole episodes, one batch each."""

    spec: EnvSpec
    frames: int
    _episodes: list[Mapping[str, Any]]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._episodes.append(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._episodes.append(batch)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Mapping[str, Any]:
        return batch

    def on_validation_epoch_end(self) -> None:
        self._log_episodes("val")

    def on_test_epoch_end(self) -> None:
        self._log_episodes("test")

    def _log_episodes(self, prefix: str) -> None:
        """Mean and spread over the evaluation episodes of all ranks."""
        episodes, self._episodes = self._episodes, []
        table = torch.tensor(
            [[e["return"], e["length"], e["success"]] for e in episodes],
            dtype=torch.float32,
            device=self.device,
        )
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(table)
            table = gathered.flatten(0, 1)
        returns, lengths, success = table.unbind(1)
        check_returns(self.spec.id, returns)
        metrics = {
            f"{prefix}/return": returns.mean(),
            f"{prefix}/return_std": returns.std(correction=0),
            f"{prefix}/length": lengths.mean(),
        }
        if not success.isnan().all():
            # Where some episodes' info knows of success, what says nothing was none.
            metrics[f"{prefix}/success"] = success.nan_to_num().mean()
        metrics["step"] = torch.tensor(float(self.frames))
        self.log_dict(metrics)
