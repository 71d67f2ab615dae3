"""Cutting tensors of a module to some of their indices, and what has to follow them.

One path for whatever removes nodes: what an operator did is said as kept indices per tensor, and
this does it, to the module that the operator was given and to one that is rebuilt from a record.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.compress.replacing import referred, refuse_aliases
from rl_lightning.core.errors import ConfigurationError, shortened

Keep = Sequence[Sequence[int] | None]  # per dimension the kept indices, or None for all

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CHANNEL_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
INNER = ".parametrizations."  # torch.nn.utils.parametrize's


def tensors_of(module: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Every parameter and buffer by its name: its owner, its name there, and itself.

    What is shared stands under each of its names.
    """
    found = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        own = chain(
            owner.named_parameters(recurse=False, remove_duplicate=False),
            owner.named_buffers(recurse=False, remove_duplicate=False),
        )
        for leaf, tensor in own:
            found[f"{prefix}.{leaf}" if prefix else leaf] = (owner, leaf, tensor)
    return found


def layer_of(tensor_name: str) -> str:
    """The layer a tensor belongs to: `fc` of `fc.weight`, also where a mask stands between."""
    if INNER in tensor_name:
        return tensor_name.split(INNER)[0]
    return tensor_name.rpartition(".")[0]


def stored_names(layer: nn.Module, prefix: str, leaf: str) -> list[str]:
    """Names, after a prefix, of the tensors that hold a layer's tensor: itself, or what is masked
    and its mask; none where the layer has none."""
    return [
        f"{prefix}.{name}" if prefix else name
        for name in tensors_of(layer)
        if name == leaf or f".{name}".startswith(f"{INNER}{leaf}.")
    ]


def selected(tensor: Tensor, keep: Keep) -> Tensor:
    """A copy of a tensor with the kept indices of each dimension."""
    for dim, kept in enumerate(keep):
        if kept is not None:
            tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    return tensor.detach().clone()


def kept_indices(where: str, value: Any, size: int) -> list[int]:
    """Indices that a record keeps, checked: at least one, rising, all below `size`.

    Raises:
        ConfigurationError: If they are not.
    """
    whole = isinstance(value, list) and all(type(i) is int for i in value)
    if not whole or not value:
        raise ConfigurationError(
            f"{where} must be a list of at least one index, not {shortened(value)!r}: "
            "the record is damaged, or not one of this library"
        )
    rising = all(a < b for a, b in pairwise(value))
    if not rising or value[0] < 0 or value[-1] >= size:
        raise ConfigurationError(
            f"{where} must hold rising indices between 0 and {size - 1}, not {shortened(value)}: "
            "the record does not fit the module"
        )
    return value


def cut_tensors(
    module: nn.Module, cuts: Mapping[str, Keep], optimizers: Sequence[Optimizer] = ()
) -> None:
    """Cut parameters and buffers of a module, in place.

    New parameters take the place of the old ones, under every name of theirs, with their gradient
    and `requires_grad`; the layers' attributes (`out_features`, `num_features`, …) follow; the
    optimizers go on with the new ones and with their state cut along the same indices.

    Args:
        module: Changed.
        cuts: Per name of a tensor, per dimension, the indices to keep or None for all.
        optimizers: Those with parameters of the module; changed.

    Raises:
        ConfigurationError: If a tensor is not there, has another number of dimensions or fewer
            indices, or belongs to a layer that cannot be cut, or if an optimizer or a plain
            attribute keeps parameters where they cannot be replaced. Nothing has been changed then.
    """
    tensors = tensors_of(module)
    wanted: dict[int, Keep] = {}  # by the tensor's identity: it may have several names
    for name, keep in cuts.items():
        if name not in tensors:
            raise ConfigurationError(f"the module has no tensor {shortened(name)!r} to cut")
        owner, _, tensor = tensors[name]
        if len(keep) != tensor.ndim:
            raise ConfigurationError(
                f"{name!r} has {tensor.ndim} dimensions, and the record {len(keep)}: "
                "it does not fit the module"
            )
        checked = [
            None if k is None else kept_indices(f"{name!r}, dimension {dim},", k, tensor.shape[dim])
            for dim, k in enumerate(keep)
        ]
        if wanted.setdefault(id(tensor), checked) != checked:
            raise ConfigurationError(f"{name!r} is shared, and would be cut in two ways")
        refuse_groups(name, module.get_submodule(layer_of(name)))
        for optimizer in optimizers:
            _check_state(optimizer, tensor)
    refuse_holders(optimizers, wanted)
    refuse_aliases(module, (tensors[name][2] for name in cuts))

    swaps: dict[int, Tensor] = {}
    replaced: list[tuple[Tensor, Tensor, Keep]] = []
    for owner, leaf, tensor in tensors.values():
        if id(tensor) not in wanted:
            continue
        keep = wanted[id(tensor)]
        if id(tensor) not in swaps:
            swaps[id(tensor)] = _cut(tensor, keep)
            replaced.append((tensor, swaps[id(tensor)], keep))
        setattr(owner, leaf, swaps[id(tensor)])
    touched = {layer_of(n) for n, (_, _, old) in tensors.items() if id(old) in wanted}
    for layer in touched:
        follow_tensors(module.get_submodule(layer))
    for optimizer in optimizers:
        for old, new, keep in replaced:
            _cut_state(optimizer, old, new, keep)


def refuse_groups(name: str, layer: nn.Module) -> None:
    """Refuse a convolution in groups, unless each channel is a group by itself.

    Raises:
        ConfigurationError: That names it.
    """
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED) and layer.groups > 1 and not depthwise(layer):
        raise ConfigurationError(
            f"{name!r} belongs to a convolution in {layer.groups} groups, which cannot be cut"
        )


def depthwise(layer: nn.Module) -> bool:
    """Whether a convolution treats each of its channels by itself."""
    convolution = isinstance(layer, CONVOLUTIONS + TRANSPOSED)
    return convolution and 1 < layer.groups == layer.in_channels == layer.out_channels


def follow_tensors(layer: nn.Module) -> None:
    """Set what a layer says of its sizes to what its tensors have."""
    own = {n.rpartition(".")[2]: t for n, (_, _, t) in tensors_of(layer).items()}
    weight = own.get("original", own.get("weight"))  # of a masked layer, or of a plain one
    if weight is None:
        weight = own.get("running_mean")
    if weight is None:
        return
    first = weight.shape[0]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif depthwise(layer):
        layer.groups = layer.in_channels = layer.out_channels = first  # type: ignore[assignment]
    elif isinstance(layer, CONVOLUTIONS):
        layer.out_channels, layer.in_channels = weight.shape[:2]
    elif isinstance(layer, TRANSPOSED):
        layer.in_channels, layer.out_channels = weight.shape[:2]
    elif isinstance(layer, CHANNEL_NORMS):
        layer.num_features = first
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = first
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = first
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape


def refuse_holders(optimizers: Sequence[Optimizer], changed: Iterable[int]) -> None:
    """Refuse optimizers that would go on with parameters that are cut or gone.

    Parameters are replaced in `param_groups` and `state`; `torch.optim.LBFGS` has them in an
    attribute, too, and others keep momentum there.

    Args:
        optimizers: Stay as they are.
        changed: The `id` of each parameter that will be cut or gone.

    Raises:
        ConfigurationError: That names the optimizer and the attribute.
    """
    changed = set(changed)
    for optimizer in optimizers:
        mine = any(id(p) in changed for group in optimizer.param_groups for p in group["params"])
        elsewhere = {k: v for k, v in vars(optimizer).items() if k not in ("param_groups", "state")}
        for group in optimizer.param_groups:
            elsewhere |= {f"param_groups[{k!r}]": v for k, v in group.items() if k != "params"}
        seen = {id(optimizer), id(optimizer.param_groups), id(optimizer.state)}
        for attribute, value in elsewhere.items():
            held = [part for part in referred(value, seen) if isinstance(part, Tensor)]
            if any(id(t) in changed or (mine and t.numel() > 1) for t in held):
                raise ConfigurationError(
                    f"{type(optimizer).__name__} keeps tensors in its {attribute!r}, where they "
                    "cannot follow what is pruned: build the optimizer after pruning"
                )


def drop_parameters(optimizer: Optimizer, removed: Sequence[Tensor]) -> None:
    """Take parameters that the module no longer has out of an optimizer. Groups stay."""
    gone = {id(p) for p in removed}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in removed:
        optimizer.state.pop(parameter, None)


def _cut(tensor: Tensor, keep: Keep) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return selected(tensor, keep)
    new = nn.Parameter(selected(tensor, keep), requires_grad=tensor.requires_grad)
    if tensor.grad is not None:
        new.grad = selected(tensor.grad, keep)
    return new


def _check_state(optimizer: Optimizer, tensor: Tensor) -> None:
    for key, value in optimizer.state.get(tensor, {}).items():
        if isinstance(value, Tensor) and value.ndim and value.shape != tensor.shape:
            raise ConfigurationError(
                f"{type(optimizer).__name__} keeps {key!r} of another shape than its parameter, "
                "which cannot be cut: begin with a new optimizer"
            )


def _cut_state(optimizer: Optimizer, old: Tensor, new: Tensor, keep: Keep) -> None:
    """Have an optimizer go on with `new`, with its state of `old` cut in the same way."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            key: selected(value, keep) if isinstance(value, Tensor) and value.ndim else value
            for key, value in optimizer.state.pop(old).items()
        }
