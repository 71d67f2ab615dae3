"""The base of everything that acts."""

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from rl_lightning.core.types import Stored


class Policy(nn.Module):
    """An encoder, and what comes of its features: actions, values, or both.

    Agents ask of it what they need: those that learn from rollouts `act`, `evaluate`, `recall` and
    `value`, those that learn from replay the networks themselves. All of them can be looked into by
    `inspect`. A policy that does not offer one says so when it is asked.

    Attributes:
        encoder: Reads observations.
        state_dim: Width of the recurrent state; 0 without memory.
        mask_dim: Width of the action masks it takes, A; 0 if it takes none.
    """

    encoder: Any
    state_dim: int = 0
    mask_dim: int = 0

    @property
    def encoders(self) -> Sequence[Any]:
        """All encoders that read observations."""
        return (self.encoder,)

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
        """What it thinks of observations, `[B, ...]` each, by name."""
        raise NotImplementedError(f"{type(self).__name__} cannot be looked into")

    def evaluate(self, batch: TensorDict) -> Any:
        """log π of stored actions, entropy and value under the current weights, with gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not evaluate stored actions")

    def recall(self, steps: TensorDict) -> tuple[Tensor, Tensor]:
        """log π and value at the time of acting, `[T, B]` each."""
        raise NotImplementedError(f"{type(self).__name__} does not recall how it acted")
