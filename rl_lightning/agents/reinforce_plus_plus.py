"""REINFORCE++ of a language model."""

from typing import Any, Literal, get_args

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.penalized import PenalizedAgent
from rl_lightning.agents.policy_loss import policy_loss
from rl_lightning.agents.token_batches import flat, whitened
from rl_lightning.core.errors import check_one_of, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.token_advantages import group_advantages, returns_to_go, token_rewards
from rl_lightning.maths.token_losses import loss_normalizer

Baseline = Literal["none", "group"]


class REINFORCEPlusPlus(PenalizedAgent):
    """Reward-to-go of each token, whitened over the whole batch of all ranks (Hu et al. 2025): no
    critic, and no group, so that a single completion of each prompt will do. Where an environment
    pays for single turns, a token is credited with what is paid from it on.

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        baseline: `none`, or `group`: a completion's reward minus the mean of its group's, whitened
            over the batch (REINFORCE++-baseline), which needs several of each prompt.
        gamma: Discount γ per token.
        kl_coef: β of the penalty −β (log π − log π_ref) that each token's reward has; 0 needs no
            reference.
        clip_low: ε below a ratio of 1.
        clip_high: ε above it.
        **shared: Arguments of `TokenAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        baseline: Baseline = "none",
        gamma: float = 1.0,
        kl_coef: float = 0.01,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        **shared: Any,
    ) -> None:
        super().__init__(spec, model, kl_coef=kl_coef, gamma=gamma, **shared)
        check_one_of("model.baseline", baseline, get_args(Baseline))
        check_range("model.clip_low", clip_low, 0.0, 1.0)
        check_range("model.clip_high", clip_high, 0.0)
        self.baseline: Baseline = baseline
        self.smallest_group = 2 if baseline == "group" else 1
        self.clip_low, self.clip_high = clip_low, clip_high

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        own, total, reward = flat(batch["own"]), flat(batch["reward"]), self.penalized(batch)
        if self.baseline == "group":  # its mean is taken off at the end
            centred = group_advantages(total, batch["reward"].shape[1], "none")
            reward = reward + token_rewards(centred - total, own)
        advantage = whitened(returns_to_go(reward, own, self.gamma), own)
        return {"advantage": advantage.view_as(batch["own"])}

    def normalizer(self, batch: TensorDict) -> Tensor:
        return loss_normalizer(flat(batch["own"]), "dapo")

    def loss(self, batch: TensorDict) -> Loss:
        read = self.read(batch)
        return policy_loss(batch, read, clip_low=self.clip_low, clip_high=self.clip_high)
