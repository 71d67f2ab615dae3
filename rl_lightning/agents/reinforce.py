"""REINFORCE, with and without a learned baseline."""

import warnings
from collections.abc import Callable
from typing import Any

from tensordict import TensorDict

from rl_lightning.agents.agent import Agent
from rl_lightning.core.errors import check_range, whole
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec, Rollout
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.maths import losses
from rl_lightning.maths.returns import discounted_returns, ends_within, gae
from rl_lightning.policies.actor_critic import ActorCritic
from rl_lightning.policies.policy import RolloutPolicy


class REINFORCE(Agent):
    """Monte-Carlo policy gradient with reward-to-go (Williams 1992).

    With `baseline`, the advantage is G − V(s), and where a recording stops without the episode's
    end (a time limit, or the rollout's last step) G goes on with V. Without, there is no V to go
    on with: a time limit counts as an end, and the steps of each environment's unfinished last
    episode are left out of the loss; choose `data.rollout_steps` well above an episode's length.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder of observations.
        network: Builds policy and value function over the encoder.
        baseline: Learn a value function and subtract it.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the value loss ½(V − G)².
        normalize_advantage: Standardise advantages (without baseline: returns) within the rollout.
        sequence_length: With a recurrent network, steps per training sequence, a divisor of
            `data.rollout_steps`; None for the whole rollout.
        **shared: Arguments of `Agent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], RolloutPolicy] = ActorCritic,
        *,
        baseline: bool = True,
        entropy_coef: float = 0.0,
        value_coef: float = 0.5,
        normalize_advantage: bool = True,
        sequence_length: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("entropy_coef", entropy_coef, 0.0)
        check_range("value_coef", value_coef, 0.0)
        # Built by the command line or by `partial`, a network takes further keywords too.
        make: Callable[..., RolloutPolicy] = network
        try:
            self.policy = make(spec, encoder, critic=baseline)
        except TypeError as error:  # of a policy that cannot be told
            if "unexpected keyword argument 'critic'" not in str(error):
                raise
            self.policy = make(spec, encoder)
        if baseline:
            self.need_critic()
        self.baseline = baseline
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.normalize_advantage = normalize_advantage
        if sequence_length is not None:
            self.sequence_length = whole("model.sequence_length", sequence_length, 1)

    def prepare(self, rollout: Rollout) -> TensorDict:
        steps = rollout.steps
        reward, terminated = self.policy.rewards(steps), steps["terminated"]
        done = terminated | steps["truncated"]
        if self.baseline:
            _, value = self.policy.recall(steps)
            next_value = self.policy.next_values(rollout, value)
            advantage = gae(reward, value, next_value, terminated, done, self.gamma, 1.0)
            return self.policy.training_batch(
                steps, value=value, advantage=advantage, target=advantage + value
            )
        complete = ends_within(done)
        if "valid" in steps.keys():  # noqa: SIM118  (a TensorDict is no dict)
            complete = complete & steps["valid"]
        if not complete.any():
            warnings.warn(
                "no episode ended within this rollout, and without baseline only whole episodes "
                f"teach: raise data.rollout_steps ({len(done)}), or set model.baseline: true",
                stacklevel=2,
            )
        return self.policy.training_batch(
            steps, advantage=discounted_returns(reward, done, self.gamma), valid=complete
        )

    def loss(self, batch: TensorDict) -> Loss:
        valid = batch.get("valid", None)
        log_prob, entropy, value = self.policy.evaluate(batch)
        advantage = batch["advantage"]
        if self.normalize_advantage:
            advantage = losses.standardize(advantage, valid)

        policy_loss = losses.policy_gradient_loss(log_prob, advantage, valid)
        mean_entropy = losses.mean(entropy, valid)
        loss = policy_loss - self.entropy_coef * mean_entropy
        metrics = {"loss/policy": policy_loss, "policy/entropy": mean_entropy}
        if self.baseline:
            value_loss = losses.value_loss(value, batch["target"], valid=valid)
            loss = loss + self.value_coef * value_loss
            metrics["loss/value"] = value_loss
        return Loss(loss, metrics)
