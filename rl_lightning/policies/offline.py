"""Policy, V and several Q over one encoder, for agents that never ask what was not done."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.distributions import Distribution
from rl_lightning.nn.ensemble import Ensemble
from rl_lightning.nn.heads import make_head
from rl_lightning.nn.mlp import Activation, mlp, orthogonal_, widths
from rl_lightning.policies.policy import Policy


class OfflineNetwork(Policy):
    """π(a|s), V(s) and M critics Q(s, a), for every action space.

    Critics judge recorded actions only, so they read actions as they read observations: Box scaled
    to its bounds, others one-hot. The critics' loss trains the encoder; policy and V read its
    features and leave it alone.

    Box actions are drawn from an unsquashed normal distribution with a state-independent standard
    deviation and clipped, as in Kostrikov et al. 2022: recorded actions often lie on their bounds,
    where a squashed distribution would have to explain infinity. The authors also bound the mean by
    tanh; clipping does that here.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder from the spec.
        hidden: Widths of the layers of policy, V and critics; each has its own.
        activation: Of those layers.
        layer_norm: Normalise the critics' layers.
        squash: For Box actions: squash by tanh into the bounds instead of clipping to them.
        log_std_init: For Box actions: initial log standard deviation.
        critics: M; the agent says how many.
    """

    low: Tensor
    span: Tensor
    first: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        hidden: Sequence[int] = (256, 256),
        activation: Activation = "relu",
        layer_norm: bool = False,
        squash: bool = False,
        log_std_init: float = 0.0,
        critics: int = 2,
    ) -> None:
        super().__init__()
        space, hidden = spec.action_space, widths(hidden)
        self.encoder = encoder(spec)
        width = self.encoder.out_dim
        head_in = hidden[-1] if hidden else width
        self.actor = mlp(width, hidden, activation)
        self.action_head = make_head(space, head_in, squash, log_std_init)
        self.value = nn.Sequential(
            *mlp(width, hidden, activation), orthogonal_(nn.Linear(head_in, 1), gain=1.0)
        )
        self._read_space(space)
        self.critics = Ensemble(
            critics, width + self.action_width, hidden, 1, activation, layer_norm
        )

    @property
    def mask_dim(self) -> int:
        """Width of the action masks the policy takes; 0 if it takes none."""
        return self.action_head.mask_dim

    def policy(self, features: Tensor, mask: Tensor | None = None) -> Distribution:
        """π(·|s) over latent actions, see `action_head`."""
        return self.action_head(self.actor(features), mask)

    def v(self, features: Tensor) -> Tensor:
        """V(s), `[N]`."""
        return self.value(features).squeeze(-1).float()

    def q(self, features: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) of all critics, `[M, N]`, of the environment's actions `[N, ...]`."""
        x = torch.cat([features, self.read_action(action).to(features.dtype)], dim=-1)
        return self.critics(x).squeeze(-1).float()

    def read_action(self, action: Tensor) -> Tensor:
        """The environment's actions `[N, ...]` → what critics read of them, `[N, A]`."""
        flat = action.reshape(len(action), -1)
        if self.choices is None:
            return (flat.to(self.low) - self.low) / self.span - 1.0
        parts = (flat - self.first).unbind(1)
        hot = [F.one_hot(part, n) for part, n in zip(parts, self.choices, strict=True)]
        return torch.cat(hot, dim=1).float()

    def _read_space(self, space: gym.Space) -> None:
        s = gym.spaces
        self.choices: list[int] | None = None
        low, span, first = np.zeros(0), np.zeros(0), np.zeros(0)
        if isinstance(space, s.Box):
            lower, upper = (b.astype(np.float64).reshape(-1) for b in (space.low, space.high))
            half = (upper - lower) / 2.0
            # Entries without bounds are read as they are, and so are those of a single value.
            scaled = (half > 0) & (half < np.finfo(np.float32).max / 2)
            low, span = np.where(scaled, lower, -1.0), np.where(scaled, half, 1.0)
            self.action_width = len(low)
        else:
            if isinstance(space, s.Discrete):
                self.choices, first = [int(space.n)], np.array([space.start])
            elif isinstance(space, s.MultiDiscrete):
                self.choices, first = [int(n) for n in space.nvec], np.asarray(space.start)
            else:
                assert isinstance(space, s.MultiBinary)
                self.choices = [2] * int(space.shape[0])
                first = np.zeros(len(self.choices))
            self.action_width = sum(self.choices)
        self.register_buffer("low", torch.from_numpy(low.astype(np.float32)), persistent=False)
        self.register_buffer("span", torch.from_numpy(span.astype(np.float32)), persistent=False)
        self.register_buffer("first", torch.from_numpy(first.astype(np.int64)), persistent=False)
