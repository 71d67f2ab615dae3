"""Soft actor-critic."""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.networks import build
from rl_lightning.agents.replay_agent import ReplayAgent
from rl_lightning.core.errors import check_finite, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.exploration import ActionNoise
from rl_lightning.maths import losses
from rl_lightning.nn.target import make_target
from rl_lightning.policies.continuous import ContinuousNetwork


class SAC(ReplayAgent):
    """Maximum-entropy actor-critic for continuous actions (Haarnoja et al. 2018).

    Twin critics, a tanh-squashed Gaussian policy, and a temperature α that keeps the policy's
    entropy at a target. The three losses are summed for one optimizer, whose groups may have
    learning rates of their own; none of them reaches the others' parameters, so this is the paper's
    algorithm 1 with its three gradients taken at the same weights.

    Args:
        spec: The environment's spaces; actions are a bounded Box.
        encoder: Builds the encoder of observations.
        network: Builds actor and critics over the encoder.
        actor_lr: Learning rate of the actor; None: the optimizer's.
        temperature_lr: Learning rate of log α; None: the optimizer's.
        tau: How far the target critics move at each update.
        temperature: Initial α.
        learn_temperature: Adjust α to the target entropy; otherwise it stays.
        target_entropy: In nats, of actions in [−1, 1]; None: minus the number of dimensions.
        noise: Builds noise that is added to actions while training, in units of half an action's
            range; None: the policy's own randomness only.
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
        temperature_lr: float | None = None,
        tau: float = 0.005,
        temperature: float = 1.0,
        learn_temperature: bool = True,
        target_entropy: float | None = None,
        noise: Callable[[], ActionNoise] | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("tau", tau, 0.0, 1.0)
        check_range("temperature", temperature, 1e-8)
        check_finite("target_entropy", target_entropy)
        check_range("actor_lr", actor_lr, 0.0)
        check_range("temperature_lr", temperature_lr, 0.0)
        self.policy = build(
            "SAC", network, spec, encoder, critics=2, stochastic=True,
            needs=("actor", "q"), instead="ContinuousNetwork",
        )  # fmt: skip
        self.target = make_target(self.policy)
        del self.target.actor  # the online policy chooses next actions
        self.log_alpha = torch.nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature
        )
        self.target_entropy = -float(self.policy.size) if target_entropy is None else target_entropy
        self.tau = tau
        self.actor_lr, self.temperature_lr = actor_lr, temperature_lr
        self.noise = None if noise is None else noise()

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        features = self.policy.features(x)
        if not explore:
            return {"action": self.policy.to_env(self.policy.action(features))}
        action = self.policy.policy(features).sample().tanh()
        if self.noise is None:
            return {"action": self.policy.to_env(action)}
        noise = self.noise.sample(action.shape, self.progress, state).to(action)
        out = {"action": self.policy.to_env((action + noise).clamp(-1.0, 1.0))}
        return out if state is None else {**out, "next_state": noise}

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`mean` and `std` before tanh, `[B, A]`, and Q of the middle action, `value` `[B]`."""
        features = self.policy.features(x)
        distribution = self.policy.policy(features)
        value = self.policy.q(features, self.policy.action(features)).amin(0)
        return {"mean": distribution.mean, "std": distribution.log_std.exp(), "value": value}

    def initial_state(self, num_envs: int) -> Tensor | None:
        if self.noise is None or not self.noise.remembers:
            return None
        return torch.zeros(num_envs, self.policy.size, device=self.device)

    # --- learning -----------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        temperature = [self.log_alpha] if self.log_alpha.requires_grad else []
        return self.split_groups(
            super().parameter_groups(),
            (list(self.policy.actor.parameters()), self.actor_lr),
            (temperature, self.temperature_lr),
        )

    def loss(self, batch: TensorDict) -> Loss:
        policy, target = self.policy, self.target
        features = policy.features(batch["obs"])
        alpha = self.log_alpha.detach().exp()

        with torch.no_grad():
            next_features = policy.features(batch["next_obs"])
            next_policy = policy.policy(next_features)
            latent = next_policy.sample()
            if target.encoder is not policy.encoder:
                next_features = target.features(batch["next_obs"])
            next_q = target.q(next_features, latent.tanh()).amin(0)
            soft_value = next_q - alpha * next_policy.log_prob(latent)
            td_target = batch["reward"] + batch["discount"] * soft_value

        q = policy.q(features, policy.from_env(batch["action"]))  # (2, N)
        error = q - td_target
        weight = batch.get("weight", None)
        q_loss = losses.weighted_mean(0.5 * error.square().sum(0), weight)

        seen = features.detach()
        distribution = policy.policy(seen)
        latent = distribution.sample()
        log_prob = distribution.log_prob(latent)
        best = policy.q(seen, latent.tanh(), frozen=True).amin(0)
        policy_loss = (alpha * log_prob - best).mean()
        entropy = -log_prob.detach().mean()
        loss = q_loss + policy_loss
        if self.log_alpha.requires_grad:
            loss = loss + self.log_alpha * (entropy - self.target_entropy)

        td_error = error.detach().abs().mean(0)

        def metrics() -> dict[str, Any]:
            told = {
                "loss/q": q_loss,
                "loss/policy": policy_loss,
                "policy/entropy": entropy,
                "policy/temperature": alpha,
                "value/q": q.mean(),
                "value/td_error": td_error.mean(),
            }
            noise = self.noise
            return (
                told if noise is None else {**told, "explore/noise": noise.strength(self.progress)}
            )

        return Loss(loss, metrics, row_errors=td_error)

    def after_update(self) -> None:
        self.move_target(self.tau)
