"""Deep deterministic policy gradient."""

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
from rl_lightning.exploration import ActionNoise, OrnsteinUhlenbeck
from rl_lightning.maths import losses
from rl_lightning.nn.target import make_target
from rl_lightning.policies.continuous import ContinuousNetwork


class DDPG(ReplayAgent):
    """Deterministic actor and one critic (Lillicrap et al. 2016).

    Critic's and actor's losses are summed for one optimizer, whose groups may have learning rates
    of their own; neither reaches the other's parameters.

    Args:
        spec: The environment's spaces; actions are a bounded Box.
        encoder: Builds the encoder of observations.
        network: Builds actor and critic over the encoder.
        actor_lr: Learning rate of the actor; None: the optimizer's.
        tau: How far the target networks move with each update.
        noise: Builds what is added to actions while training, in units of half an action's range.
        **shared: Arguments of `ReplayAgent`.
    """

    tells_priorities = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[
            [EnvSpec, Callable[[EnvSpec], Encoder]], ContinuousNetwork
        ] = ContinuousNetwork,
        *,
        actor_lr: float | None = None,
        tau: float = 0.005,
        noise: Callable[[], ActionNoise] = OrnsteinUhlenbeck,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("tau", tau, 0.0, 1.0)
        check_range("actor_lr", actor_lr, 0.0)
        self.policy = build(
            "DDPG", network, spec, encoder, critics=1, stochastic=False,
            needs=("actor", "q"), instead="ContinuousNetwork",
        )  # fmt: skip
        self.target = make_target(self.policy)
        self.actor_lr = actor_lr
        self.tau = tau
        self.noise = noise()

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        action = self.policy.action(self.policy.features(x))
        if not explore:
            return {"action": self.policy.to_env(action)}
        noise = self.noise.sample(action.shape, self.progress, state).to(action)
        out = {"action": self.policy.to_env((action + noise).clamp(-1.0, 1.0))}
        return out if state is None else {**out, "next_state": noise}

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The action in [−1, 1], `mean` `[B, A]`, and its Q, `value` `[B]`."""
        features = self.policy.features(x)
        action = self.policy.action(features)
        return {"mean": action, "value": self.policy.q(features, action)[0]}

    def initial_state(self, num_envs: int) -> Tensor | None:
        if not self.noise.remembers:
            return None
        return torch.zeros(num_envs, self.policy.size, device=self.device)

    # --- learning -----------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        actor = list(self.policy.actor.parameters())
        return self.split_groups(super().parameter_groups(), (actor, self.actor_lr))

    def loss(self, batch: TensorDict) -> Loss:
        policy, target = self.policy, self.target
        with torch.no_grad():
            next_features = target.features(batch["next_obs"])
            next_q = target.q(next_features, target.action(next_features))[0]
            td_target = batch["reward"] + batch["discount"] * next_q

        features = policy.features(batch["obs"])
        error = policy.q(features, policy.from_env(batch["action"]))[0] - td_target
        q_loss = losses.weighted_mean(0.5 * error.square(), batch.get("weight", None))
        seen = features.detach()
        policy_loss = -policy.q(seen, policy.action(seen), frozen=True).mean()

        td_error = error.detach().abs()
        return Loss(
            q_loss + policy_loss,
            lambda: {
                "loss/q": q_loss,
                "loss/policy": policy_loss,
                "value/q": -policy_loss,
                "value/td_error": td_error.mean(),
                "explore/noise": self.noise.strength(self.progress),
            },
            row_errors=td_error,
        )

    def after_update(self) -> None:
        self.move_target(self.tau)
