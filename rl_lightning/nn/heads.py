"""From features to action distributions, one head per kind of action space."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.core.bounds import float32_bounds, has_finite_range
from rl_lightning.core.errors import ConfigurationError, check_finite, shortened
from rl_lightning.maths.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
    mask_logits,
)
from rl_lightning.nn.mlp import linear, orthogonal_

# Of learning from recorded actions. The standard deviation is that of Kostrikov et al. 2022; a
# recorded action nearer to its bound than this share of half the range counts as this near, since
# what lies beyond, out to infinity, is rounding.
LOG_STD_MIN, BOUND_SHARE = -5.0, 1e-3


class ActionHead(nn.Module):
    """Features `[N, D]` → distribution over latent actions; latent → environment actions.

    Attributes:
        mask_dim: Width of the action mask this head understands; 0 if it takes none.
        latent_is_action: Whether the environment takes the latent as it is.
    """

    mask_dim: int = 0
    latent_is_action: bool = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Distribution:
        raise NotImplementedError

    def to_action(self, latent: Tensor) -> Tensor:
        """What the environment gets for a latent action, `[N, ...]`."""
        return latent

    def to_latent(self, action: Tensor) -> Tensor:
        """A latent action that the environment gets as `action`, `[N, ...]`."""
        return action

    def keep_spread(self) -> None:
        """Keep a standard deviation from vanishing, where there is one.

        Of actions that are recorded, and perhaps always the same, no density is high enough.
        """


class CategoricalHead(ActionHead):
    """`Discrete(n)`; mask `[N, n]`."""

    def __init__(self, space: gym.spaces.Discrete, in_dim: int) -> None:
        super().__init__()
        self.mask_dim = int(space.n)
        self.start = int(space.start)
        self.latent_is_action = self.start == 0
        self.linear = orthogonal_(nn.Linear(in_dim, self.mask_dim), gain=0.01)

    def logits(self, x: Tensor) -> Tensor:
        """`[N, n]`."""
        return linear(self.linear, x).float()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Categorical:
        return Categorical(mask_logits(self.logits(x), mask))

    def to_action(self, latent: Tensor) -> Tensor:
        return latent + self.start

    def to_latent(self, action: Tensor) -> Tensor:
        return action - self.start


class MultiCategoricalHead(ActionHead):
    """`MultiDiscrete(nvec)`; mask `[N, sum(nvec)]`, the parts' masks one after the other."""

    index: Tensor
    exists: Tensor
    start: Tensor

    def __init__(self, space: gym.spaces.MultiDiscrete, in_dim: int) -> None:
        super().__init__()
        nvec = np.asarray(space.nvec)
        if nvec.ndim != 1:
            raise ConfigurationError(
                f"a MultiDiscrete action space must be one-dimensional, not {shortened(space)}"
            )
        self.mask_dim = int(nvec.sum())
        self.linear = orthogonal_(nn.Linear(in_dim, self.mask_dim), gain=0.01)
        # Flat logits → [K, max(nvec)]: where the part has no such action, any index will do.
        column = np.arange(nvec.max())[None].repeat(len(nvec), 0)
        exists = column < nvec[:, None]
        offset = np.concatenate([[0], nvec.cumsum()[:-1]])[:, None]
        index = np.where(exists, column + offset, 0)
        self.register_buffer("index", torch.from_numpy(index), persistent=False)
        self.register_buffer("exists", torch.from_numpy(exists), persistent=False)
        start = torch.from_numpy(np.asarray(space.start, dtype=np.int64))
        self.latent_is_action = not bool(start.any())
        self.register_buffer("start", start, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> MultiCategorical:
        logits = mask_logits(linear(self.linear, x).float(), mask)
        return MultiCategorical(mask_logits(logits[..., self.index], self.exists))  # [N, K, A]

    def to_action(self, latent: Tensor) -> Tensor:
        return latent + self.start

    def to_latent(self, action: Tensor) -> Tensor:
        return action - self.start


class BernoulliHead(ActionHead):
    """`MultiBinary(n)`; mask `[N, n]`, False forces a bit to 0."""

    def __init__(self, space: gym.spaces.MultiBinary, in_dim: int) -> None:
        super().__init__()
        if len(space.shape) != 1:
            raise ConfigurationError(
                f"a MultiBinary action space must be one-dimensional, not {shortened(space)}"
            )
        self.mask_dim = int(space.shape[0])
        self.linear = orthogonal_(nn.Linear(in_dim, self.mask_dim), gain=0.01)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Bernoulli:
        return Bernoulli(mask_logits(linear(self.linear, x).float(), mask))


class GaussianHead(ActionHead):
    """`Box`, by a diagonal Gaussian with a learned, state-independent standard deviation.

    An entry whose bounds are one number is that number; what the Gaussian says of it has no effect.

    Args:
        space: The action space.
        in_dim: D.
        squash: Squash by tanh into the bounds; otherwise actions are clipped to them.
        log_std_init: Initial log standard deviation, in the latent's units: the environment's
            units when clipped, units before tanh when squashed.

    Raises:
        ConfigurationError: If bounds to squash into are infinite, or as good as that.
    """

    latent_is_action = False
    low: Tensor
    high: Tensor
    span: Tensor
    log_std: nn.Parameter

    def __init__(
        self,
        space: gym.spaces.Box,
        in_dim: int,
        squash: bool = False,
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()
        if squash and not has_finite_range(space):
            raise ConfigurationError(
                "squash needs an action space with finite bounds, whose distance float32 can "
                f"hold, not {shortened(space)}; set squash: false"
            )
        self.squash = squash
        self.shape = space.shape
        size = int(np.prod(space.shape))
        self.linear = orthogonal_(nn.Linear(in_dim, size), gain=0.01)
        check_finite("log_std_init", log_std_init)
        self.log_std = nn.Parameter(torch.full((size,), float(log_std_init)))
        low, high = (bound.reshape(-1) for bound in float32_bounds(space))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        span = high - low
        span = span.masked_fill(span / 2 == 0, 2.0)  # of a constant: any that has a logarithm
        self.register_buffer("span", span, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> DiagonalGaussian:
        mean = linear(self.linear, x).float()  # [N, A]
        log_std = self.log_std.expand_as(mean)
        if self.squash:
            return SquashedGaussian(mean, log_std, (self.span / 2).log())
        return DiagonalGaussian(mean, log_std)

    def to_action(self, latent: Tensor) -> Tensor:
        if self.squash:
            action = self.low + (self.high - self.low) * 0.5 * (latent.tanh() + 1.0)
        else:
            action = torch.minimum(torch.maximum(latent, self.low), self.high)
        return action.view(-1, *self.shape)

    def to_latent(self, action: Tensor) -> Tensor:
        action = action.reshape(len(action), -1).to(self.low)
        if not self.squash:
            return action
        inside = 2.0 * (action - self.low) / self.span - 1.0
        return inside.clamp(BOUND_SHARE - 1.0, 1.0 - BOUND_SHARE).atanh()

    @torch.no_grad()
    def keep_spread(self) -> None:
        self.log_std.clamp_(min=LOG_STD_MIN)


def make_head(
    space: gym.Space, in_dim: int, squash: bool = False, log_std_init: float = 0.0
) -> ActionHead:
    """The head for an action space.

    Raises:
        ConfigurationError: If no head can emit actions of this space.
    """
    s = gym.spaces
    if 0 in (space.shape or ()):
        raise ConfigurationError(f"the action space {shortened(space)} leaves nothing to choose")
    if isinstance(space, s.Box):
        if not np.issubdtype(space.dtype, np.floating):
            raise ConfigurationError(
                f"cannot emit actions of an integer Box: {shortened(space)}; use MultiDiscrete"
            )
        return GaussianHead(space, in_dim, squash, log_std_init)
    heads: dict[Any, Any] = {
        s.Discrete: CategoricalHead,
        s.MultiDiscrete: MultiCategoricalHead,
        s.MultiBinary: BernoulliHead,
    }
    for kind, head in heads.items():
        if isinstance(space, kind):
            return head(space, in_dim)
    raise ConfigurationError(
        f"cannot emit actions of {shortened(space)}: the action space must be Discrete, "
        "MultiDiscrete, MultiBinary or Box; wrap the environment (gymnasium.wrappers."
        "TransformAction) to get there"
    )
