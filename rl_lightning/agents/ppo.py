"""Proximal policy optimisation."""

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict

from rl_lightning.agents.agent import Agent
from rl_lightning.core.errors import check_range, whole
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import Schedule, factor
from rl_lightning.core.types import EnvSpec, Rollout
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.maths import losses
from rl_lightning.maths.returns import gae
from rl_lightning.policies.actor_critic import ActorCritic
from rl_lightning.policies.policy import RolloutPolicy


class PPO(Agent):
    """PPO with a clipped surrogate (Schulman et al. 2017).

    Per rollout: values and GAE once, then `data.passes` shuffled passes of minibatches. The details
    that matter (Huang et al. 2022, "The 37 implementation details"): advantages are normalised per
    minibatch, orthogonal initialisation with a small last actor layer, Adam ε = 1e-5, gradients
    clipped by `trainer.gradient_clip_val`, truncated episodes bootstrap from their final
    observation.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder of observations.
        network: Builds policy and value function over the encoder.
        gae_lambda: λ of generalised advantage estimation.
        clip_range: ε of the clipped surrogate.
        clip_schedule: Schedule of `clip_range` and `clip_range_value`.
        clip_range_value: ε of value clipping, in units of return; None for none.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the value loss ½(V − G)².
        normalize_advantage: Standardise advantages within each minibatch.
        target_kl: Skip a rollout's remaining minibatches once one's approximate KL exceeds this;
            None for never.
        sequence_length: With a recurrent network, steps per training sequence, a divisor of
            `data.rollout_steps`; None for the whole rollout.
        **shared: Arguments of `Agent`.
    """

    reuses_rollouts = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], RolloutPolicy] = ActorCritic,
        *,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        clip_schedule: Schedule = "constant",
        clip_range_value: float | None = None,
        entropy_coef: float = 0.0,
        value_coef: float = 0.5,
        normalize_advantage: bool = True,
        target_kl: float | None = None,
        sequence_length: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        factor(clip_schedule, 0.0)
        check_range("gae_lambda", gae_lambda, 0.0, 1.0)
        check_range("clip_range", clip_range, 0.0)
        check_range("clip_range_value", clip_range_value, 0.0)
        check_range("entropy_coef", entropy_coef, 0.0)
        check_range("value_coef", value_coef, 0.0)
        check_range("target_kl", target_kl, 0.0)
        self.policy = network(spec, encoder)
        self.need_critic()
        self.gae_lambda = gae_lambda
        self.clip_range = clip_range
        self.clip_schedule: Schedule = clip_schedule
        self.clip_range_value = clip_range_value
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        if sequence_length is not None:
            self.sequence_length = whole("model.sequence_length", sequence_length, 1)

    def prepare(self, rollout: Rollout) -> TensorDict:
        steps = rollout.steps
        log_prob, value = self.policy.recall(steps)
        next_value = self.policy.next_values(rollout, value)
        terminated, done = steps["terminated"], steps["terminated"] | steps["truncated"]
        reward = self.policy.rewards(steps)
        advantage = gae(reward, value, next_value, terminated, done, self.gamma, self.gae_lambda)
        target = advantage + value
        self.note_critic(value, target, steps.get("valid", None))
        return self.policy.training_batch(
            steps, log_prob=log_prob, value=value, advantage=advantage, target=target
        )

    def loss(self, batch: TensorDict) -> Loss:
        scale = factor(self.clip_schedule, self.progress)
        clip_range = self.clip_range * scale
        clip_value = None if self.clip_range_value is None else self.clip_range_value * scale
        valid = batch.get("valid", None)
        log_prob, entropy, value = self.policy.evaluate(batch)
        log_ratio = log_prob - batch["log_prob"]
        advantage = batch["advantage"]
        if self.normalize_advantage:
            advantage = losses.standardize(advantage, valid)

        policy_loss = losses.ppo_policy_loss(log_ratio, advantage, clip_range, valid)
        value_loss = losses.value_loss(value, batch["target"], batch["value"], clip_value, valid)
        mean_entropy = losses.mean(entropy, valid)
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * mean_entropy

        stop = None
        if self.target_kl is not None:
            stop = losses.approx_kl(log_ratio.detach(), valid) - self.target_kl

        def metrics() -> dict[str, Any]:
            kl, clipped = losses.ratio_metrics(log_ratio, clip_range, valid)
            return {
                "loss/policy": policy_loss,
                "loss/value": value_loss,
                "policy/entropy": mean_entropy,
                "policy/kl": kl,
                "policy/clip_fraction": clipped,
                "policy/clip_range": clip_range,
            }

        return Loss(loss, metrics, stop=stop)
