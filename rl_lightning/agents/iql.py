"""Implicit Q-learning."""

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
from rl_lightning.maths.distributions import DiagonalGaussian
from rl_lightning.nn.target import make_target
from rl_lightning.policies.offline import OfflineNetwork

MAX_WEIGHT = 100.0  # of a recorded action in the policy's loss, as in the authors' code


class IQL(ReplayAgent):
    """Offline reinforcement learning that never asks for the value of an action that was not taken
    (Kostrikov et al. 2022).

    V(s) is an upper expectile of Q over the recorded actions, close to the best of them; Q is
    learned from V of the next state; the policy imitates recorded actions, weighted by
    exp(β (Q − V)). The three losses are summed for one optimizer, whose groups may have learning
    rates of their own; none of them reaches the others' parameters, so this is the paper's
    algorithm 1 with its three gradients taken at the same weights.

    Args:
        spec: The environment's spaces; actions of any kind.
        encoder: Builds the encoder of observations.
        network: Builds policy, V and critics over the encoder.
        actor_lr: Learning rate of the policy; None: the optimizer's.
        value_lr: Learning rate of V; None: the optimizer's.
        expectile: τ in [½, 1): ½ values what the data do on average, → 1 the best they ever did.
        beta: β in 1/return: 0 imitates everything, large values only what is better than V. What
            it should be goes with the scale of rewards.
        tau: How far the target critics move at each update.
        **shared: Arguments of `ReplayAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], OfflineNetwork] = OfflineNetwork,
        *,
        actor_lr: float | None = None,
        value_lr: float | None = None,
        expectile: float = 0.7,
        beta: float = 3.0,
        tau: float = 0.005,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("expectile", expectile, 0.5, 0.9999)
        check_range("beta", beta, 0.0)
        check_range("tau", tau, 0.0, 1.0)
        check_range("actor_lr", actor_lr, 0.0)
        check_range("value_lr", value_lr, 0.0)
        self.policy = build(
            "IQL", network, spec, encoder, critics=2,
            needs=("actor", "q", "v"), instead="OfflineNetwork",
        )  # fmt: skip
        self.target = make_target(self.policy)
        del self.target.actor, self.target.action_head, self.target.value  # Q alone has a target
        self.expectile = expectile
        self.beta = beta
        self.tau = tau
        self.actor_lr, self.value_lr = actor_lr, value_lr

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        distribution = self.policy.policy(self.policy.features(x), mask)
        latent = distribution.sample() if explore else distribution.mode()
        return {"action": self.policy.action_head.to_action(latent)}

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`probabilities`, or `mean` and `std`, of π(·|s) `[B, A]`, and V(s), `value` `[B]`."""
        features = self.policy.features(x)
        distribution = self.policy.policy(features, mask)
        value = self.policy.v(features)
        if isinstance(distribution, DiagonalGaussian):
            std = distribution.log_std.exp()
            return {"mean": distribution.mean, "std": std, "value": value}
        return {"probabilities": distribution.probabilities(), "value": value}

    # --- learning -----------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        policy = self.policy
        return self.split_groups(
            super().parameter_groups(),
            ([*policy.actor.parameters(), *policy.action_head.parameters()], self.actor_lr),
            (list(policy.value.parameters()), self.value_lr),
        )

    def loss(self, batch: TensorDict) -> Loss:
        policy, target, action = self.policy, self.target, batch["action"]
        features = policy.features(batch["obs"])
        seen = features.detach()

        with torch.no_grad():
            shared = target.encoder is policy.encoder
            target_q = target.q(seen if shared else target.features(batch["obs"]), action).amin(0)
            next_value = policy.v(policy.features(batch["next_obs"]))
            td_target = batch["reward"] + batch["discount"] * next_value

        value = policy.v(seen)
        value_loss = losses.expectile_loss(target_q - value, self.expectile)  # eq. 5

        q = policy.q(features, action)  # (2, N)
        error = q - td_target
        q_loss = error.square().sum(0).mean()  # eq. 6

        advantage = target_q - value.detach()
        weight = (self.beta * advantage).exp().clamp(max=MAX_WEIGHT)
        distribution = policy.policy(seen, batch.get("action_mask", None))
        log_prob = distribution.log_prob(policy.action_head.to_latent(action))
        policy_loss = -(weight * log_prob).mean()  # eq. 7

        return Loss(
            value_loss + q_loss + policy_loss,
            lambda: {
                "loss/q": q_loss,
                "loss/value": value_loss,
                "loss/policy": policy_loss,
                "policy/weight": weight.mean(),
                "value/advantage": advantage.mean(),
                "value/q": q.mean(),
                "value/td_error": error.abs().mean(),
                "value/v": value.mean(),
            },
        )

    def after_update(self) -> None:
        self.move_target(self.tau)
        self.policy.action_head.keep_spread()
