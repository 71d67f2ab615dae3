"""Which layers of a module are quantised, by what names, to how many bits; and replacing them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from rl_lightning.compress.packed import KINDS, PackedLayer
from rl_lightning.compress.replacing import replace
from rl_lightning.compress.rounding import WIDTHS, Rounded, as_rows, pack_weight
from rl_lightning.compress.straight_through import StraightThrough
from rl_lightning.core.errors import ConfigurationError, nearest, shortened, whole
from rl_lightning.nn.insides import is_heard

BITS = (*WIDTHS, 16, 32)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Bits = int | Mapping[str, int | float]


class Choice(NamedTuple):
    """What a layer is rounded to.

    Attributes:
        layer: The float layer.
        bits: 1 to 8, or 16.
        group_size: Inputs that share a scale; None: a whole row.
    """

    layer: nn.Module
    bits: int
    group_size: int | None


def kind(layer: nn.Module) -> type[nn.Module]:
    """A layer's type, also where its weight is parametrized."""
    return parametrize.type_before_parametrizations(layer)


def original(layer: nn.Module) -> Tensor:
    """The parameter behind a layer's weight, also where that is parametrized."""
    any_layer: Any = layer
    if parametrize.is_parametrized(layer, "weight"):
        return any_layer.parametrizations["weight"].original
    return any_layer.weight


def straight_through(layer: nn.Module) -> StraightThrough | None:
    """What rounds a layer's weight while it trains, if anything does."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    any_layer: Any = layer
    steps = any_layer.parametrizations["weight"]
    return next((step for step in steps if isinstance(step, StraightThrough)), None)


def quantisable(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be quantised, by name; of layers that share a weight the first, and none
    where that weight is also another module's.

    Returns:
        `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Embedding` and `nn.EmbeddingBag`, not their
        subclasses, in the order of `named_modules`.
    """
    layers, _ = _divide(module)
    groups = [group for group in _shared(module, layers) if all(n in layers for n in group)]
    first = {group[0] for group in groups}
    return {name: layer for name, layer in layers.items() if name in first}


def choose(
    module: nn.Module,
    bits: Bits,
    layers: Sequence[str] | None,
    group_size: int | None,
    keep: Iterable[str],
) -> tuple[dict[str, Choice], dict[str, str]]:
    """Which layers are rounded to what, and why others are not.

    Args:
        module: Whose layers.
        bits: For all layers, or by name; a name means what is inside, too, and the longest counts.
        layers: Names of layers, or of what they are inside of; None means all.
        group_size: Inputs that share a scale; None: a whole row.
        keep: Names of what stays as it is.

    Returns:
        Choices by name; and of each other layer with a weight of two or more dimensions, the reason
        it is left.

    Raises:
        ConfigurationError: If a name is unknown or leads to nothing that can be quantised, if bits
            or group size are none, if layers that share a weight get different bits, or if nothing
            is left to do.
    """
    able, left = _divide(module)
    if group_size is not None:
        group_size = whole("group_size", group_size, 1)
    for argument, value in (("layers", layers), ("keep", keep)):
        if isinstance(value, str):
            raise ConfigurationError(f"{argument}={value!r} must be a list of names: [{value!r}]")
    keep = list(keep)
    by_name = dict(bits) if isinstance(bits, Mapping) else {"": bits}
    widths = {name: _width(name, value) for name, value in by_name.items()}
    for argument, names in (("bits", widths), ("layers", layers or ()), ("keep", keep)):
        _check_names(module, argument, names, able, left)
    asked = {
        name: widths[max(above, key=len)]
        for name in able
        if (above := [key for key in widths if _inside(name, key)])
        and (layers is None or any(_inside(name, key) for key in layers))
    }
    chosen: dict[str, Choice] = {}
    for group in _shared(module, able):
        kept = [n for n in group if n not in able or any(_inside(n, key) for key in keep)]
        wanted = {asked[name] for name in group if name in asked}
        if len(wanted) > 1 and not kept:
            raise ConfigurationError(
                f"{' and '.join(group)} share one weight: give them the same bits, not "
                f"{' and '.join(map(str, sorted(wanted)))}"
            )
        bits_of_group = min(wanted, default=None)
        for name in group:
            if name not in able:
                continue
            if kept:
                shares = f"shares the weight of {kept[0]}, which is left"
                left[name] = "kept" if name in kept else shares
            elif bits_of_group is None or bits_of_group == 32:
                left[name] = "not asked for" if bits_of_group is None else "kept at 32 bits"
            else:
                chosen[name] = Choice(able[name], bits_of_group, group_size)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise ConfigurationError(f"nothing to quantise ({shortened(reasons or 'no layers', 600)})")
    for name, choice in chosen.items():
        if not bool(choice.layer.weight.isfinite().all()):  # type: ignore[operator, union-attr]
            raise ConfigurationError(f"the weight of {name} is not finite: it cannot be rounded")
    return {name: chosen[name] for name in able if name in chosen}, left


def to_record(operator: str, chosen: Mapping[str, Choice], left: Mapping[str, str]) -> dict:
    """What was done, as plain values."""
    layers = {
        name: {"kind": kind(layer).__name__, "bits": bits, "group_size": group_size}
        for name, (layer, bits, group_size) in chosen.items()
    }
    return {"operator": operator, "layers": layers, "left": dict(left)}


def from_record(module: nn.Module, record: Any, operator: str) -> dict[str, Choice]:
    """The choices that a record tells of, in a module that was built anew.

    Args:
        module: As it was before the operator.
        record: As `to_record` wrote it, from a file that anybody may have written.
        operator: That it must be of.

    Raises:
        ConfigurationError: If the record is of another operator, is none, or does not fit.
    """
    if not isinstance(record, Mapping) or record.get("operator") != operator:
        raise ConfigurationError(f"this is no record of {operator}: {shortened(record)}")
    layers = record.get("layers")
    if not isinstance(layers, Mapping) or not layers:
        raise ConfigurationError(f"the record of {operator} names no layers: {shortened(record)}")
    able, left = _divide(module)
    chosen = {}
    for name, entry in layers.items():
        if not isinstance(entry, Mapping) or set(entry) != {"kind", "bits", "group_size"}:
            raise ConfigurationError(
                f"the record of {operator} says of {shortened(name)}: {shortened(entry)}; expected "
                "kind, bits and group_size"
            )
        layer = able.get(name)
        if layer is None:
            reason = left.get(name, "there is none")
            raise ConfigurationError(
                f"the record of {operator} has a layer {shortened(name)}, and here {reason}"
            )
        if kind(layer).__name__ != entry["kind"]:
            raise ConfigurationError(
                f"the record of {operator} says that {name} is a {shortened(entry['kind'])}; here "
                f"it is a {kind(layer).__name__}"
            )
        bits, group_size = _width(name, entry["bits"]), entry["group_size"]
        if bits == 32:
            raise ConfigurationError(
                f"the record of {operator} has {name} at 32 bits: leave it out"
            )
        if group_size is not None:
            group_size = whole(f"group_size of {name}", group_size, 1)
        chosen[name] = Choice(layer, bits, group_size)
    return chosen


def pack_layers(
    module: nn.Module,
    chosen: Mapping[str, Choice],
    cached: bool,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Replace layers by packed ones.

    Args:
        module: Changed in place.
        chosen: The layers.
        cached: Of the packed layers.
        weights: What to store, by name of the layer; None: what the layers' weights are now. One
            and the same tensor is stored once.

    Raises:
        ConfigurationError: If a weight is too large for half precision or for a mean, or a layer
            cannot be replaced everywhere; nothing is changed then.
    """
    values: Any = weights or {name: choice.layer.weight for name, choice in chosen.items()}
    new: dict[int, nn.Module] = {}
    stored: dict[tuple, Rounded] = {}
    for name, (layer, bits, group_size) in chosen.items():
        key = (id(values[name]), bits, group_size)
        if key not in stored:
            rows = as_rows(values[name].detach())
            stored[key] = pack_weight(rows, bits, group_size)
            if bits == 16 and not bool(stored[key].codes.isfinite().all()):
                raise ConfigurationError(
                    f"{name} has weights above 65504, the most that half precision holds: give it "
                    "32 bits"
                )
            if not bool(stored[key].scale.isfinite().all()):
                raise ConfigurationError(
                    f"{name} has weights so large that their mean overflows: give it 8 or 32 bits"
                )
        new[id(layer)] = KINDS[kind(layer)](layer, stored[key], bits, group_size, cached)
    replace(module, new)


def refuse_root(module: nn.Module) -> None:
    """Say that a layer cannot be replaced where nothing is around it."""
    if kind(module) in KINDS or isinstance(module, PackedLayer):
        raise ConfigurationError(
            f"the module is itself a {kind(module).__name__}, and layers are replaced inside a "
            "module: give nn.Sequential(layer)"
        )


def _divide(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Layers that can be quantised; and those with weights that cannot, with the reason."""
    able, left = {}, {}
    for name, layer in module.named_modules():
        if isinstance(layer, parametrize.ParametrizationList):
            continue  # spoken of as the layer it belongs to
        reason = _obstacle(layer)
        if reason is not None:
            left[name] = reason
        elif kind(layer) in KINDS:
            able[name] = layer
    return able, left


def _obstacle(layer: nn.Module) -> str | None:
    if isinstance(layer, PackedLayer):
        return f"it is packed already, in {layer.bits} bits"
    if straight_through(layer) is not None:
        return "it is trained under quantisation: call harden"
    own = dict(layer.named_parameters(recurse=False))
    name = kind(layer).__name__
    if kind(layer) not in KINDS:
        if any(is_lazy(parameter) for parameter in own.values()):
            return "it is not initialised yet"
        if not any(parameter.ndim > 1 for parameter in own.values()):
            return None
        of_kind = next((k.__name__ for k in KINDS if isinstance(layer, k)), None)
        if of_kind is not None:
            return f"it is a {name}, which may do other things than the {of_kind} it is based on"
        return f"it is a {name}, which has no packed form"
    if "weight" not in own and not parametrize.is_parametrized(layer, "weight"):
        return "its weight is computed by a hook"
    if parametrize.is_parametrized(layer, "weight") and not _one_original(layer):
        return "a parametrization computes its weight from several tensors: remove that first"
    weight = original(layer)
    if weight.dtype not in FLOATS:
        return f"its weight is of {weight.dtype}, which is not rounded"
    if weight.is_meta:
        return "its weight is on the meta device, where there are no numbers"
    if is_heard(layer):
        return "hooks listen to it, which would be lost"
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
        return "max_norm changes its weight as it reads"
    return None


def _one_original(layer: nn.Module) -> bool:
    """Whether a parametrized weight is computed from one tensor, as weight norm's is not."""
    steps = layer.get_submodule("parametrizations.weight")
    return "original" in {n for n, _ in (*steps.named_parameters(), *steps.named_buffers())}


def _shared(module: nn.Module, able: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of layers that share one weight, also with what cannot be quantised."""
    names: dict[int, list[str]] = {id(original(layer)): [] for layer in able.values()}
    for name, layer in module.named_modules():
        if isinstance(layer, parametrize.ParametrizationList):
            continue
        weights = [original(layer)] if name in able else layer.parameters(recurse=False)
        for weight in weights:
            if id(weight) in names and name not in names[id(weight)]:
                names[id(weight)].append(name)
    return list(names.values())


def _width(name: str, value: Any) -> int:
    argument = f"bits of {name}" if name else "bits"
    bits = whole(argument, value, 1)
    if bits not in BITS:
        raise ConfigurationError(
            f"{argument} must be 1 (binary), 2 (ternary), 3 to 8, 16 (half precision) or 32 (as "
            f"it is), not {bits}"
        )
    return bits


def _inside(name: str, key: str) -> bool:
    return not key or name == key or name.startswith(f"{key}.")


def _check_names(
    module: nn.Module,
    argument: str,
    names: Iterable[str],
    able: Mapping[str, nn.Module],
    left: Mapping[str, str],
) -> None:
    known = dict(module.named_modules())
    for name in names:
        if name not in known:
            near = ", ".join(nearest(str(name), [*able, *left])[:3])
            raise ConfigurationError(f"{argument}: there is no {shortened(name)}; nearest: {near}")
        if name and argument != "keep" and not any(_inside(n, name) for n in able):
            reason = left.get(name, "nothing inside it can be quantised")
            raise ConfigurationError(f"{argument}: {name} stays as it is: {reason}")
