"""Direct preference optimization of a language model."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.token_agent import TokenAgent
from rl_lightning.agents.token_batches import flat
from rl_lightning.core.errors import check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.token_imitation import dpo_loss
from rl_lightning.maths.token_losses import sequence_log_prob


class DPO(TokenAgent):
    """What was preferred becomes more likely than what was rejected, by as much as the reference
    model has it (Rafailov et al. 2023). It learns from recorded pairs (`CompletionDataModule`).

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        beta: β: the higher, the nearer to the reference.
        label_smoothing: Share of pairs taken to be the wrong way round, in [0, ½].
        **shared: Arguments of `TokenAgent`.
    """

    learns_from = ("pairs",)
    monitored = ("val/loss", "min")
    compares = False

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(spec, model, gamma=1.0, kl_coef=0.0, **shared)
        check_range("model.beta", beta, 0.0)
        check_range("model.label_smoothing", label_smoothing, 0.0, 0.5)
        self.beta, self.label_smoothing = beta, label_smoothing

    @property
    def needs_reference(self) -> bool:
        return True

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        return {}

    def loss(self, batch: TensorDict) -> Loss:
        said = self._totals(batch, self.read(batch).log_prob)
        value, found = self._compared(said, self._totals(batch, batch["reference_log_prob"]))
        return Loss(
            value,
            lambda: {
                "loss/policy": value,
                "policy/margin": found.margin,
                "policy/accuracy": found.accuracy,
            },
        )

    def judged(self, batch: TensorDict) -> dict[str, Tensor]:
        said = self._totals(batch, self.read(batch).log_prob)
        with self._reference() as backbone:
            known = self._totals(batch, self.read(batch, backbone).log_prob)
        pairs = [self._compared(*pair) for pair in zip(said.split(1), known.split(1), strict=True)]
        return {
            "loss": torch.stack([value for value, _ in pairs]),
            "margin": torch.stack([found.margin for _, found in pairs]),
            "accuracy": torch.stack([found.accuracy for _, found in pairs]),
        }

    def _compared(self, said: Tensor, known: Tensor) -> Any:
        """Loss and metrics of pairs, from log π and log π_ref `[P, 2]`."""
        four = said[:, 0], said[:, 1], known[:, 0], known[:, 1]
        return dpo_loss(*four, self.beta, self.label_smoothing)

    @staticmethod
    def _totals(batch: TensorDict, log_prob: Tensor) -> Tensor:
        """log p of whole completions, `[P, 2]`."""
        return sequence_log_prob(flat(log_prob), flat(batch["own"])).view(batch["length"].shape)
