"""Single weights set to zero for good, by their magnitude (Han et al. 2015)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from rl_lightning.compress.packed import PackedLayer
from rl_lightning.compress.straight_through import StraightThrough
from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range, shortened

Scope = Literal["global", "layer"]
PRUNABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NO_WEIGHT = "it has no weight of two or more dimensions"


class Mask(nn.Module):
    """w where the mask is true, 0 elsewhere; gradients likewise.

    The mask is a buffer, so that checkpoints carry it, and no optimizer step, weight decay or
    momentum can bring back what it hides.

    Args:
        mask: Bool, of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)


def prune_weights(
    module: nn.Module,
    sparsity: float | Mapping[str, float],
    scope: Scope = "global",
    layers: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Set the smallest weights to zero, in place, and keep them there through further training.

    ⌊sparsity · n⌋ of the n weights are masked, those of smallest |w|, the earlier one of equals.
    The largest weight of each layer always stays. A layer that is masked already gets a new mask
    by what it computes with, so that a schedule may call this again with a larger share.

    Biases and norms stay whole, and so do weights that several layers share, that a parametrization
    or a hook computes (weight norm, training under quantisation), that are complex, empty, on the
    meta device or not initialised yet.

    Args:
        module: Changed; parameters stay the same objects, so that its optimizers stay right.
        sparsity: Share of zeros in [0, 1); or one per layer's name, each ranked by itself.
        scope: Whether weights are ranked among those of all layers (`global`) or each layer loses
            the same share (`layer`).
        layers: Names of layers with a weight; None for all linear and convolutional ones. Not
            with a mapping, which names them.

    Returns:
        The record, for `restructure`.

    Raises:
        ConfigurationError: If a share, a scope or a layer is not what it should be.
    """
    check_one_of("scope", scope, ("global", "layer"))
    if isinstance(sparsity, Mapping):
        if layers is not None:
            raise ConfigurationError("sparsity names the layers: leave layers out")
        shares = dict(sparsity)
        chosen = maskable(module, shares)
        for name, share in shares.items():
            check_share(f"sparsity[{name!r}]", share)
        masks = {n: smallest_kept([magnitude(chosen[n])], s)[0] for n, s in shares.items()}
    else:
        check_share("sparsity", sparsity)
        chosen = maskable(module, layers)
        sizes = [magnitude(layer) for layer in chosen.values()]
        if scope == "global":
            kept = smallest_kept(sizes, sparsity)
        else:
            kept = [smallest_kept([size], sparsity)[0] for size in sizes]
        masks = dict(zip(chosen, kept, strict=True))
    for name, mask in masks.items():
        put_mask(chosen[name], mask)
    return {"operator": "prune_weights", "layers": list(masks)}


def bake(module: nn.Module) -> dict[str, Any]:
    """Make masks permanent, in place: plain weights with zeros, which training may change again.

    Returns:
        The record, for `restructure`.

    Raises:
        ConfigurationError: If nothing is masked.
    """
    masked = [layer for layer in module.modules() if mask_of(layer) is not None]
    if not masked:
        raise ConfigurationError("there is no mask to bake in: call prune_weights first")
    for layer in masked:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return {"operator": "bake"}


def apply_weights_record(
    module: nn.Module, record: Mapping[str, Any], optimizers: Sequence[Optimizer] = ()
) -> None:
    """Give a module masks, all true, where a record has them; `load_state_dict` fills them.

    Raises:
        ConfigurationError: If the record does not fit the module.
    """
    names = record.get("layers")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigurationError("the record of prune_weights must name its layers in a list")
    for layer in maskable(module, names).values():
        if mask_of(layer) is None:
            put_mask(layer, torch.ones_like(magnitude(layer), dtype=torch.bool))


def apply_bake_record(
    module: nn.Module, record: Mapping[str, Any], optimizers: Sequence[Optimizer] = ()
) -> None:
    """Take the masks of a module away again.

    Raises:
        ConfigurationError: If it has none.
    """
    bake(module)


def smallest_kept(sizes: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks of what stays when the share of smallest entries of all tensors together goes.

    Args:
        sizes: Magnitudes, of any shapes.
        share: In [0, 1).

    Returns:
        Bool, of the same shapes; at least the largest entry of each is true.
    """
    flat = []
    for size in sizes:
        row = size.flatten().clone()
        row[row.argmax()] = torch.inf
        flat.append(row)
    everything = torch.cat([row.to(flat[0].device) for row in flat])
    number = min(int(share * len(everything) + 1e-9), len(everything) - len(flat))
    kept = torch.ones(len(everything), dtype=torch.bool, device=everything.device)
    kept[everything.argsort(stable=True)[:number]] = False
    parts = kept.split([len(row) for row in flat])
    return [p.view_as(size).to(size.device) for p, size in zip(parts, sizes, strict=True)]


def maskable(module: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    """Layers by name whose weight may be masked.

    Raises:
        ConfigurationError: If one is not there or cannot be masked, with the reason, or none is
            left.
    """
    every = dict(module.named_modules())
    users: dict[int, int] = {}
    for layer in every.values():
        weight = weight_of(layer)
        if weight is not None:
            users[id(weight)] = users.get(id(weight), 0) + 1
    reasons = {name: _obstacle(layer, users) for name, layer in every.items()}
    layers = {n: layer for n, layer in every.items() if isinstance(layer, (*PRUNABLE, PackedLayer))}
    able = {name: every[name] for name in layers if reasons[name] is None}
    if names is None:
        if not able:
            said = "; ".join(
                f"{n or type(part).__name__}: {reasons[n]}" for n, part in layers.items()
            )
            raise ConfigurationError(
                "module has no linear or convolutional layer to prune"
                + (f" ({shortened(said, 400)})" if said else "")
            )
        return able
    found: dict[str, nn.Module] = {}
    for name in [names] if isinstance(names, str) else names:
        if name not in every or reasons[name] == NO_WEIGHT:
            raise ConfigurationError(
                f"the module has no layer {shortened(name)!r} with a weight to prune; "
                f"it has {shortened(', '.join(able)) or 'none'}"
            )
        if reasons[name] is not None:
            raise ConfigurationError(f"{name!r} cannot be pruned: {reasons[name]}")
        found[name] = every[name]
    return found


def _obstacle(layer: nn.Module, users: Mapping[int, int]) -> str | None:
    """Why a layer's weight cannot be masked, if so."""
    if isinstance(layer, PackedLayer):
        return "its weights are stored in few bits: prune first, then quantise"
    if parametrize.is_parametrized(layer, "weight") and mask_of(layer) is None:
        steps = list(layer.get_submodule("parametrizations.weight").children())
        if any(isinstance(step, StraightThrough) for step in steps):
            return "it is trained under quantisation: prune first, then quantise"
        kinds = ", ".join(type(step).__name__.lstrip("_") for step in steps)
        return f"its weight is computed by a parametrization ({kinds}): remove that first"
    own = dict(layer.named_parameters(recurse=False))
    if "weight" not in own and "weight" in vars(layer):
        return "its weight is computed by a hook (weight_norm or spectral_norm): remove that first"
    weight = weight_of(layer, floating=False)
    if weight is None:
        return NO_WEIGHT
    if is_lazy(weight):
        return "its weight is not initialised yet: call the module once"
    if weight.ndim < 2:
        return NO_WEIGHT
    if not weight.is_floating_point():
        return f"its weight is of {weight.dtype}, and magnitudes are ranked of real numbers only"
    if weight.is_meta:
        return "its weight is on the meta device, where there are no numbers"
    if weight.numel() == 0:
        return "its weight is empty"
    if users[id(weight)] > 1:
        return "its weight is shared with another layer"
    return None


def weight_of(layer: nn.Module, floating: bool = True) -> nn.Parameter | None:
    """A layer's own weight as it is trained, under a mask or not; None without one.

    Args:
        layer: Any.
        floating: Weights of other numbers count as none.
    """
    if mask_of(layer) is not None:
        return dict(layer.get_submodule("parametrizations.weight").named_parameters())["original"]
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return weight if weight is not None and (weight.is_floating_point() or not floating) else None


def mask_of(layer: nn.Module) -> Mask | None:
    """The mask of a layer's weight, or None."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    for step in layer.get_submodule("parametrizations.weight").children():
        if isinstance(step, Mask):
            return step
    return None


def magnitude(layer: nn.Module) -> Tensor:
    """|w| of what a layer computes with, 0 where it is masked."""
    weight, mask = weight_of(layer), mask_of(layer)
    assert weight is not None
    size = weight.detach().abs().float()
    return size if mask is None else size * mask.mask


def put_mask(layer: nn.Module, kept: Tensor) -> None:
    """Mask a layer's weight, by a new mask or in the one it has; what is hidden becomes 0."""
    mask, weight = mask_of(layer), weight_of(layer)
    assert weight is not None
    if mask is None:
        parametrize.register_parametrization(layer, "weight", Mask(kept))
    else:
        mask.mask.copy_(kept)
    with torch.no_grad():
        weight[~kept] = 0.0


def check_share(name: str, value: Any) -> None:
    """Refuse what is no share in [0, 1).

    Raises:
        ConfigurationError: That names the argument and the value.
    """
    if value is None or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a share in [0, 1), not {value!r}")
    check_range(name, value, 0.0, 1.0)
    if value >= 1.0:
        raise ConfigurationError(f"{name} must be below 1, not {value}: something has to stay")
