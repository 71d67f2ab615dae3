"""Group-relative policy optimization of a language model."""

from typing import Any, get_args

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.credit import Credit, check_credit, token_scores
from rl_lightning.agents.policy_loss import policy_loss
from rl_lightning.agents.token_agent import TokenAgent
from rl_lightning.agents.token_batches import flat, over_ranks
from rl_lightning.core.errors import check_one_of
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.token_advantages import Scale, group_advantages
from rl_lightning.maths.token_losses import (
    Importance,
    KLEstimator,
    LossType,
    check_policy_loss,
    loss_normalizer,
)
from rl_lightning.maths.turn_advantages import find_turns, turn_advantages


class GRPO(TokenAgent):
    """A completion is as good as its reward is above the mean of its group (Shao et al. 2024).

    What the literature calls by other names are values of its arguments:

    - DAPO (Yu et al. 2025): `loss_type: dapo` (the default) with `clip_high: 0.28`
    - Dr. GRPO (Liu et al. 2025): `loss_type: dr_grpo`, `scale: none`
    - GSPO (Zheng et al. 2025): `importance: sequence`, `loss_type: grpo`, clips of 3e-4 and 4e-4
    - CISPO (MiniMax-M1 2025): `loss_type: cispo`

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        loss_type: What the loss is averaged over, see `token_policy_loss`.
        importance: Whether ratios are those of tokens, whole sequences or trajectories.
        scale: By whose standard deviation advantages are divided: the `group`'s, the `batch`'s, of
            all ranks, or `none`.
        credit: What a token of a conversation is credited with: the reward of the whole `episode`,
            or what is paid from its `turn` on, compared with the same turn of the others.
        gamma: Discount γ per turn, of `credit: turn`.
        clip_low: ε below a ratio of 1.
        clip_high: ε above it.
        dual_clip: Largest ratio that a negative advantage is multiplied with; None: any.
        kl_coef: β, weight of the KL to the reference model; 0 needs none.
        kl_estimator: k1, k2 or k3, see `kl_estimate`.
        kl_correction: Whether the KL is weighted by the importance ratio.
        **shared: Arguments of `TokenAgent`.
    """

    smallest_group = 2

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        loss_type: LossType = "dapo",
        importance: Importance = "token",
        scale: Scale = "group",
        credit: Credit = "episode",
        gamma: float = 1.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        kl_coef: float = 0.0,
        kl_estimator: KLEstimator = "k3",
        kl_correction: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(spec, model, gamma=gamma, kl_coef=kl_coef, **shared)
        check_credit(credit, gamma)
        self.credit: Credit = credit
        check_one_of("model.scale", scale, get_args(Scale))
        self.scale: Scale = scale
        self.loss_type: LossType = loss_type
        check_policy_loss(loss_type, importance, clip_low, clip_high, dual_clip, kl_estimator)
        self.terms: dict[str, Any] = {
            "loss_type": loss_type,
            "importance": importance,
            "clip_low": clip_low,
            "clip_high": clip_high,
            "dual_clip": dual_clip,
            "kl_coef": kl_coef,
            "kl_estimator": kl_estimator,
            "kl_correction": kl_correction,
        }

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        reward = batch["reward"]
        if self.credit == "turn":
            turns = find_turns(token_scores(batch), flat(batch["own"]), self.gamma)
            everyone, _ = over_ranks(turns.to_go[turns.there])
            advantage = turn_advantages(turns, reward.shape[1], self.scale, everyone)
            return {"advantage": turns.spread(advantage, flat(batch["own"])).view_as(batch["own"])}
        everyone, own = over_ranks(reward)
        advantage = group_advantages(everyone.reshape(-1), reward.shape[1], self.scale)
        return {"advantage": advantage.view(everyone.shape)[own]}

    def normalizer(self, batch: TensorDict) -> Tensor | None:
        if self.loss_type == "bnpo":
            return None
        return loss_normalizer(flat(batch["own"]), self.loss_type, int(batch["most"][0]))

    def loss(self, batch: TensorDict) -> Loss:
        return policy_loss(batch, self.read(batch), **self.terms)
