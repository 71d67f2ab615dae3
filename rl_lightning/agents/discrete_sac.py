"""Soft actor-critic for discrete actions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.networks import build
from rl_lightning.agents.replay_agent import ReplayAgent
from rl_lightning.core.errors import check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.maths import losses
from rl_lightning.maths.distributions import Categorical
from rl_lightning.nn.target import make_target
from rl_lightning.policies.discrete import DiscreteNetwork


class DiscreteSAC(ReplayAgent):
    """Maximum-entropy actor-critic for discrete actions (Christodoulou 2019).

    Expectations over actions are sums, so nothing is sampled while learning. As in SAC, the three
    losses are summed for one optimizer, and none reaches the others' parameters.

    With a `GuidedEncoder` the entropy gives way to −KL(π ‖ priorʷ), w its weight: soft values are
    Σ π (Q − α log π + α w log prior), and π ∝ priorʷ · exp(logits), so that logits of Q / α are
    best whatever w is.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds the encoder of observations.
        network: Builds actor and critics over the encoder.
        actor_lr: Learning rate of the actor; None: the optimizer's.
        temperature_lr: Learning rate of log α; None: the optimizer's.
        tau: How far the target critics move at each update.
        temperature: Initial α.
        learn_temperature: Adjust α to the target entropy; otherwise it stays.
        target_entropy_ratio: Target entropy as a share of the log of the allowed actions' number.
            The paper's 0.98 is nearly uniform, and too much for most tasks.
        **shared: Arguments of `ReplayAgent`.
    """

    tells_priorities = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[
            [EnvSpec, Callable[[EnvSpec], Encoder]], DiscreteNetwork
        ] = DiscreteNetwork,
        *,
        actor_lr: float | None = None,
        temperature_lr: float | None = None,
        tau: float = 0.005,
        temperature: float = 1.0,
        learn_temperature: bool = True,
        target_entropy_ratio: float = 0.3,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("tau", tau, 0.0, 1.0)
        check_range("temperature", temperature, 1e-8)
        check_range("target_entropy_ratio", target_entropy_ratio, 0.0, 1.0)
        check_range("actor_lr", actor_lr, 0.0)
        check_range("temperature_lr", temperature_lr, 0.0)
        self.policy = build(
            "DiscreteSAC", network, spec, encoder,
            needs=("actor", "q"), instead="DiscreteNetwork",
        )  # fmt: skip
        self.target = make_target(self.policy)
        del self.target.actor  # the online policy judges next actions
        self.start = int(spec.action_space.start)  # type: ignore[attr-defined]
        self.log_alpha = torch.nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature
        )
        self.target_entropy_ratio = target_entropy_ratio
        self.tau = tau
        self.actor_lr, self.temperature_lr = actor_lr, temperature_lr

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        distribution = self.policy.policy(self.policy.features(x), mask, x)
        action = distribution.sample() if explore else distribution.mode()
        return {"action": action + self.start}

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`probabilities` and `values` `[B, A]`, and the soft `value` of the state `[B]`."""
        features = self.policy.features(x)
        distribution = self.policy.policy(features, mask, x)
        q = self.policy.q(features).amin(0)
        return {
            "probabilities": distribution.probabilities(),
            "values": q,
            "value": self._soft_value(q, distribution, x),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        temperature = [self.log_alpha] if self.log_alpha.requires_grad else []
        return self.split_groups(
            super().parameter_groups(),
            (list(self.policy.actor.parameters()), self.actor_lr),
            (temperature, self.temperature_lr),
        )

    def loss(self, batch: TensorDict) -> Loss:
        policy, target = self.policy, self.target
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_obs, next_mask = batch["next_obs"], batch.get("next_action_mask", None)
            next_features = policy.features(next_obs)
            next_policy = policy.policy(next_features, next_mask, next_obs)
            if target.encoder is not policy.encoder:
                next_features = target.features(next_obs)
            next_q = target.q(next_features).amin(0)
            next_value = self._soft_value(next_q, next_policy, next_obs)
            td_target = batch["reward"] + batch["discount"] * next_value

        features = policy.features(batch["obs"])
        q = policy.q(features)  # (2, N, A)
        index = (batch["action"] - self.start)[None, :, None].expand(2, -1, 1)
        error = q.gather(2, index).squeeze(2) - td_target  # (2, N)
        weight = batch.get("weight", None)
        q_loss = losses.weighted_mean(0.5 * error.square().sum(0), weight)

        mask = batch.get("action_mask", None)
        distribution = policy.policy(features.detach(), mask, batch["obs"])
        policy_loss = -self._soft_value(q.detach().amin(0), distribution, batch["obs"]).mean()
        entropy = distribution.entropy().detach().mean()
        loss = q_loss + policy_loss
        if self.log_alpha.requires_grad:
            if mask is None:
                most = math.log(policy.mask_dim)
            else:
                most = mask.sum(-1).clamp(min=1).float().log().mean()
            loss = loss + self.log_alpha * (entropy - self.target_entropy_ratio * most)

        td_error = error.detach().abs().mean(0)
        return Loss(
            loss,
            lambda: {
                "loss/q": q_loss,
                "loss/policy": policy_loss,
                "policy/entropy": entropy,
                "policy/temperature": alpha,
                "value/q": q.mean(),
                "value/td_error": td_error.mean(),
            },
            row_errors=td_error,
        )

    def _soft_value(self, q: Tensor, policy: Categorical, x: Stored | None = None) -> Tensor:
        """Σₐ π(a|s) (Q(s, a) − α log π(a|s)), `[N]`, and α w log prior, if observations `x` have
        a prior."""
        alpha = self.log_alpha.detach().exp()
        if x is not None:
            q = self.policy.guided_logits(x, q, alpha)
        # Not in one sum: of a masked action, α log π may be −∞, and 0 · ∞ is no number.
        return (policy.probabilities() * q).sum(-1) + alpha * policy.entropy()

    def after_update(self) -> None:
        self.move_target(self.tau)
