"""Nodes taken out of a copy first, which has to compute what the masked network does."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.compress.calls import tensors_in
from rl_lightning.compress.cut import CHANNEL_NORMS, cut_tensors, layer_of, tensors_of
from rl_lightning.compress.dependencies import LAYERS, NodeGroup
from rl_lightning.core.errors import ConfigurationError, shortened

Removals = Sequence[tuple[NodeGroup, list[int]]]
Cuts = dict[str, list[list[int] | None]]
KNOWN = (*LAYERS, *CHANNEL_NORMS, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)


def cuts_of(module: nn.Module, removals: Removals) -> Cuts:
    """Kept indices per tensor and dimension."""
    tensors, gone = tensors_of(module), {}
    for group, removed in removals:
        nodes = set(removed)
        for part in group.slices:
            lost = gone.setdefault((part.tensor, part.dim), set())
            lost |= {i for i, node in enumerate(part.nodes) if node in nodes}
    cuts: Cuts = {}
    for (name, dim), lost in gone.items():
        shape = tensors[name][2].shape
        if lost:
            cut = cuts.setdefault(name, [None] * len(shape))
            cut[dim] = [i for i in range(shape[dim]) if i not in lost]
    return cuts


def mask_nodes(module: nn.Module, removals: Removals) -> None:
    """Set every number that belongs to some nodes to zero, in place."""
    tensors = tensors_of(module)
    with torch.no_grad():
        for group, removed in removals:
            nodes = set(removed)
            for part in group.slices:
                lost = [i for i, node in enumerate(part.nodes) if node in nodes]
                tensor = tensors[part.tensor][2]
                if tensor.is_floating_point():
                    index = torch.tensor(lost, dtype=torch.long, device=tensor.device)
                    tensor.index_fill_(part.dim, index, 0.0)


def try_out(module: nn.Module, removals: Removals, inputs: Sequence[Any]) -> None:
    """Refuse what a smaller copy shows to be wrong, and name the layers.

    Groups that reach a free parameter may be summed over by a norm of the user's own, and are only
    seen to run; the others are compared, by themselves, whatever else goes. Outputs are compared
    for the inputs as they are, and with noise on inputs and parameters: zeros would hide much.

    Args:
        module: Stays as it is.
        removals: Groups and the nodes to take out.
        inputs: What it is called with.

    Raises:
        ConfigurationError: If a copy does not run, or not with the masked one's outputs, if a
            number is not finite, or if the module cannot be copied.
    """
    _refuse_not_finite(module, inputs)
    problem = _problem(module, removals, inputs)
    if problem is None:
        return
    wrong = [
        group.layers[0]
        for group, removed in removals
        if _problem(module, [(group, removed)], inputs) is not None
    ]
    raise ConfigurationError(
        f"nodes of {', '.join(wrong) or 'these layers together'} cannot be pruned: {problem}. "
        "Name them in keep"
    )


def _problem(module: nn.Module, removals: Removals, inputs: Sequence[Any]) -> str | None:
    compared = [removal for removal in removals if not _is_free(module, removal[0])]
    if len(compared) < len(removals):
        problem = _difference(module, removals, inputs, values=False)
        if problem is not None or not compared:
            return problem
    problem = _difference(module, compared, inputs)
    if problem is not None:
        return problem
    noisy, noisy_inputs = _with_noise(module, inputs)
    try:
        _outputs(noisy, noisy_inputs)
    except Exception:  # a network may refuse such inputs; what was given has been compared
        return None
    return _difference(noisy, compared, noisy_inputs)


def _is_free(module: nn.Module, group: NodeGroup) -> bool:
    owners = [module.get_submodule(layer_of(part.tensor)) for part in group.slices]
    return group.mixed and not all(isinstance(owner, KNOWN) for owner in owners)


def _difference(
    module: nn.Module, removals: Removals, inputs: Sequence[Any], values: bool = True
) -> str | None:
    """What is wrong with the smaller network, beside the masked one, if anything is."""
    smaller, masked = _copied(module), _copied(module)
    try:
        cut_tensors(smaller, cuts_of(module, removals))
        found = _outputs(smaller, inputs)
    except Exception as error:  # whatever a network does that no longer fits
        return f"without them the network does not run ({shortened(error)})"
    mask_nodes(masked, removals)
    _norms_without(masked, removals)
    expected = _outputs(masked, inputs)
    if [t.shape for t in found] != [t.shape for t in expected]:
        return "without them the network's outputs have another shape"
    if values and not all(map(_close, found, expected)):
        return "without them the network computes something else than with them masked"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal but for rounding; what is not finite must be equal."""
    if not b.is_floating_point():
        return True  # an arg max or a sample may tip over by rounding
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite):
        return False
    scale = float(b[finite].abs().max()) if bool(finite.any()) else 0.0
    relative = max(1e-3, 8 * torch.finfo(b.dtype).eps)
    near = torch.allclose(a[finite], b[finite], relative, scale * relative / 10)
    return near and torch.allclose(a[~finite], b[~finite], equal_nan=True)


def _norms_without(masked: nn.Module, removals: Removals) -> None:
    """Have the norms of a masked network take mean and variance of the nodes that stay."""
    gone: dict[nn.Module, set[int]] = {}
    for group, removed in removals:
        nodes = set(removed)
        for part in group.slices:
            owner = masked.get_submodule(layer_of(part.tensor))
            if isinstance(owner, nn.LayerNorm | nn.GroupNorm):
                lost = {i for i, node in enumerate(part.nodes) if node in nodes}
                gone.setdefault(owner, set()).update(lost)
    for norm, lost in gone.items():
        size = len(norm.weight)  # type: ignore[arg-type]
        norm.register_forward_hook(
            _normalised([i for i in range(size) if i not in lost]), prepend=True
        )


def _normalised(kept: Sequence[int]) -> Any:
    def hook(norm: Any, arguments: Any, output: Tensor) -> Tensor:
        index = torch.tensor(kept, device=output.device)
        dim = -1 if isinstance(norm, nn.LayerNorm) else 1
        part = arguments[0].index_select(dim, index)
        weight, bias = norm.weight[index], None if norm.bias is None else norm.bias[index]
        if dim == -1:
            part = F.layer_norm(part, (len(kept),), weight, bias, norm.eps)
        else:
            part = F.group_norm(part, 1, weight, bias, norm.eps)
        return torch.zeros_like(output).index_copy(dim, index, part.to(output.dtype))

    return hook


def _with_noise(module: nn.Module, inputs: Sequence[Any]) -> tuple[nn.Module, Sequence[Any]]:
    """Copies with noise: a tenth of their size on parameters, their own size on inputs."""
    noisy, inputs = _copied(module), copy.deepcopy(tuple(inputs))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensors, size in ((list(noisy.parameters()), 0.1), (tensors_in(inputs), 1.0)):
            for tensor in tensors:
                if tensor.is_floating_point():
                    finite = tensor[tensor.isfinite()].float()
                    spread = float(finite.square().mean().sqrt()) if finite.numel() else 0.0
                    noise = torch.randn(tensor.shape, generator=generator) * size * (spread or 1.0)
                    # By `data`, as what is expanded cannot be written into.
                    tensor.data = tensor.detach() + noise.to(tensor.device, tensor.dtype)
    return noisy, inputs


def _refuse_not_finite(module: nn.Module, inputs: Sequence[Any]) -> None:
    """Refuse NaN anywhere, infinite parameters, and an output with nothing that is finite."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise ConfigurationError(
                f"{name!r} is not finite: NaN and inf can neither be ranked nor compared. Load "
                "weights from before training diverged"
            )
    for number, output in enumerate(_outputs(_copied(module), inputs)):
        if not output.is_floating_point() or not output.numel():
            continue
        if bool(output.isnan().any()) or not bool(output.isfinite().any()):
            raise ConfigurationError(
                f"output {number} of {type(module).__name__} is not finite with these inputs, "
                "so that nothing can be compared: give inputs for which it is"
            )


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).eval()
    except Exception as error:  # torch.nn.utils.weight_norm, and whatever else holds a graph
        raise ConfigurationError(
            f"{type(module).__name__} cannot be copied, on which pruning is tried out "
            f"({shortened(error)}). If that is a torch.nn.utils.weight_norm, take it off with "
            "remove_weight_norm, or use torch.nn.utils.parametrizations'"
        ) from error


def _outputs(module: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        return tensors_in(module(*copy.deepcopy(tuple(inputs))))
