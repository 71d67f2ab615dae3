"""r(s′), or r(s, a, s′): an encoder and an MLP over what it makes of observations."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, check_range, shortened
from rl_lightning.core.sharing import sharing
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.nn.mlp import Activation, mlp, widths

Inputs = Literal["next_obs", "transition"]


class RewardNetwork(nn.Module):
    """One number for where a step led to, or for the step.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder of observations; s and s′ are read by the same one.
        inputs: `next_obs` for r(s′), `transition` for r(s, a, s′).
        hidden: Widths of the layers above the encoder.
        activation: Of those layers.
        dropout: Share of features that are dropped while learning, against learning by heart.

    Raises:
        ConfigurationError: If an argument is wrong, or if actions cannot be read.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        inputs: Inputs = "next_obs",
        hidden: Sequence[int] = (64,),
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if inputs not in ("next_obs", "transition"):
            raise ConfigurationError(
                f"model.inputs must be 'next_obs' or 'transition', not {inputs!r}"
            )
        check_range("model.dropout", dropout, 0.0, 0.99)
        self.inputs: Inputs = inputs
        with sharing():
            self.encoder = encoder(spec)
        self._actions = _ActionReader(spec.action_space) if inputs == "transition" else None
        width = self.encoder.out_dim
        if self._actions is not None:
            width = 2 * width + self._actions.width
        hidden = widths(hidden)
        self.dropout = nn.Dropout(dropout)
        self.trunk = mlp(width, hidden, activation)
        self.head = nn.Linear(hidden[-1] if hidden else width, 1)
        nn.init.zeros_(self.head.bias)

    def forward(self, next_obs: Any, obs: Any = None, action: Tensor | None = None) -> Tensor:
        """r of N steps, float32 `[N]`.

        Args:
            next_obs: Stored observations, as `encoder.preprocess_raw` returns them, `[N, ...]`.
            obs: Those before; for transitions alone, like
            action: the environment's actions `[N, ...]`.
        """
        features = self.features(next_obs)
        if self._actions is not None:
            if obs is None or action is None:
                raise ConfigurationError(
                    "model.inputs: transition judges steps, and here are single observations; use "
                    "recorded episodes, or inputs: next_obs"
                )
            read = self._actions(action).to(features)
            features = torch.cat([self.features(obs), read, features], dim=1)
        return self.head(self.trunk(self.dropout(features))).squeeze(1).float()

    def features(self, x: Any) -> Tensor:
        """Features of stored observations, `[N, D]`."""
        return self.encoder(self.encoder.standardized(x))


class _ActionReader(nn.Module):
    """The environment's actions as numbers: those of a Box as they are, others one-hot."""

    start: Tensor

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        s = gym.spaces
        counts: np.ndarray | None = None
        start: np.ndarray = np.zeros(1, np.int64)
        if isinstance(space, s.Discrete):
            counts, start = np.array([space.n]), np.array([space.start])
        elif isinstance(space, s.MultiDiscrete):
            counts, start = space.nvec.reshape(-1), np.asarray(space.start).reshape(-1)
        elif not isinstance(space, s.Box | s.MultiBinary):
            raise ConfigurationError(
                f"model.inputs: transition reads no actions of {shortened(space)}; use next_obs"
            )
        self.counts = None if counts is None else [int(n) for n in counts]
        self.width = int(np.prod(space.shape)) if self.counts is None else sum(self.counts)  # type: ignore[arg-type]
        self.register_buffer("start", torch.from_numpy(start.astype(np.int64)), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """`[N, ...]` → `[N, A]`."""
        flat = action.reshape(len(action), -1)
        if self.counts is None:
            return flat.float()
        parts = (flat.long() - self.start).unbind(1)
        hot = [F.one_hot(part, n) for part, n in zip(parts, self.counts, strict=True)]
        return torch.cat(hot, dim=1).float()
