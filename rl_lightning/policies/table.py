"""A table of action values."""

from collections.abc import Callable

import gymnasium as gym
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.table import TableEncoder
from rl_lightning.policies.policy import Policy


class Table(Policy):
    """Q(s, a) with a row for every observation; nothing in it is trained by gradients.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds what numbers observations.
        tables: Tables of the same shape.
        initial_value: Q before anything is learned.
    """

    q: Tensor
    updates: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder],
        tables: int = 1,
        initial_value: float = 0.0,
    ) -> None:
        super().__init__()
        space = spec.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise ConfigurationError(
                "a table has a column for each action of a Discrete space, not "
                f"{shortened(space)}; use SAC, TD3 or DDPG for Box actions, PPO for MultiDiscrete "
                "and MultiBinary ones"
            )
        self.encoder = encoder(spec)
        if not isinstance(self.encoder, TableEncoder):
            raise ConfigurationError(
                f"model.encoder: {type(self.encoder).__name__} computes features, but a table "
                "needs the number of its row; use TableEncoder"
            )
        self.mask_dim = int(space.n)
        shape = (tables, self.encoder.out_dim, self.mask_dim)
        self.register_buffer("q", torch.full(shape, float(initial_value)))
        self.register_buffer("updates", torch.zeros(shape, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Rows `[N]` → Q(s, ·), the mean over tables, `[N, A]`."""
        return self.q[0, x] if len(self.q) == 1 else self.q[:, x].mean(0)
