"""Vectors and small discrete observations."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.nn.mlp import Activation, mlp
from rl_lightning.nn.norm import RunningNorm


class MLPEncoder(Encoder):
    """Flattens Box, one-hot encodes Discrete and MultiDiscrete, then applies an MLP.

    With the default, empty `hidden` the features are the flattened observation itself and the
    layers stand in the actor's and critic's own `hidden`.

    Args:
        spec: Its observation space is Box, Discrete, MultiDiscrete or MultiBinary.
        hidden: Widths of the layers; empty for none.
        activation: Their activation.
        normalize: Normalise Box observations by their running mean and standard deviation, which
            are part of the checkpoint.
        clip: Largest magnitude of a normalised value.

    Raises:
        ConfigurationError: If the observation space is of another kind.
    """

    def __init__(
        self,
        spec: EnvSpec,
        hidden: Sequence[int] = (),
        activation: Activation = "tanh",
        normalize: bool = False,
        clip: float = 10.0,
    ) -> None:
        super().__init__()
        space = spec.observation_space
        s = gym.spaces
        self.widths: list[int] | None = None  # one-hot widths
        self.start = 0
        if isinstance(space, s.Box | s.MultiBinary):
            size = int(np.prod(space.shape))
        elif isinstance(space, s.Discrete):
            self.widths, self.start = [int(space.n)], int(space.start)
            size = self.widths[0]
        elif isinstance(space, s.MultiDiscrete):
            self.widths = [int(n) for n in np.asarray(space.nvec).reshape(-1)]
            self.start = torch.as_tensor(np.asarray(space.start).reshape(-1))
            size = sum(self.widths)
        else:
            raise ConfigurationError(
                f"MLPEncoder cannot read {shortened(space)}: use LLMEncoder for Text, DictEncoder "
                "for Dict and Tuple, or wrap the environment (gymnasium.wrappers."
                "FlattenObservation)"
            )
        if normalize and not isinstance(space, s.Box):
            raise ConfigurationError(
                f"normalize needs a Box observation space, not {shortened(space)}"
            )
        self.norm = RunningNorm(size, clip) if normalize else None
        self.trunk = mlp(size, hidden, activation)
        self.out_dim = int(hidden[-1]) if hidden else size

    def preprocess(self, obs: Any) -> Tensor:
        """Array `[B, ...]` → float32 `[B, D]`."""
        return self.standardized(self.preprocess_raw(obs))

    def preprocess_raw(self, obs: Any) -> Tensor:
        if self.widths is not None:
            return self._one_hot(obs)
        values = torch.as_tensor(obs, dtype=torch.float32)
        return values.reshape(values.shape[0], -1)

    def standardized(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x.to(self.norm.running.moments.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x) if len(self.trunk) else x

    def observe(self, obs: Any) -> None:
        if self.norm is not None:
            self.norm.update(np.asarray(obs, dtype=np.float32).reshape(len(obs), -1))

    def synchronize(self) -> None:
        if self.norm is not None:
            self.norm.synchronize()

    def _one_hot(self, obs: Any) -> Tensor:
        assert self.widths is not None
        index = torch.as_tensor(obs).long()
        index = index.reshape(index.shape[0], -1) - self.start  # (B, K)
        columns = [F.one_hot(index[:, k], n) for k, n in enumerate(self.widths)]
        return torch.cat(columns, dim=1).float()
