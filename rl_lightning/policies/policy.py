"""The base of everything that acts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import Rollout, Stored
from rl_lightning.encoders.guided import GuidedEncoder, guide_of
from rl_lightning.maths import losses, returns


class Evaluation(NamedTuple):
    """What a loss needs of the current policy, each of the batch's shape, with gradient."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class Policy(nn.Module):
    """An encoder, and what comes of its features: actions, values, or both.

    Agents ask of it what they need: those that learn from rollouts what a `RolloutPolicy` has,
    those that learn from replay its networks. One that does not offer that says so when asked.

    Attributes:
        encoder: Reads observations.
        state_dim: Width of the recurrent state; 0 without memory.
        mask_dim: Width of the action masks it takes, A; 0 if it takes none.
    """

    encoder: Any
    state_dim: int = 0
    mask_dim: int = 0
    takes_prior: bool = False
    """Whether its logits go through `guided_logits`; what does not is refused a `GuidedEncoder`."""

    @property
    def encoders(self) -> Sequence[Any]:
        """All encoders that read observations."""
        return (self.encoder,)

    @property
    def guide(self) -> GuidedEncoder | None:
        """The encoder, if it brings a prior along."""
        return guide_of(self.encoder)

    def guided_logits(self, x: Stored, logits: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Logits `[N, A]` of preprocessed observations + scale · weight · log prior, if any."""
        guide = self.guide
        return logits if guide is None else guide.mix(x, logits, scale)

    def allowed(self, x: Stored, mask: Tensor | None) -> Tensor | None:
        """Which actions may be chosen, bool `[N, A]`: the mask, and of a policy that knows more
        about stored observations what it knows; None: all of them."""
        return mask

    def features(self, x: Stored) -> Tensor:
        """Raw stored observations `[N, ...]`, as replay keeps them → features `[N, D]`."""
        return self.encoder(self.encoder.standardized(x))

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Choose actions, see `Agent.act`."""
        raise NotImplementedError(f"{type(self).__name__} does not act by itself: its agent does")

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What it thinks of observations, `[B, ...]` each, by name; by itself nothing."""
        return {}

    def begin_rollout(self) -> None:
        """Called before collecting, as an encoder's."""

    def metrics(self) -> dict[str, float]:
        """Values to log since the last call, by name."""
        return {}

    def evaluate(self, batch: TensorDict) -> Evaluation:
        """log π of stored actions, entropy and value under the current weights, with gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not evaluate stored actions")

    def recall(self, steps: TensorDict) -> tuple[Tensor, Tensor]:
        """log π and value at the time of acting, `[T, B]` each."""
        raise NotImplementedError(f"{type(self).__name__} does not recall how it acted")


class RolloutPolicy(Policy):
    """A policy for agents that learn from rollouts.

    It is made of `act`, `evaluate` and, if it has a critic, `value`; the rest follows from these.
    """

    _kl_to_prior: Tensor | None = None

    @property
    def has_critic(self) -> bool:
        """Whether it can `value` observations."""
        return type(self).value is not RolloutPolicy.value

    def value(self, x: Stored, state: Tensor | None = None) -> Tensor:
        """V(s) of preprocessed observations `[N, ...]`, `[N]`."""
        raise NotImplementedError(f"{type(self).__name__} does not value observations")

    def rewards(self, steps: TensorDict) -> Tensor:
        """The rewards of a rollout that are learned from, `[T, B]`: those of the environment,
        unless how a policy has acted is paid for too.

        To stray from a prior costs kl_coef · (log π(a|s) − log prior(a|s)), as in learning from
        human feedback (Ziegler et al. 2019, section 2): its mean is the divergence of the two.
        """
        guide, reward = self.guide, steps["reward"]
        if guide is None or not guide.pays:
            return reward
        log_prob, _ = self.recall(steps)
        latent = steps.get("latent", None)
        latent = steps["action"] if latent is None else latent
        prior = guide.log_prior(steps["obs"], steps.get("action_mask", None))
        excess = log_prob - prior.gather(-1, latent.unsqueeze(-1)).squeeze(-1)  # [T, B]
        self._kl_to_prior = losses.mean(excess, steps.get("valid", None))
        return reward - guide.kl_now * excess

    def metrics(self) -> dict[str, float]:
        """`policy/kl_to_prior` of the last rollout, in nats, where straying from a prior costs."""
        told, self._kl_to_prior = self._kl_to_prior, None
        return {} if told is None else {"policy/kl_to_prior": float(told)}

    # --- what follows from these --------------------------------------------------------------

    def recall(self, steps: TensorDict) -> tuple[Tensor, Tensor]:
        """log π(aₜ|sₜ) and V(sₜ) at the time of acting, `[T, B]`, without gradient.

        Either acting has noted them, or they are evaluated now, in one batch: the weights are still
        those that acted.
        """
        noted, value = steps.get("log_prob", None), steps.get("value", None)
        if noted is not None and (value is not None or not self.has_critic):
            return noted, torch.zeros_like(noted) if value is None else value
        rows = steps.reshape(-1)
        now = self.evaluate(rows)
        for name in ("log_prob", "value"):
            shape = getattr(now, name).shape
            if shape != rows.batch_size:  # they would spread over each other without a word
                raise ConfigurationError(
                    f"{type(self).__name__}.evaluate returned {name} of shape {list(shape)} for a "
                    f"batch of {list(rows.batch_size)}; each is one number a row"
                )
        return now.log_prob.view(steps.shape), now.value.view(steps.shape)

    def next_values(self, rollout: Rollout, value: Tensor) -> Tensor:
        """V(sₜ₊₁), where sₜ₊₁ is what step t led to: at a truncation, the final observation.

        Args:
            rollout: The rollout.
            value: V(sₜ), `[T, B]`.

        Returns:
            `[T, B]`, without gradient.
        """
        last_value = self.value(rollout.last_obs, rollout.last_state)
        final_value = None
        if rollout.final_obs is not None:
            final_value = self.value(rollout.final_obs, rollout.final_state)
        return returns.next_values(value, last_value, rollout.final_index, final_value)

    @staticmethod
    def training_batch(steps: TensorDict, **computed: Tensor) -> TensorDict:
        """What a loss reads of a rollout, `[T, B]`: what `evaluate` needs, `valid`, and what the
        agent computed."""
        keep = ("obs", "action", "latent", "action_mask", "valid", "state", "start")
        return steps.select(*keep, strict=False).update(computed)
