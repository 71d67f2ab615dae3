"""Quantisation of weights after training: float layers become packed ones, and back."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from rl_lightning.compress.packed import PackedLayer
from rl_lightning.compress.quantisable import (
    Bits,
    choose,
    from_record,
    pack_layers,
    refuse_root,
    to_record,
)
from rl_lightning.compress.replacing import replace
from rl_lightning.core.errors import ConfigurationError


def quantise(
    module: nn.Module,
    bits: Bits,
    layers: Sequence[str] | None = None,
    group_size: int | None = None,
    keep: Iterable[str] = (),
    cached: bool = False,
) -> dict[str, Any]:
    """Store weights in a few bits, in place.

    `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Embedding` and `nn.EmbeddingBag` are replaced by
    layers whose state dict holds packed codes and scales, see `rl_lightning.compress.rounding`.
    Biases, norms and activations stay in floating point, and so does the arithmetic: what gets
    small is the file and the memory between two calls; see `rl_lightning.compress.packed` for the
    time. A binary weight has no 0, so a mask's zeros last at 2 bits and more.

    Subclasses of these layers, recurrent cells, `nn.MultiheadAttention`, layers with hooks and
    whatever else has weights are left and named in the record. A weight that several layers share
    is stored once as long as they stay on the device they were quantised on; in the state dict it
    stands under each of their names. A parametrized weight (a pruning mask's) is packed as what it
    is now.

    Args:
        module: Changed in place. Optimizers of its weights have to be made anew.
        bits: 1 (binary), 2 (ternary), 3 to 8, 16 (half precision) or 32 (as it is), for all layers
            or by name. A name means what is inside it, too; the longest that fits counts; layers
            without one stay. Layers that share a weight follow the one that is named.
        layers: Names of layers, or of what they are inside of; None means all.
        group_size: Inputs that share a scale, for 8 bits and fewer; None: a whole row.
        keep: Names of what stays as it is.
        cached: Keep restored weights in memory, for speed.

    Returns:
        The record: operator "quantise"; kind, bits and group size of each layer that was replaced;
        under "left" the reason of each other layer with weights. Plain values.

    Raises:
        ConfigurationError: If a name, bits or group size cannot be, if a weight is not finite or
            too large for half precision, if a plain attribute (a Python list of layers) refers to
            a layer, where it cannot be replaced, or if nothing can be quantised.
    """
    refuse_root(module)
    chosen, left = choose(module, bits, layers, group_size, keep)
    pack_layers(module, chosen, cached)
    return to_record("quantise", chosen, left)


def requantise(module: nn.Module, record: Any, cached: bool = False) -> None:
    """Give a module that was built anew the packed layers a record tells of, in place.

    Then `load_state_dict` takes what the quantised module's `state_dict` gave, and outputs are
    equal bit for bit.

    Args:
        module: As it was built before `quantise`, whatever its weights.
        record: What `quantise` returned; it may come from a stranger's file.
        cached: Keep restored weights in memory, for speed.

    Raises:
        ConfigurationError: If the record is none, or does not fit the module, which then stays as
            it was.
    """
    refuse_root(module)
    pack_layers(module, from_record(module, record, "quantise"), cached)


def dequantise(module: nn.Module) -> None:
    """Put float layers in the place of packed ones, with the weights they stood for, in place.

    The module can be trained again then, and is as large as before. Shared weights are shared
    again, unless the module was moved to another device since.

    Raises:
        ConfigurationError: If nothing is packed, or if the module is itself a packed layer.
    """
    refuse_root(module)
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLayer)]
    if not packed:
        raise ConfigurationError("nothing is packed: call quantise or requantise first")
    new: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    for layer in packed:
        plain: Any = layer.float_layer()
        plain.weight = weights.setdefault(id(layer.codes), plain.weight)
        new[id(layer)] = plain
    replace(module, new)
