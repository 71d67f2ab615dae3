"""Which tensors a node of a layer reaches, as torch-pruning's dependency graph has it.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning". Tracing and index mappings are
torch-pruning's; what is refused, and everything that is done to the module, is ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.compress.cut import (
    CHANNEL_NORMS,
    CONVOLUTIONS,
    TRANSPOSED,
    depthwise,
    layer_of,
    stored_names,
    tensors_of,
)
from rl_lightning.core.errors import ConfigurationError, shortened

LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)  # what has nodes
# Operations by which a node is more than one number that others add up or scale.
MIXING = ("bmm", "mm", "scaleddotproduct", "softmax", "mkldnn", "cudnnrnn", "bilinear", "mv")


@dataclass(frozen=True)
class Slice:
    """Where a group's nodes lie along a dimension of a tensor.

    Attributes:
        tensor: Its name.
        dim: The dimension.
        nodes: Per index of that dimension the node it belongs to; −1 for none of the group.
    """

    tensor: str
    dim: int
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that can only go together, in all the layers that they reach.

    Attributes:
        layers: The linear and convolutional layers whose outputs they are.
        nodes: How many.
        slices: All tensors with numbers of theirs.
        units: Nodes that only go together, by number; mostly one each.
        refused: Why none of them may go, or None.
        mixed: Whether a norm over the nodes, or a free parameter, is among what they reach: then
            a smaller network is not the masked one.
    """

    layers: tuple[str, ...]
    nodes: int
    slices: tuple[Slice, ...]
    units: tuple[tuple[int, ...], ...]
    refused: str | None
    mixed: bool


def trace_groups(module: nn.Module, inputs: Sequence[Any], keep: Sequence[str]) -> list[NodeGroup]:
    """The groups of nodes of a module, found by calling it once.

    Args:
        module: In which layers are looked for; as before afterwards.
        inputs: What it is called with.
        keep: Names of layers whose nodes all stay.

    Raises:
        ConfigurationError: If torch-pruning is missing, the call fails, or what the module
            returns is nothing that can be traced.
    """
    pruning = _torch_pruning()
    with as_for_tracing(module):
        graph = pruning.DependencyGraph()
        try:
            graph.build_dependency(
                module,
                tuple(inputs),
                forward_fn=lambda network, args: network(*args),
                output_transform=lambda output: [o * 1 for o in traced_outputs(output)],
                verbose=False,
            )
        except ConfigurationError:
            raise
        except Exception as error:  # it is somebody's network, and a library's tracer
            raise ConfigurationError(
                f"{type(module).__name__} cannot be traced with these inputs: "
                f"{shortened(error)}. Prune a part of it that can be called, or its weights"
            ) from error
        return _groups(graph, module, keep)


def tensors_in(output: Any) -> list[Tensor]:
    """Tensors in tuples, lists and mappings, in order.

    Raises:
        ConfigurationError: If something else is among them.
    """
    if isinstance(output, Tensor):
        return [output]
    if output is None or isinstance(output, bool | int | float | str):
        return []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in tensors_in(part)]
    raise ConfigurationError(
        f"module returns a {type(output).__name__}, in which no tensors are found: prune a part "
        "of it that returns tensors"
    )


def traced_outputs(output: Any) -> list[Tensor]:
    """The tensors of an output that depend on parameters.

    Raises:
        ConfigurationError: If none does.
    """
    traced = [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]
    if not traced:
        raise ConfigurationError(
            "nothing that the module returns depends on its parameters by gradient, "
            "and so it cannot be traced"
        )
    return traced


@contextmanager
def as_for_tracing(module: nn.Module) -> Iterator[None]:
    """In evaluation mode and with gradients for all parameters, and then as it was."""
    training = {part: part.training for part in module.modules()}
    wanted = {p: p.requires_grad for p in module.parameters()}
    module.eval()
    try:
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            yield
    finally:
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)
        for part, mode in training.items():
            part.training = mode


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigurationError(
            "pruning nodes needs torch-pruning: pip install 'rl-lightning[compress]'"
        ) from error
    return torch_pruning


def _groups(graph: Any, module: nn.Module, keep: Sequence[str]) -> list[NodeGroup]:
    """One group after another, in the module's order, until every layer that ran is in one."""
    names = {part: name for name, part in module.named_modules()}
    order = list(names.values())
    groups, covered = [], set()
    for part in list(graph.module2node):
        if not isinstance(part, LAYERS) or part not in names or names[part] in covered:
            continue
        pruner = graph.get_pruner_of_module(part)
        width = pruner.get_out_channels(part)
        try:
            group = graph.get_pruning_group(part, pruner.prune_out_channels, list(range(width)))
            found = _group(graph, group, module, keep)
        except Exception as error:  # its index mappings know some operations and not others
            reached = _unknown_reached(graph.module2node[part], module)
            reason = f"torch-pruning cannot follow them ({reached or shortened(error, 100)})"
            found = NodeGroup((names[part],), width, (), (), reason, False)
        groups.append(found)
        covered |= set(found.layers)
    return sorted(groups, key=lambda group: min(map(order.index, group.layers)))


def _group(graph: Any, group: Any, module: nn.Module, keep: Sequence[str]) -> NodeGroup:
    names = {part: name for name, part in module.named_modules()}
    free = {id(tensor): name for name, (_, _, tensor) in tensors_of(module).items()}
    sizes = {name: tensor.shape for name, (_, _, tensor) in tensors_of(module).items()}
    root = group[0].dep.target.module
    nodes = len(group[0].idxs)
    layers, slices, refusals, mixed = [], [], [], False
    for item in group:
        node, inward = item.dep.target, item.dep.handler.__name__ == "prune_in_channels"
        part, indices, owners = node.module, item.idxs, item.root_idxs
        if isinstance(part, nn.Parameter):
            mixed = True
            name, dim = free[id(part)], node.pruning_dim % part.ndim
            if sum(size > 1 for size in part.shape) > 1:
                layer = name.rpartition(".")[0]
                kind = type(module.get_submodule(layer)).__name__
                refusals.append(f"its nodes reach {name!r} of a {kind}")
                continue
            slices.append(Slice(name, dim, _nodes(indices, owners, part.shape[dim])))
            continue
        if part not in names:
            refusals += _refused_operation(graph, node)
            continue
        places, reason = _places(part, inward)
        mixed = mixed or isinstance(part, nn.LayerNorm | nn.GroupNorm)
        if reason is not None:
            refusals.append(f"its nodes reach {names[part]!r}, {reason}")
            continue
        if not inward and isinstance(part, LAYERS):
            layers.append(names[part])
        for leaf, dim in places:
            for name in stored_names(part, names[part], leaf):
                slices.append(Slice(name, dim, _nodes(indices, owners, sizes[name][dim])))
    kept = [name for name in layers if name in keep]
    if kept:
        refusals.insert(0, f"keep names {kept[0]!r}")
    refused = refusals[0] if refusals else None
    units = tuple((i,) for i in range(nodes))
    if refused is None and _coupled(graph, root, group[0].dep.handler, nodes):
        units = _units(graph, root, group[0].dep.handler, nodes)
    layers.sort(key=list(names.values()).index)
    return NodeGroup(tuple(layers), nodes, tuple(slices), units, refused, mixed)


def _refused_operation(graph: Any, node: Any) -> list[str]:
    """Why nodes that pass through an operation cannot go, if so."""
    if node.type == graph.ops.OPTYPE.OUTPUT:
        return ["its nodes are the network's outputs"]
    if node.type == graph.ops.OPTYPE.SLICE:
        return ["its nodes are sliced on their way"]
    operation = str(node.module).partition("(")[2].lower()
    if any(word in operation for word in MIXING):
        return [f"its nodes enter a product or an attention ({operation.rstrip(')')})"]
    return []


def _unknown_reached(start: Any, module: nn.Module) -> str | None:
    """The first layer of a kind without a rule, such as a GRU, that a layer's outputs reach."""
    names = {part: name for name, part in module.named_modules()}
    free = {id(tensor): name for name, (_, _, tensor) in tensors_of(module).items()}
    waiting, seen = list(start.outputs), set()
    while waiting:
        node = waiting.pop(0)
        if node in seen or node.module in names:
            continue
        seen.add(node)
        for other in node.inputs:
            if isinstance(other.module, nn.Parameter):
                layer = layer_of(free[id(other.module)])
                return f"they reach {layer!r}, a {type(module.get_submodule(layer)).__name__}"
        waiting += node.outputs
    return None


def _places(part: nn.Module, inward: bool) -> tuple[list[tuple[str, int]], str | None]:
    """Tensors and dimensions of a layer's nodes, or why it cannot be cut."""
    if isinstance(part, nn.Linear):
        return ([("weight", 1)] if inward else [("weight", 0), ("bias", 0)]), None
    if isinstance(part, CONVOLUTIONS + TRANSPOSED):
        if depthwise(part):
            return [("weight", 0), ("bias", 0)], None
        if part.groups > 1:
            return [], f"a convolution in {part.groups} groups"
        outward = 1 if isinstance(part, TRANSPOSED) else 0
        if inward:
            return [("weight", 1 - outward)], None
        return [("weight", outward), ("bias", 0)], None
    if isinstance(part, CHANNEL_NORMS):
        return [(n, 0) for n in ("weight", "bias", "running_mean", "running_var")], None
    if isinstance(part, nn.LayerNorm):
        if not part.elementwise_affine or len(part.normalized_shape) > 1:
            return [], "a LayerNorm without weights or over several dimensions"
        return [("weight", 0), ("bias", 0)], None
    if isinstance(part, nn.GroupNorm):
        if part.num_groups > 1 or not part.affine:
            return [], "a GroupNorm in groups or without weights"
        return [("weight", 0), ("bias", 0)], None
    if isinstance(part, nn.PReLU):
        return ([("weight", 0)] if part.num_parameters > 1 else []), None
    if isinstance(part, nn.Embedding):
        return [("weight", 1)], None
    return [], f"a {type(part).__name__}"


def _nodes(indices: Sequence[int], owners: Sequence[int], size: int) -> tuple[int, ...]:
    nodes = [-1] * size
    for index, owner in zip(indices, owners, strict=True):
        nodes[index] = owner
    return tuple(nodes)


def _closure(graph: Any, root: nn.Module, cut: Callable, nodes: Sequence[int]) -> set[int]:
    """The nodes that go when some go."""
    return set(graph.get_pruning_group(root, cut, list(nodes))[0].idxs)


def _coupled(graph: Any, root: nn.Module, cut: Callable, nodes: int) -> bool:
    """Whether some nodes only go together, as the two halves of a gated unit do.

    Two numbers differ in a bit: halves by each bit find whatever is coupled.
    """
    for bit in range(max(nodes - 1, 0).bit_length()):
        for value in (0, 1):
            half = [i for i in range(nodes) if i >> bit & 1 == value]
            if half and _closure(graph, root, cut, half) != set(half):
                return True
    return False


def _units(graph: Any, root: nn.Module, cut: Callable, nodes: int) -> tuple[tuple[int, ...], ...]:
    unit = list(range(nodes))  # the smallest of those each goes with
    for node in range(nodes):
        together = {unit[i] for i in _closure(graph, root, cut, [node])} | {unit[node]}
        unit = [min(together) if u in together else u for u in unit]
    return tuple(tuple(i for i in range(nodes) if unit[i] == first) for first in sorted(set(unit)))
