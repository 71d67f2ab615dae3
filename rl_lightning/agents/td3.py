"""Twin delayed deep deterministic policy gradient."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.networks import build
from rl_lightning.agents.replay_agent import ReplayAgent
from rl_lightning.core.errors import check_range, whole
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.exploration import ActionNoise, GaussianNoise
from rl_lightning.maths import losses
from rl_lightning.nn.target import make_target
from rl_lightning.policies.continuous import ContinuousNetwork


class TD3(ReplayAgent):
    """Deterministic actor, twin critics, smoothed targets, delayed policy (Fujimoto et al. 2018).

    Critics' and actor's losses are summed for one optimizer, whose groups may have learning rates
    of their own; neither reaches the other's parameters. With several ranks the actor is in every
    `policy_delay`-th loss only: use `trainer.strategy: ddp_find_unused_parameters_true`.

    Args:
        spec: The environment's spaces; actions are a bounded Box.
        encoder: Builds the encoder of observations.
        network: Builds actor and critics over the encoder.
        actor_lr: Learning rate of the actor; None: the optimizer's.
        tau: How far the target networks move with each update of the policy.
        noise: Builds what is added to actions while training, in units of half an action's range.
        policy_delay: Updates of the critics per update of policy and targets.
        target_noise: Standard deviation of the noise on target actions, in the same units.
        target_noise_clip: Its largest magnitude.
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
        noise: Callable[[], ActionNoise] = GaussianNoise,
        policy_delay: int = 2,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("tau", tau, 0.0, 1.0)
        check_range("actor_lr", actor_lr, 0.0)
        policy_delay = whole("policy_delay", policy_delay, 1)
        check_range("target_noise", target_noise, 0.0)
        check_range("target_noise_clip", target_noise_clip, 0.0)
        self.policy = build(
            "TD3", network, spec, encoder, critics=2, stochastic=False,
            needs=("actor", "q"), instead="ContinuousNetwork",
        )  # fmt: skip
        self.target = make_target(self.policy)
        self.actor_lr = actor_lr
        self.tau = tau
        self.noise = noise()
        self.policy_delay = policy_delay
        self.target_noise = target_noise
        self.target_noise_clip = target_noise_clip
        self._moves_policy = False
        self._policy_loss: Tensor | None = None  # of the last update that had one

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
        return {"mean": action, "value": self.policy.q(features, action).amin(0)}

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
            action = target.action(next_features)
            noise = (torch.randn_like(action) * self.target_noise).clamp(
                -self.target_noise_clip, self.target_noise_clip
            )
            next_q = target.q(next_features, (action + noise).clamp(-1.0, 1.0)).amin(0)
            td_target = batch["reward"] + batch["discount"] * next_q

        features = policy.features(batch["obs"])
        q = policy.q(features, policy.from_env(batch["action"]))  # (2, N)
        error = q - td_target
        weight = batch.get("weight", None)
        q_loss = loss = losses.weighted_mean(0.5 * error.square().sum(0), weight)

        self._moves_policy = self.updates % self.policy_delay == 0
        if self._moves_policy:
            seen = features.detach()
            policy_loss = -policy.q(seen, policy.action(seen), frozen=True)[0].mean()
            loss = q_loss + policy_loss
            self._policy_loss = policy_loss.detach()

        td_error = error.detach().abs().mean(0)

        def metrics() -> dict[str, Any]:
            policy_loss = {} if self._policy_loss is None else {"loss/policy": self._policy_loss}
            return {
                "loss/q": q_loss,
                **policy_loss,
                "value/q": q.mean(),
                "value/td_error": td_error.mean(),
                "explore/noise": self.noise.strength(self.progress),
            }

        return Loss(loss, metrics, row_errors=td_error)

    def after_update(self) -> None:
        if self._moves_policy:
            self.move_target(self.tau)
