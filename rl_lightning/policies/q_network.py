"""Q(s, ·) over an encoder, as values, as distributions over atoms, or as quantiles."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.nn.mlp import Activation, mlp
from rl_lightning.nn.noisy import NoisyLinear, resample_noise, silence_noise
from rl_lightning.policies.policy import Policy


class ActionValues(Policy):
    """Q(s, ·) of the actions of a `Discrete` space: what `DQN` learns.

    Attributes:
        actions: A.
    """

    actions: int

    def resample(self) -> None:
        """Draw new noise, of a noisy network."""

    def silence(self) -> None:
        """Remove the noise, of a noisy network."""


class QNetwork(ActionValues):
    """Features → `outputs` numbers for each action of a `Discrete` space.

    A prior of a `GuidedEncoder` is no part of the values: exploration draws from it.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder from the spec.
        hidden: Widths of the layers between features and values.
        activation: Of those layers.
        dueling: Split into V(s) and A(s, a): Q = V + A − mean A (Wang et al. 2016, eq. 9).
        noisy: Use layers with learned noise, which explore by themselves.
        outputs: Numbers for each action; the agent says how many.
    """

    takes_prior = True

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        hidden: Sequence[int] = (120, 84),
        activation: Activation = "relu",
        dueling: bool = False,
        noisy: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        space = spec.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise ConfigurationError(
                "a Q-network has one value for each action of a Discrete space, not "
                f"{shortened(space)}; use SAC, TD3 or DDPG for Box actions, PPO for MultiDiscrete "
                "and MultiBinary ones"
            )
        self.encoder = encoder(spec)
        self.actions, self.outputs = int(space.n), outputs
        self.dueling, self.noisy = dueling, noisy
        layer = NoisyLinear if noisy else nn.Linear

        def stream(width: int) -> nn.Sequential:
            return mlp(self.encoder.out_dim, hidden, activation, width, layer)

        self.advantage = stream(self.actions * outputs)
        self.value = stream(outputs) if dueling else None

    @property
    def mask_dim(self) -> int:
        """Width of the action masks this network takes."""
        return self.actions

    def forward(self, x: Stored) -> Tensor:
        """Raw stored observations `[N, ...]` → `[N, A, outputs]`, or `[N, A]` for one output."""
        features = self.features(x)
        out: Tensor = self.advantage(features).float()
        if self.outputs > 1:
            out = out.view(-1, self.actions, self.outputs)
        if self.value is not None:
            value = self.value(features).float()
            value = value.unsqueeze(1) if self.outputs > 1 else value
            out = value + out - out.mean(1, keepdim=True)
        return out

    def resample(self) -> None:
        if self.noisy:
            resample_noise(self)

    def silence(self) -> None:
        if self.noisy:
            silence_noise(self)


def pick(out: Tensor, action: Tensor) -> Tensor:
    """The entries of one action each: `[N, A]` → `[N]`, or `[N, A, K]` → `[N, K]`."""
    index = action.view(-1, *[1] * (out.ndim - 1)).expand(-1, 1, *out.shape[2:])
    return out.gather(1, index).squeeze(1)
