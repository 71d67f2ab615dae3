"""Small fully connected parts."""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import nn

from rl_lightning.core.errors import ConfigurationError, whole

M = TypeVar("M", bound=nn.Module)
Activation = Literal["tanh", "relu", "elu", "gelu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def orthogonal_(layer: M, gain: float = math.sqrt(2.0)) -> M:
    """Initialise a layer's weight orthogonally and its bias with zero (Engstrom et al. 2020)."""
    nn.init.orthogonal_(layer.weight, gain)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def widths(hidden: Sequence[int], name: str = "hidden") -> list[int]:
    """Widths of layers as ints.

    Raises:
        ConfigurationError: If one is no positive whole number.
    """
    try:
        return [whole(name, width, 1) for width in hidden]
    except (TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{name} must hold positive widths, not {hidden!r}") from error


def mlp(in_dim: int, hidden: Sequence[int], activation: Activation = "tanh") -> nn.Sequential:
    """Linear → activation, once per entry of `hidden`: `[N, in_dim]` → `[N, hidden[-1]]`.

    An empty `hidden` is the identity.

    Raises:
        ConfigurationError: If a width is not positive or the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise ConfigurationError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}"
        )
    layers: list[nn.Module] = []
    for width in widths(hidden):
        layers += [orthogonal_(nn.Linear(in_dim, width)), ACTIVATIONS[activation]()]
        in_dim = width
    return nn.Sequential(*layers)
