"""Advantage actor-critic."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from rl_lightning.agents.agent import Agent
from rl_lightning.core.errors import check_range, whole
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec, Rollout
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.maths import losses
from rl_lightning.maths.returns import gae
from rl_lightning.policies.actor_critic import ActorCritic
from rl_lightning.policies.policy import RolloutPolicy


class A2C(Agent):
    """The synchronous form of A3C (Mnih et al. 2016): one update per short rollout.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder of observations.
        network: Builds policy and value function over the encoder.
        gae_lambda: λ of generalised advantage estimation; 1 gives the n-step returns of the paper.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the value loss ½(V − G)².
        normalize_advantage: Standardise advantages within the rollout.
        sequence_length: With a recurrent network, steps per training sequence, a divisor of
            `data.rollout_steps`; None for the whole rollout.
        **shared: Arguments of `Agent`; `optimizer` None is RMSprop, lr 7e-4, α 0.99, ε 1e-5.
    """

    default_optimizer = staticmethod(partial(torch.optim.RMSprop, lr=7e-4, alpha=0.99, eps=1e-5))

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], RolloutPolicy] = ActorCritic,
        *,
        gae_lambda: float = 1.0,
        entropy_coef: float = 0.0,
        value_coef: float = 0.5,
        normalize_advantage: bool = False,
        sequence_length: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("gae_lambda", gae_lambda, 0.0, 1.0)
        check_range("entropy_coef", entropy_coef, 0.0)
        check_range("value_coef", value_coef, 0.0)
        self.policy = network(spec, encoder)
        self.need_critic()
        self.gae_lambda = gae_lambda
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.normalize_advantage = normalize_advantage
        if sequence_length is not None:
            self.sequence_length = whole("model.sequence_length", sequence_length, 1)

    def prepare(self, rollout: Rollout) -> TensorDict:
        steps = rollout.steps
        _, value = self.policy.recall(steps)
        next_value = self.policy.next_values(rollout, value)
        terminated, done = steps["terminated"], steps["terminated"] | steps["truncated"]
        reward = self.policy.rewards(steps)
        advantage = gae(reward, value, next_value, terminated, done, self.gamma, self.gae_lambda)
        target = advantage + value
        self.note_critic(value, target, steps.get("valid", None))
        return self.policy.training_batch(steps, value=value, advantage=advantage, target=target)

    def loss(self, batch: TensorDict) -> Loss:
        valid = batch.get("valid", None)
        log_prob, entropy, value = self.policy.evaluate(batch)
        advantage = batch["advantage"]
        if self.normalize_advantage:
            advantage = losses.standardize(advantage, valid)

        policy_loss = losses.policy_gradient_loss(log_prob, advantage, valid)
        value_loss = losses.value_loss(value, batch["target"], valid=valid)
        mean_entropy = losses.mean(entropy, valid)
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * mean_entropy
        return Loss(
            loss,
            lambda: {
                "loss/policy": policy_loss,
                "loss/value": value_loss,
                "policy/entropy": mean_entropy,
            },
        )
