"""Encoder, optional memory, action head and value head, as one small object."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rl_lightning.core.errors import FormerWarning
from rl_lightning.core.sharing import sharing
from rl_lightning.core.types import EnvSpec, Rollout, Stored
from rl_lightning.maths.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    mask_logits,
)
from rl_lightning.nn.heads import CategoricalHead, make_head
from rl_lightning.nn.memory import Memory, Recurrent
from rl_lightning.nn.mlp import MLP, Activation, mlp, orthogonal_, widths
from rl_lightning.policies.policy import Evaluation, RolloutPolicy


class ActorCritic(RolloutPolicy):
    """Policy π(a|s) and value V(s) over an encoder.

    Over a `GuidedEncoder`, the prior is part of π: in acting, greedily too, and in learning.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder from the spec.
        share_encoder: Whether the critic reads the actor's encoder (and memory); otherwise it gets
            its own, unless nothing in the encoder is trained.
        hidden: Widths of the layers between features and head; actor and critic have their own.
        activation: Activation of those layers.
        recurrent: Put an LSTM or GRU between encoder and heads; None for none.
        recurrent_size: Its hidden units.
        squash: For Box actions: squash by tanh into the bounds instead of clipping to them.
        log_std_init: For Box actions: initial log standard deviation.
        critic: Whether there is a value head.
    """

    takes_prior = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        share_encoder: bool = True,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        recurrent: Recurrent | None = None,
        recurrent_size: int = 64,
        squash: bool = False,
        log_std_init: float = 0.0,
        critic: bool = True,
    ) -> None:
        super().__init__()
        hidden = widths(hidden)
        separate = critic and not share_encoder
        with sharing():
            self.encoder = encoder(spec)
            encoder_learns = any(p.requires_grad for p in self.encoder.parameters())
            self.critic_encoder = encoder(spec) if separate and encoder_learns else None

        def memory() -> Memory | None:
            if recurrent is None:
                return None
            return Memory(self.encoder.out_dim, recurrent_size, recurrent)

        self.memory = memory()
        self.critic_memory = memory() if separate else None
        features = self.memory.out_dim if self.memory else self.encoder.out_dim
        head_in = hidden[-1] if hidden else features
        self.actor = mlp(features, hidden, activation)
        self.action_head = make_head(spec.action_space, head_in, squash, log_std_init)
        self.critic = (
            MLP(*mlp(features, hidden, activation), orthogonal_(nn.Linear(head_in, 1), gain=1.0))
            if critic
            else None
        )
        # Small heads are evaluated once per rollout, in one batch, instead of once per step. With a
        # trained encoder or a memory, the step has done most of the work already.
        self.evaluates_while_acting = encoder_learns or self.memory is not None

    @property
    def encoders(self) -> Sequence[Any]:
        """The actor's encoder and, where the critic has its own, that one."""
        return (
            (self.encoder,) if self.critic_encoder is None else (self.encoder, self.critic_encoder)
        )

    @property
    def has_critic(self) -> bool:
        """Whether there is a value head."""
        return self.critic is not None

    @property
    def mask_dim(self) -> int:
        """Width of the action masks this policy takes; 0 if it takes none."""
        return self.action_head.mask_dim

    @property
    def state_dim(self) -> int:
        """Width of the recurrent state; 0 without memory."""
        return sum(m.state_dim for m in (self.memory, self.critic_memory) if m is not None)

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Choose actions.

        Args:
            x: Preprocessed observations, `[B, ...]`.
            explore: Sample; otherwise take the most likely action.
            state: Recurrent state, `[B, state_dim]`; zero if not given.
            mask: Allowed actions, bool `[B, A]`.

        Returns:
            `action` (what the environment gets); `latent` where it is not the action itself;
            `log_prob` and `value` `[B]` where `recall` would be expensive; `next_state`.
        """
        actor, critic, next_state = self._features(x, state)
        distribution = self.distribution(actor, x, mask)
        latent = distribution.sample() if explore else distribution.mode()
        if self.action_head.latent_is_action:
            out = {"action": latent}
        else:
            out = {"action": self.action_head.to_action(latent), "latent": latent}
        if self.evaluates_while_acting:
            out["log_prob"] = distribution.log_prob(latent)
            if self.critic is not None:
                out["value"] = self._value(critic)
        if next_state is not None:
            out["next_state"] = next_state
        return out

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`probabilities`, or `mean` and `std`, of π(·|s) `[B, A]`, and `value` `[B]` if any."""
        actor, critic, _ = self._features(x, state)
        distribution = self.distribution(actor, x, mask)
        out = (
            {"mean": distribution.mean, "std": distribution.log_std.exp()}
            if isinstance(distribution, DiagonalGaussian)
            else {"probabilities": distribution.probabilities()}
        )
        if self.critic is not None:
            out["value"] = self._value(critic)
        return out

    def value(self, x: Stored, state: Tensor | None = None) -> Tensor:
        """V(s) of preprocessed observations `[N, ...]`, `[N]`."""
        return self._value(self._features(x, state)[1])

    def evaluate(self, batch: TensorDict) -> Evaluation:
        """Re-evaluate stored actions under the current weights.

        Args:
            batch: `[N]` rows; with memory `[L, n]` sequences with `state` (row 0 counts) and
                `start`.

        Returns:
            Tensors of the batch's own shape, `[N]` or `[L, n]`; `value` is zero without critic.
        """
        x, mask = batch["obs"], batch.get("action_mask", None)
        latent = batch.get("latent", None)
        if latent is None:
            latent = batch["action"]
        if self.memory is None:
            actor, critic, _ = self._features(x, None)
        else:
            actor, critic = self._sequence_features(batch)
            x = x.flatten(0, 1)
            latent, mask = latent.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        distribution = self.distribution(actor, x, mask)
        log_prob = distribution.log_prob(latent)
        value = self._value(critic) if self.critic is not None else torch.zeros_like(log_prob)
        out = Evaluation(log_prob, distribution.entropy(), value)
        return out if self.memory is None else Evaluation(*(x.view(batch.shape) for x in out))

    def distribution(self, features: Tensor, x: Stored, mask: Tensor | None) -> Distribution:
        """π(·|s) of the actor's features, and the observations that they are of, `[N, ...]`."""
        hidden = self.actor(features)
        if self.guide is None:
            return self.action_head(hidden, mask)
        assert isinstance(self.action_head, CategoricalHead)  # a prior is over such actions only
        logits = self.guided_logits(x, self.action_head.logits(hidden))
        return Categorical(mask_logits(logits, mask))

    def following_values(self, rollout: Rollout, value: Tensor) -> Tensor:
        """The former name of `next_values`."""
        warnings.warn(
            "ActorCritic.following_values is next_values now; the former name goes with the next "
            "version",
            FormerWarning,
            stacklevel=2,
        )
        return self.next_values(rollout, value)

    def _features(self, x: Stored, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Actor features `[N, D]`, critic features `[N, D]`, next recurrent state."""
        actor = self.encoder(x)
        critic = actor if self.critic_encoder is None else self.critic_encoder(x)
        if self.memory is None:
            return actor, critic, None
        if state is None:
            state = actor.new_zeros(actor.shape[0], self.state_dim, dtype=torch.float32)
        assert state is not None
        if self.critic_memory is None:
            actor, state = self.memory.step(actor, state)
            return actor, actor, state
        own, other = state.split([self.memory.state_dim, self.critic_memory.state_dim], dim=-1)
        actor, own = self.memory.step(actor, own)
        critic, other = self.critic_memory.step(critic, other)
        return actor, critic, torch.cat([own, other], dim=-1)

    def _sequence_features(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """The same for `[L, n]` sequences, flattened to `[L·n, D]`."""
        assert self.memory is not None
        length, columns = batch.batch_size
        flat = batch["obs"].flatten(0, 1)
        state, start = batch["state"][0], batch["start"]
        actor = self.encoder(flat)
        critic = actor if self.critic_encoder is None else self.critic_encoder(flat)
        if self.critic_memory is None:
            out = self.memory.sequence(actor.view(length, columns, -1), state, start)
            return out.flatten(0, 1), out.flatten(0, 1)
        own, other = state.split([self.memory.state_dim, self.critic_memory.state_dim], dim=-1)
        actor = self.memory.sequence(actor.view(length, columns, -1), own, start)
        critic = self.critic_memory.sequence(critic.view(length, columns, -1), other, start)
        return actor.flatten(0, 1), critic.flatten(0, 1)

    def _value(self, features: Tensor) -> Tensor:
        assert self.critic is not None, "this policy was built without a critic"
        return self.critic(features).squeeze(-1).float()
