"""Which tensors a node of a layer reaches, as torch-pruning's dependency graph has it.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning". Tracing and index mappings are
torch-pruning's; what is refused, and everything that is done to the module, is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rl_lightning.compress.calls import as_for_tracing, traced_outputs
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
            if not inputs:
                raise ConfigurationError(
                    "what depends on what is found by a call: give its inputs, "
                    "prune_nodes(module, share, x); of an agent "
                    "agent.compress(lambda policy: prune_nodes(policy, share, x)) with x = "
                    "agent.preprocess(observations)"
                ) from error
            raise ConfigurationError(
                f"{type(module).__name__} cannot be traced with these inputs: "
                f"{shortened(error)}. Prune a part of it that can be called, or its weights"
            ) from error
        return _groups(graph, module, keep)


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
        reached, reasons = _reach(graph, graph.module2node[part], module)
        kept = [name for name in reached if name in keep]
        if kept:
            reasons.insert(0, f"keep names {kept[0]!r}")
        pruner = graph.get_pruner_of_module(part)
        width = pruner.get_out_channels(part)
        found = NodeGroup(tuple(reached), width, (), (), reasons[0] if reasons else None, False)
        if not reasons:
            try:
                every = list(range(width))
                group = graph.get_pruning_group(part, pruner.prune_out_channels, every)
                found = _group(graph, group, module)
            except Exception as error:  # its index mappings know some operations and not others
                reason = f"torch-pruning cannot follow them ({shortened(error, 100)})"
                found = replace(found, refused=reason)
        groups.append(found)
        covered |= set(found.layers)
    return sorted(groups, key=lambda group: min(map(order.index, group.layers)))


def _reach(graph: Any, root: Any, module: nn.Module) -> tuple[list[str], list[str]]:
    """What a layer's nodes reach, whatever their indices: layers that lose nodes with it, in the
    module's order, and reasons why they cannot.

    Asked before torch-pruning is, which does not come to an end in grouped attention.
    """
    names = {part: name for name, part in module.named_modules()}
    free = {id(tensor): name for name, (_, _, tensor) in tensors_of(module).items()}
    layers, reasons = [], []
    waiting, seen = [(root, False)], set()
    while waiting:
        node, inward = waiting.pop(0)
        part = node.module
        ends = isinstance(part, (*LAYERS, nn.Embedding)) and not depthwise(part)
        if (node, inward and ends) in seen:
            continue
        seen.add((node, inward and ends))
        if isinstance(part, nn.Parameter):
            name = free[id(part)]
            if sum(size > 1 for size in part.shape) > 1:
                kind = type(module.get_submodule(layer_of(name))).__name__
                reasons.append(f"its nodes reach {name!r} of a {kind}")
        elif part in names:
            reason = _places(part, inward)[1]
            if reason is not None:
                reasons.append(f"its nodes reach {names[part]!r}, {reason}")
            if isinstance(part, LAYERS) and not (inward and ends):
                layers.append(names[part])
        else:
            reasons += _refused_operation(graph, node)
        if inward and ends:
            continue
        waiting += [(other, True) for other in node.outputs]
        joins = node.type == graph.ops.OPTYPE.CONCAT and inward
        if not ends and not joins:
            waiting += [(other, False) for other in node.inputs]
    reasons.sort(key=lambda reason: "product" in reason)  # a layer's name says more
    return sorted(layers, key=list(names.values()).index), reasons


def _group(graph: Any, group: Any, module: nn.Module) -> NodeGroup:
    names = {part: name for name, part in module.named_modules()}
    free = {id(tensor): name for name, (_, _, tensor) in tensors_of(module).items()}
    sizes = {name: tensor.shape for name, (_, _, tensor) in tensors_of(module).items()}
    root, cut, nodes = group[0].dep.target.module, group[0].dep.handler, len(group[0].idxs)
    layers, slices, mixed = [], [], False
    for item in group:
        node, inward = item.dep.target, item.dep.handler.__name__ == "prune_in_channels"
        part = node.module
        mixed = mixed or isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.Parameter)
        if isinstance(part, nn.Parameter):
            dim, found = node.pruning_dim % part.ndim, [free[id(part)]]
            slices += [Slice(n, dim, _nodes(item, sizes[n][dim])) for n in found]
        elif part in names:
            if isinstance(part, LAYERS) and not inward:
                layers.append(names[part])
            for leaf, dim in _places(part, inward)[0]:
                found = stored_names(part, names[part], leaf)
                slices += [Slice(n, dim, _nodes(item, sizes[n][dim])) for n in found]
    units = tuple((i,) for i in range(nodes))
    if _coupled(graph, root, cut, nodes):
        units = _units(graph, root, cut, nodes)
    layers.sort(key=list(names.values()).index)
    return NodeGroup(tuple(layers), nodes, tuple(slices), units, None, mixed)


def _refused_operation(graph: Any, node: Any) -> list[str]:
    """Why nodes that pass through an operation cannot go, if so."""
    if node.type == graph.ops.OPTYPE.OUTPUT:
        return ["its nodes are the network's outputs"]
    if node.type == graph.ops.OPTYPE.SLICE:
        return ["its nodes are sliced on their way"]
    operation = _operation(node)
    if any(word in operation for word in MIXING) and not _own_product(node):
        return [f"its nodes enter a product or an attention ({operation})"]
    return []


def _operation(node: Any) -> str:
    """What autograd calls an operation, in small letters."""
    return str(node.module).partition("(")[2].rstrip(")").lower()


def _own_product(node: Any) -> bool:
    """Whether a product is what a linear layer consists of: views alone lead to its end."""
    if "mm" not in _operation(node) or "bmm" in _operation(node):
        return False
    waiting = list(node.outputs)
    while waiting:
        following = waiting.pop()
        if isinstance(following.module, nn.Linear):
            return "mm" not in following.grad_fn.name().lower()
        if "view" in str(following.grad_fn).lower():
            waiting += following.outputs
    return False


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


def _nodes(item: Any, size: int) -> tuple[int, ...]:
    """Per index of a dimension the node it belongs to, or −1."""
    nodes = [-1] * size
    for index, owner in zip(item.idxs, item.root_idxs, strict=True):
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
