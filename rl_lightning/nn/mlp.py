"""Small fully connected parts."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.nn.insides import is_heard, own_parameters

M = TypeVar("M", bound=nn.Module)
Activation = Literal["tanh", "relu", "elu", "gelu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`; of a plain linear layer without torch's way from a module to its function.

    For a small layer that way takes longer than the layer.
    """
    if type(layer) is nn.Linear and not is_heard(layer):
        own = own_parameters(layer)
        return F.linear(x, own["weight"], own["bias"])
    return layer(x)


class MLP(nn.Sequential):
    """Layers in turn, the plain ones by `linear`, with their activations in place.

    Same numbers, same names and same children as an `nn.Sequential`.
    """

    def forward(self, input: Tensor) -> Tensor:
        x, own = input, False  # whether it is ours to write over
        for layer in self._modules.values():
            assert layer is not None
            activate = _IN_PLACE.get(type(layer))
            if activate is not None and own and not is_heard(layer):
                x = activate(x)
                continue
            x = linear(layer, x)
            own = type(layer) is nn.Linear
        return x


# What their gradients need is the result alone.
_IN_PLACE: dict[type, Callable[[Tensor], Any]] = {nn.Tanh: Tensor.tanh_, nn.ReLU: Tensor.relu_}


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


def orthogonal(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer, initialised by `orthogonal_`."""
    return orthogonal_(nn.Linear(in_dim, out_dim))


def make_activation(name: str) -> nn.Module:
    """An activation by name.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ConfigurationError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}"
        )
    return ACTIVATIONS[name]()


def mlp(
    in_dim: int,
    hidden: Sequence[int],
    activation: Activation = "tanh",
    out_dim: int | None = None,
    layer: Callable[[int, int], nn.Module] = orthogonal,
) -> MLP:
    """Linear → activation, once per entry of `hidden`, then linear to `out_dim` if it is given.

    `[N, in_dim]` → `[N, out_dim]`, or `[N, hidden[-1]]`; of neither, the identity.

    Args:
        in_dim: Width of what goes in.
        hidden: Widths of the layers.
        activation: Of each of them.
        out_dim: Width of a last layer without activation; None for none.
        layer: Builds the linear layers: `orthogonal`, `nn.Linear`, `NoisyLinear`.

    Raises:
        ConfigurationError: If a width is not positive or the activation is unknown.
    """
    layers: list[nn.Module] = []
    make_activation(activation)
    for width in widths(hidden):
        layers += [layer(in_dim, width), make_activation(activation)]
        in_dim = width
    if out_dim is not None:
        layers.append(layer(in_dim, out_dim))
    return MLP(*layers)
