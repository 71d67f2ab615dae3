"""Training under quantisation: weights are rounded in every forward pass, and stay trainable."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from rl_lightning.compress.quantisable import (
    Bits,
    Choice,
    choose,
    from_record,
    pack_layers,
    refuse_root,
    straight_through,
    to_record,
)
from rl_lightning.compress.straight_through import StraightThrough
from rl_lightning.core.errors import ConfigurationError


def fake_quantise(
    module: nn.Module,
    bits: Bits,
    layers: Sequence[str] | None = None,
    group_size: int | None = None,
    keep: Iterable[str] = (),
) -> dict[str, Any]:
    """Have weights rounded in every forward pass, in place, and trained all the same.

    Layers compute with ŵ, see `rl_lightning.compress.rounding`; the gradient with respect to ŵ is
    taken for that with respect to w (the straight-through estimator of Bengio et al. 2013). Scales
    follow the weights. `harden` then stores ŵ. Parameters stay the objects they are, so optimizers
    go on with them; in the state dict a weight's name becomes
    `….parametrizations.weight.original`.

    A weight is rounded anew each time it is read: `torch.nn.utils.parametrize.cached()` around a
    forward pass that reads it often saves time. Above a parametrization that is there already (a
    pruning mask) the rounding comes after it.

    Args:
        module: Changed in place.
        bits: As of `rl_lightning.compress.quantise`.
        layers: Likewise.
        group_size: Likewise.
        keep: Likewise.

    Returns:
        The record, with operator "fake_quantise" and otherwise as `quantise` returns it.

    Raises:
        ConfigurationError: As of `quantise`.
    """
    chosen, left = choose(module, bits, layers, group_size, keep)
    record = to_record("fake_quantise", chosen, left)
    _register(chosen)
    return record


def refake(module: nn.Module, record: Any) -> None:
    """Have the weights of a module that was built anew rounded as a record tells, in place.

    Then `load_state_dict` takes a checkpoint from the middle of training under quantisation.

    Args:
        module: As it was built before `fake_quantise`, whatever its weights.
        record: What `fake_quantise` returned; it may come from a stranger's file.

    Raises:
        ConfigurationError: If the record is none, or does not fit the module, which then stays as
            it was.
    """
    _register(from_record(module, record, "fake_quantise"))


def harden(module: nn.Module, cached: bool = False) -> dict[str, Any]:
    """Turn layers trained under quantisation into packed ones that compute the same, in place.

    Args:
        module: Changed in place.
        cached: Keep restored weights in memory, for speed.

    Returns:
        The record, as if `quantise` had made these layers, for `requantise`.

    Raises:
        ConfigurationError: If no layer is trained under quantisation, if something else changes a
            rounded weight afterwards, or if a weight is not finite.
    """
    refuse_root(module)
    chosen: dict[str, Choice] = {}
    weights: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        rounding = straight_through(layer)
        if rounding is None:
            continue
        weights[name] = _before_rounding(name, layer, rounding)
        if not bool(weights[name].isfinite().all()):
            raise ConfigurationError(f"the weight of {name} is not finite: it cannot be rounded")
        chosen[name] = Choice(layer, rounding.bits, rounding.group_size)
    if not chosen:
        raise ConfigurationError(
            "no layer is trained under quantisation: call fake_quantise and train first (--method "
            "quantise-aware, then fit), or quantise what was not"
        )
    record = to_record("quantise", chosen, {})
    pack_layers(module, chosen, cached, weights)
    return record


def _register(chosen: Mapping[str, Choice]) -> None:
    for layer, bits, group_size in chosen.values():
        parametrize.register_parametrization(layer, "weight", StraightThrough(bits, group_size))


def _before_rounding(name: str, layer: nn.Module, rounding: StraightThrough) -> Tensor:
    """The weight that is rounded: the parameter itself, unless something stands before."""
    steps: Any = layer.parametrizations["weight"]  # type: ignore[index]
    if steps[-1] is not rounding:
        raise ConfigurationError(
            f"the weight of {name} is changed by a {type(steps[-1]).__name__} after it was rounded"
            ": put masks on before fake_quantise"
        )
    weight: Tensor = steps.original
    for step in list(steps)[:-1]:
        weight = step(weight)
    return weight
