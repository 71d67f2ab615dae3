"""REINFORCE with a leave-one-out baseline, of whole completions."""

from typing import Any

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.credit import Credit, check_credit
from rl_lightning.agents.penalized import PenalizedAgent
from rl_lightning.agents.policy_loss import policy_loss
from rl_lightning.agents.token_batches import flat
from rl_lightning.core.errors import check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.token_advantages import rloo_advantages
from rl_lightning.maths.turn_advantages import find_turns, rloo_turn_advantages


class RLOO(PenalizedAgent):
    """A completion is as good as its reward is above the mean of the others in its group (Ahmadian
    et al. 2024, "Back to Basics", eq. 7), with importance ratios of whole completions.

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        kl_coef: β: β (log π − log π_ref) of a completion is taken off its reward; 0 needs no
            reference.
        credit: What a token of a conversation is credited with: the reward of the whole `episode`,
            or what is paid from its `turn` on, compared with the same turn of the others.
        gamma: Discount γ per turn, of `credit: turn`.
        clip_low: ε below a ratio of 1.
        clip_high: ε above it.
        **shared: Arguments of `TokenAgent`.
    """

    smallest_group = 2

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        kl_coef: float = 0.05,
        credit: Credit = "episode",
        gamma: float = 1.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        **shared: Any,
    ) -> None:
        super().__init__(spec, model, kl_coef=kl_coef, gamma=gamma, **shared)
        check_credit(credit, gamma)
        self.credit: Credit = credit
        check_range("model.clip_low", clip_low, 0.0, 1.0)
        check_range("model.clip_high", clip_high, 0.0)
        self.clip_low, self.clip_high = clip_low, clip_high

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        own, samples, reward = flat(batch["own"]), batch["reward"].shape[1], self.penalized(batch)
        if self.credit == "turn":
            turns = find_turns(reward, own, self.gamma)
            advantage = turns.spread(rloo_turn_advantages(turns, samples), own)
            return {"advantage": advantage.view_as(batch["own"])}
        advantage = rloo_advantages(reward.sum(1), samples)
        return {"advantage": advantage.view_as(batch["reward"])}

    def loss(self, batch: TensorDict) -> Loss:
        return policy_loss(
            batch,
            self.read(batch),
            loss_type="grpo",
            importance="trajectory",
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
