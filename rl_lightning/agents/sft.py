"""Supervised fine-tuning of a language model, on recorded completions or on the best of its own."""

from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.token_agent import TokenAgent
from rl_lightning.agents.token_batches import flat, shared
from rl_lightning.core.errors import check_finite, check_one_of
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths import losses
from rl_lightning.maths.token_imitation import sft_loss
from rl_lightning.maths.token_losses import loss_normalizer

Keep = Literal["all", "best"]


class SFT(TokenAgent):
    """Cross-entropy of completions' tokens: a warm start from what others wrote
    (`CompletionDataModule`), or expert iteration (Anthony et al. 2017; "rejection sampling"),
    which imitates those of the model's own completions that were judged well (`PromptDataModule`).

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        keep: Of each group of its own completions, imitate the `best` alone, the first of equals,
            or `all`. Of recorded ones each prompt has a single one.
        min_reward: Imitate none of its own of less reward; None: whatever it is.
        **shared: Arguments of `TokenAgent`.
    """

    learns_from = ("completions", "demonstrations")
    monitored = ("val/loss", "min")
    compares = False

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        keep: Keep = "best",
        min_reward: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, model, gamma=1.0, kl_coef=0.0, **shared)
        check_one_of("model.keep", keep, get_args(Keep))
        check_finite("model.min_reward", min_reward)
        self.keep: Keep = keep
        self.min_reward = min_reward

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        reward = batch["reward"]
        kept = torch.ones_like(reward, dtype=torch.bool)
        if self.keep == "best":
            best = reward.argmax(1, keepdim=True)
            kept = torch.zeros_like(kept).scatter_(1, best, True)
        if self.min_reward is not None:
            kept = kept & (reward >= self.min_reward)
        self.rollout_metrics = {"policy/imitated": kept.float().mean()}
        return {"own": batch["own"] & kept[..., None]}

    def normalizer(self, batch: TensorDict) -> Tensor:
        return loss_normalizer(flat(batch["own"]), "dapo")

    def loss(self, batch: TensorDict) -> Loss:
        read = self.read(batch)
        value = sft_loss(flat(read.log_prob), flat(batch["own"]), shared(batch, "normalizer"))
        return Loss(
            value,
            lambda: {
                "loss/policy": value,
                "policy/entropy": losses.mean(read.entropy, batch["own"]),
            },
        )

    def judged(self, batch: TensorDict) -> dict[str, Tensor]:
        return {"loss": -self.read(batch).log_prob[batch["own"]]}
