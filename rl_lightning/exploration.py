"""How a policy that would always do the same explores: ε-greedy, Boltzmann, added noise.

Strategies are plain objects without learned state; their strength is annealed over training
progress. What Ornstein-Uhlenbeck noise remembers travels as the policy's recurrent state, so it
starts anew with each episode and is part of a checkpoint.
"""

from collections.abc import Callable

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from rl_lightning.core.bounds import float32_bounds, has_finite_range
from rl_lightning.core.errors import ConfigurationError, check_range, shortened
from rl_lightning.core.schedules import anneal
from rl_lightning.maths.distributions import Categorical, mask_logits


class ValueExploration:
    """Chooses among the actions whose values are known.

    Args:
        start: Strength at the beginning.
        end: Strength from `fraction` of training on.
        fraction: Share of the frame budget over which it is annealed, linearly.
    """

    name = "strength"

    def __init__(self, start: float, end: float, fraction: float) -> None:
        check_range("exploration.fraction", fraction, 0.0, 1.0)
        self.start, self.end, self.fraction = start, end, fraction

    def strength(self, progress: float) -> float:
        """ε, or the temperature, at this share of the frame budget."""
        return anneal(self.start, self.end, self.fraction, progress)

    def __call__(self, values: Tensor, progress: float, mask: Tensor | None = None) -> Tensor:
        """Choose actions.

        Args:
            values: Q(s, ·), `[B, A]`.
            progress: Share of the frame budget that is used up.
            mask: Allowed actions, bool `[B, A]`.

        Returns:
            int64 `[B]`.
        """
        raise NotImplementedError

    def choose(
        self,
        values: Callable[[], Tensor],
        logits: Tensor,
        progress: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The same, with values that are computed only if the choice depends on them, and with what
        is preferred without them.

        Args:
            values: Gives Q(s, ·), `[B, A]`.
            logits: Those of a prior, `[B, A]`; zeros without one. Of no effect, unless a subclass
                says more than `__call__`.
            progress: Share of the frame budget that is used up.
            mask: Allowed actions, bool `[B, A]`.
        """
        return self(values(), progress, mask)

    def probabilities(self, values: Tensor, progress: float, mask: Tensor | None = None) -> Tensor:
        """With which probability each action would be chosen, `[B, A]`; arguments as above."""
        raise NotImplementedError


class EpsilonGreedy(ValueExploration):
    """With probability ε an action drawn uniformly from all allowed ones, else the best.

    Args:
        start: ε at the beginning.
        end: ε from `fraction` of training on.
        fraction: Share of the frame budget over which ε is annealed, linearly.
    """

    name = "epsilon"

    def __init__(self, start: float = 1.0, end: float = 0.05, fraction: float = 0.1) -> None:
        check_range("exploration.start", start, 0.0, 1.0)
        check_range("exploration.end", end, 0.0, 1.0)
        super().__init__(start, end, fraction)

    def __call__(self, values: Tensor, progress: float, mask: Tensor | None = None) -> Tensor:
        return self.choose(lambda: values, torch.zeros_like(values), progress, mask)

    def choose(
        self,
        values: Callable[[], Tensor],
        logits: Tensor,
        progress: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        epsilon = self.strength(progress)
        if epsilon <= 0.0:
            return greedy_action(values(), mask)
        explores = torch.rand(len(logits), device=logits.device) < epsilon
        drawn = Categorical(mask_logits(logits, mask)).sample()
        if explores.all():
            return drawn
        return torch.where(explores, drawn, greedy_action(values(), mask))

    def probabilities(self, values: Tensor, progress: float, mask: Tensor | None = None) -> Tensor:
        epsilon = self.strength(progress)
        uniform = Categorical(mask_logits(torch.zeros_like(values), mask)).probabilities()
        greedy = F.one_hot(greedy_action(values, mask), values.shape[-1]).to(values.dtype)
        return epsilon * uniform + (1.0 - epsilon) * greedy


class Boltzmann(ValueExploration):
    """a ~ softmax(Q(s, ·) / τ).

    Args:
        start: Temperature τ at the beginning, in units of return.
        end: τ from `fraction` of training on; 0 is greedy.
        fraction: Share of the frame budget over which τ is annealed, linearly.
    """

    name = "temperature"

    def __init__(self, start: float = 1.0, end: float = 0.05, fraction: float = 0.5) -> None:
        check_range("exploration.start", start, 0.0)
        check_range("exploration.end", end, 0.0)
        super().__init__(start, end, fraction)

    def __call__(self, values: Tensor, progress: float, mask: Tensor | None = None) -> Tensor:
        return self.choose(lambda: values, torch.zeros_like(values), progress, mask)

    def choose(
        self,
        values: Callable[[], Tensor],
        logits: Tensor,
        progress: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        temperature = self.strength(progress)
        if temperature <= 0.0:
            return greedy_action(values(), mask)
        return Categorical(mask_logits(values() / temperature + logits, mask)).sample()

    def probabilities(self, values: Tensor, progress: float, mask: Tensor | None = None) -> Tensor:
        temperature = self.strength(progress)
        if temperature <= 0.0:
            return _one_hot(greedy_action(values, mask), values)
        return Categorical(mask_logits(values / temperature, mask)).probabilities()


class ActionNoise:
    """Noise that is added to continuous actions, in units of half an action's range.

    Args:
        std: Standard deviation at the beginning.
        std_end: From `fraction` of training on; None: `std`.
        fraction: Share of the frame budget over which it is annealed, linearly.
    """

    remembers = False
    """Whether `previous` matters."""

    def __init__(
        self, std: float = 0.1, std_end: float | None = None, fraction: float = 1.0
    ) -> None:
        check_range("noise.std", std, 0.0)
        check_range("noise.std_end", std_end, 0.0)
        check_range("noise.fraction", fraction, 0.0, 1.0)
        self.std, self.fraction = std, fraction
        self.std_end = std if std_end is None else std_end

    def strength(self, progress: float) -> float:
        """Standard deviation at this share of the frame budget."""
        return anneal(self.std, self.std_end, self.fraction, progress)

    def sample(self, shape: torch.Size, progress: float, previous: Tensor | None) -> Tensor:
        """Noise `[B, A]`.

        Args:
            shape: `[B, A]`.
            progress: Share of the frame budget that is used up.
            previous: What the last step of the same episode returned, for noise that remembers.
        """
        raise NotImplementedError


class GaussianNoise(ActionNoise):
    """Independent normal noise (as in TD3, Fujimoto et al. 2018)."""

    def sample(self, shape: torch.Size, progress: float, previous: Tensor | None) -> Tensor:
        return torch.randn(shape) * self.strength(progress)


class OrnsteinUhlenbeck(ActionNoise):
    """Noise that wanders: xₜ₊₁ = (1 − θ) xₜ + σ ε (Lillicrap et al. 2016, with time step 1).

    It pushes in one direction for about 1/θ steps, which explores where single pushes get nowhere.
    Its stationary standard deviation is σ / √(2θ − θ²).

    Args:
        std: σ at the beginning.
        theta: θ in (0, 1].
        std_end: σ from `fraction` of training on; None: `std`.
        fraction: Share of the frame budget over which σ is annealed, linearly.
    """

    remembers = True

    def __init__(
        self,
        std: float = 0.2,
        theta: float = 0.15,
        std_end: float | None = None,
        fraction: float = 1.0,
    ) -> None:
        super().__init__(std, std_end, fraction)
        check_range("noise.theta", theta, 1e-6, 1.0)
        self.theta = theta

    def sample(self, shape: torch.Size, progress: float, previous: Tensor | None) -> Tensor:
        fresh = torch.randn(shape) * self.strength(progress)
        return fresh if previous is None else (1.0 - self.theta) * previous.cpu() + fresh


def greedy_action(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The best allowed action, int64 `[B]`."""
    return mask_logits(values, mask).argmax(-1)


def _one_hot(action: Tensor, values: Tensor) -> Tensor:
    return torch.zeros_like(values).scatter_(-1, action.unsqueeze(-1), 1.0)


def uniform_action(
    space: gym.Space, num_envs: int, mask: Tensor | None, device: torch.device
) -> Tensor:
    """Actions drawn uniformly from a space, `[B, ...]`, in the environment's units.

    Raises:
        ConfigurationError: If the space has no uniform distribution.
    """
    s = gym.spaces
    if isinstance(space, s.Discrete):
        logits = torch.zeros(num_envs, int(space.n), device=device)
        return Categorical(mask_logits(logits, mask)).sample() + int(space.start)
    if isinstance(space, s.Box) and has_finite_range(space):
        low, high = (bound.to(device) for bound in float32_bounds(space))
        return low + (high - low) * torch.rand(num_envs, *space.shape, device=device)
    raise ConfigurationError(
        f"cannot draw uniform actions from {shortened(space)}: it must be Discrete, or a Box with "
        "finite bounds, whose distance float32 can hold; set data.warmup_frames: 0"
    )
