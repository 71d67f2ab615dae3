"""Actor and critics of continuous actions, for agents that learn from replay."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.core.bounds import float32_bounds, has_finite_range
from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.distributions import SquashedGaussian
from rl_lightning.nn.ensemble import Ensemble
from rl_lightning.nn.mlp import Activation, mlp, widths
from rl_lightning.policies.policy import Policy

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # Haarnoja et al. 2018, the authors' code


class ContinuousNetwork(Policy):
    """Encoder, actor π(s) or π(a|s), and M critics Q(s, a), for bounded Box actions.

    Inside, actions are in [−1, 1]; `to_env` and `from_env` translate. An entry whose bounds are one
    number is no part of them: there is nothing to choose. The critics' loss trains the
    encoder; the actor reads its features and leaves it alone (as Yarats et al. 2021 found best).

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder from the spec.
        hidden: Widths of the layers of the actor, and of the critics unless `critic_hidden`.
        critic_hidden: Widths of the critics' layers; None: `hidden`.
        activation: Of those layers.
        layer_norm: Normalise the critics' layers, which steadies large replay ratios.
        critics: M; the agent says how many.
        stochastic: Whether the actor has a standard deviation; the agent says.

    Attributes:
        size: A, the entries of an action that there is a choice of.

    Raises:
        ConfigurationError: If actions are anything else, or their bounds leave no choice.
    """

    low: Tensor
    half_range: Tensor
    free: Tensor | None  # which entries there is a choice of, and
    constant: Tensor | None  # what the others are; None where there are none

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        hidden: Sequence[int] = (256, 256),
        critic_hidden: Sequence[int] | None = None,
        activation: Activation = "relu",
        layer_norm: bool = False,
        critics: int = 2,
        stochastic: bool = True,
    ) -> None:
        super().__init__()
        space = spec.action_space
        if not (
            isinstance(space, gym.spaces.Box)
            and has_finite_range(space)
            and np.issubdtype(space.dtype, np.floating)
        ):
            raise ConfigurationError(
                "actions must be a floating-point Box with finite bounds, whose distance float32 "
                f"can hold, not {shortened(space)}; use DQN or DiscreteSAC for Discrete actions, "
                "PPO for others, or wrap the environment (gymnasium.wrappers.RescaleAction)"
            )
        low, high = (bound.reshape(-1) for bound in float32_bounds(space))
        half_range = (high - low) / 2
        free = torch.nonzero(half_range).squeeze(1)
        if not len(free):
            raise ConfigurationError(
                f"the action space {shortened(space)} leaves nothing to choose: every lower "
                "bound is the upper"
            )
        self.encoder = encoder(spec)
        self.shape = space.shape
        self.size = len(free)
        features = self.encoder.out_dim
        self.stochastic = stochastic
        self.actor = mlp(
            features, hidden, activation, self.size * (1 + stochastic), layer=nn.Linear
        )
        self.critics = Ensemble(
            critics,
            features + self.size,
            hidden if critic_hidden is None else widths(critic_hidden, "critic_hidden"),
            1,
            activation,
            layer_norm,
        )
        fixed = self.size < len(low)
        self.register_buffer("low", low[free], persistent=False)
        self.register_buffer("half_range", half_range[free], persistent=False)
        self.register_buffer("free", free if fixed else None, persistent=False)
        self.register_buffer("constant", low if fixed else None, persistent=False)

    def policy(self, features: Tensor) -> SquashedGaussian:
        """π(·|s) over actions in [−1, 1], of a stochastic actor, `[N, A]`."""
        mean, log_std = self.actor(features).float().chunk(2, dim=-1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        return SquashedGaussian(mean, log_std, torch.zeros_like(self.low))

    def action(self, features: Tensor) -> Tensor:
        """The action of a deterministic actor, or the middle of a stochastic one's, `[N, A]`."""
        out = self.actor(features).float()
        return (out.chunk(2, dim=-1)[0] if self.stochastic else out).tanh()

    def q(self, features: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """Q of all critics, `[M, N]`.

        Args:
            features: `[N, D]`.
            action: In [−1, 1], `[N, A]`.
            frozen: Let gradient flow to the arguments only, not to the critics.
        """
        x = torch.cat([features, action.to(features.dtype)], dim=-1)
        return self.critics(x, frozen).squeeze(-1).float()

    def to_env(self, action: Tensor) -> Tensor:
        """[−1, 1] `[N, A]` → the environment's units, `[N, ...]`."""
        action = self.low + self.half_range * (action + 1.0)
        if self.free is not None and self.constant is not None:
            action = self.constant.repeat(action.shape[0], 1).index_copy(1, self.free, action)
        return action.view(-1, *self.shape)

    def from_env(self, action: Tensor) -> Tensor:
        """The environment's units `[N, ...]` → [−1, 1] `[N, A]`."""
        action = action.reshape(len(action), -1).to(self.low.dtype)
        if self.free is not None:
            action = action.index_select(1, self.free)
        return (action - self.low) / self.half_range - 1.0
