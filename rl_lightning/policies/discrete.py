"""Actor and twin critics over discrete actions, for discrete SAC."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.maths.distributions import Categorical, mask_logits
from rl_lightning.nn.ensemble import Ensemble
from rl_lightning.nn.mlp import Activation
from rl_lightning.policies.policy import Policy


class DiscreteNetwork(Policy):
    """Encoder, actor π(·|s), and two critics Q(s, ·), for a `Discrete` space.

    The critics' loss trains the encoder; the actor reads its features and leaves it alone. Over a
    `GuidedEncoder`, the prior is part of π.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder from the spec.
        hidden: Widths of the layers of actor and critics.
        activation: Of those layers.
    """

    takes_prior = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        hidden: Sequence[int] = (256, 256),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        space = spec.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise ConfigurationError(
                f"DiscreteSAC acts in a Discrete space, not {shortened(space)}; use SAC for Box "
                "actions"
            )
        self.encoder = encoder(spec)
        self.mask_dim = int(space.n)
        width = self.encoder.out_dim
        self.actor = Ensemble(1, width, hidden, self.mask_dim, activation)
        self.critics = Ensemble(2, width, hidden, self.mask_dim, activation)

    def policy(
        self, features: Tensor, mask: Tensor | None = None, x: Stored | None = None
    ) -> Categorical:
        """π(·|s), `[N, A]`, of features and the observations `x` that they are of."""
        logits = self.actor(features)[0].float()
        if x is not None:
            logits = self.guided_logits(x, logits)
        return Categorical(mask_logits(logits, mask))

    def q(self, features: Tensor) -> Tensor:
        """Q of both critics and all actions, `[2, N, A]`."""
        return self.critics(features).float()
