"""Whole nodes and channels taken out, so that tensors shrink.

What goes with a node is found by `dependencies`; what goes is chosen here, tried on a copy
(`trial`) and then done by `cut`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.compress.cut import cut_tensors, tensors_of
from rl_lightning.compress.dependencies import NodeGroup, trace_groups
from rl_lightning.compress.packed import PackedLayer
from rl_lightning.compress.trial import Cuts, cuts_of, try_out
from rl_lightning.compress.trial import mask_nodes as mask_nodes
from rl_lightning.compress.weights import check_share
from rl_lightning.core.errors import (
    ConfigurationError,
    check_one_of,
    nearest,
    shortened,
    whole,
)

Importance = Literal["l2", "l1", "taylor"]


def prune_nodes(
    module: nn.Module,
    share: float | Mapping[str, float],
    *inputs: Any,
    importance: Importance = "l2",
    layers: Iterable[str] | None = None,
    round_to: int = 1,
    keep: Iterable[str] = (),
    optimizers: Sequence[Optimizer] = (),
) -> dict[str, Any]:
    """Take the least important nodes out of linear and convolutional layers, in place.

    What depends on a node goes with it: its bias, its channel of norms, its inputs in the layers
    after it, and in a residual sum the same node of the other branch. The network's outputs stay,
    and at least one node of every layer. The smaller network computes what the masked one does,
    but that the mean and variance of a LayerNorm or GroupNorm are of the nodes that stayed. This
    is tried before the module is touched, with the inputs, and with noise on inputs and
    parameters; nodes that reach a free parameter of a module of your own, which may be a norm
    over them, are only seen to run.

    A node's importance is taken over its rows and columns w in all layers of its group (Fang et
    al. 2023, eq. 4): √Σ w² (`l2`), Σ |w| (`l1`; Li et al. 2017), or (Σ w ∂L/∂w)² (`taylor`;
    Molchanov et al. 2019, eq. 8), for which gradients must be there from a `backward`.

    Args:
        module: Changed. Only what `module(*inputs)` runs is seen: where other methods read a
            layer, name it in `keep`.
        share: Of nodes to remove, in [0, 1); or one per layer's name. Layers that can only go
            together (a residual sum) must have the same.
        *inputs: What it is called with to trace it; a batch of any size.
        importance: What the nodes that go have least of.
        layers: Names of the layers to prune; None for all that can be. Not with a mapping.
        round_to: Nodes that stay are rounded up to a multiple of this, as fast kernels like them.
        keep: Names of layers whose nodes all stay.
        optimizers: Those with parameters of the module; they go on with the smaller parameters
            and with their state cut alike.

    Returns:
        The record, for `restructure`: which indices of which tensors were kept, the number of
        nodes left of each layer, and why others were left alone.

    Raises:
        ConfigurationError: If an argument is not what it should be, the module cannot be traced,
            a parameter or an output is not finite, or a layer that was asked for cannot be pruned
            (with its name and the reason).
    """
    check_one_of("importance", importance, ("l2", "l1", "taylor"))
    round_to = whole("round_to", round_to, 1)
    keep = _known(module, "keep", keep)
    if isinstance(share, Mapping):
        if layers is not None:
            raise ConfigurationError("share names the layers: leave layers out")
        wanted = dict(share)
        for name, value in wanted.items():
            check_share(f"share[{name!r}]", value)
        _known(module, "share", wanted)
    else:
        check_share("share", share)
        wanted = None if layers is None else dict.fromkeys(_known(module, "layers", layers), share)
    groups = trace_groups(module, inputs, keep)
    chosen = _chosen(module, groups, wanted, share)
    removals = [
        (group, least_important(group, node_scores(module, group, importance), part, round_to))
        for group, part in chosen
    ]
    removals = [(group, removed) for group, removed in removals if removed]
    try_out(module, removals, inputs)
    cuts = cuts_of(module, removals)
    shapes = {n: list(t.shape) for n, (_, _, t) in tensors_of(module).items()}
    cut_tensors(module, cuts, optimizers)
    refused = {n: g.refused for g in groups if g.refused is not None for n in g.layers}
    left = {n: _left(module, n) for g, _ in removals for n in g.layers}
    return {
        "operator": "prune_nodes",
        "tensors": {n: {"shape": shapes[n], "keep": keep} for n, keep in cuts.items()},
        "nodes_left": left,
        "refused": refused,
    }


def node_groups(module: nn.Module, *inputs: Any, keep: Iterable[str] = ()) -> list[NodeGroup]:
    """What `prune_nodes` can choose among: layers that go together, and why others cannot go.

    Raises:
        ConfigurationError: If the module cannot be traced.
    """
    return trace_groups(module, inputs, _known(module, "keep", keep))


def apply_nodes_record(
    module: nn.Module, record: Mapping[str, Any], optimizers: Sequence[Optimizer] = ()
) -> None:
    """Cut a module of the original shape as `prune_nodes` did.

    Raises:
        ConfigurationError: If the record does not fit the module.
    """
    stated = record.get("tensors")
    if not isinstance(stated, dict):
        raise ConfigurationError("the record of prune_nodes must map tensors to kept indices")
    tensors = tensors_of(module)
    cuts: Cuts = {}
    for name, cut in stated.items():
        shape = list(tensors[name][2].shape) if name in tensors else None
        keep = cut.get("keep") if isinstance(cut, dict) else None
        if shape is None or not isinstance(keep, list) or cut.get("shape") != shape:
            raise ConfigurationError(
                f"the record cuts {shortened(name)!r} ({shortened(cut)}), and the module has "
                f"{f'one of shape {shape}' if shape else 'none'}: the record does not fit"
            )
        cuts[name] = keep
    cut_tensors(module, cuts, optimizers)


def _known(module: nn.Module, argument: str, names: Iterable[str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    there = dict(module.named_modules())
    for name in names:
        if name not in there:
            raise ConfigurationError(
                f"{argument}: the module has no layer {shortened(name)!r}; "
                f"near it are {', '.join(nearest(str(name), there)[:3])}"
            )
    return names


def _chosen(
    module: nn.Module,
    groups: Sequence[NodeGroup],
    wanted: Mapping[str, float] | None,
    share: Any,
) -> list[tuple[NodeGroup, float]]:
    """The groups to prune, each with its share."""
    if wanted is None:
        free = [(group, share) for group in groups if group.refused is None]
        if not free:
            reasons = "; ".join(f"{g.layers[0]}: {g.refused}" for g in groups if g.layers)
            if any(isinstance(part, PackedLayer) for part in module.modules()):
                reasons = "their weights are stored in few bits: prune first, then quantise"
            raise ConfigurationError(
                "no layer can be pruned by nodes "
                f"({reasons or 'the call runs no linear or convolutional layer'})"
            )
        return free
    for name in wanted:
        mine = [group for group in groups if name in group.layers]
        refused = [group.refused for group in mine if group.refused is not None]
        if refused:
            raise ConfigurationError(f"nodes of {name!r} cannot be pruned: {refused[0]}")
        if not mine:
            layer = module.get_submodule(name)
            if isinstance(layer, PackedLayer):
                raise ConfigurationError(
                    f"nodes of {name!r} cannot be pruned: its weights are stored in few bits: "
                    "prune first, then quantise"
                )
            kind = type(layer).__name__
            raise ConfigurationError(
                f"nodes of {name!r} ({kind}) cannot be pruned: only linear and convolutional "
                "layers that the call runs have nodes to take out"
            )
    chosen = []
    for group in groups:
        shares = {name: wanted[name] for name in group.layers if name in wanted}
        if len(set(shares.values())) > 1:
            raise ConfigurationError(
                f"{', '.join(shares)} only lose nodes together, and need the same share, "
                f"not {', '.join(f'{s:g}' for s in shares.values())}"
            )
        if shares:
            chosen.append((group, next(iter(shares.values()))))
    return chosen


def node_scores(module: nn.Module, group: NodeGroup, importance: str) -> Tensor:
    """Importance per node, `[N]`, see `prune_nodes`."""
    tensors, total = tensors_of(module), torch.zeros(group.nodes + 1)
    for part in group.slices:
        tensor = tensors[part.tensor][2]
        if not tensor.is_floating_point() or part.tensor.endswith(
            ("bias", "running_mean", "running_var")
        ):
            continue
        values = tensor.detach().float()
        if importance == "taylor":
            if tensor.grad is None:
                raise ConfigurationError(
                    f"importance='taylor' needs gradients, and {part.tensor!r} has none: call "
                    "backward on a loss before, or use 'l2'"
                )
            values = values * tensor.grad.float()
        else:
            values = values.square() if importance == "l2" else values.abs()
        sums = values.transpose(0, part.dim).flatten(1).sum(1) if tensor.ndim > 1 else values
        total.index_add_(0, torch.tensor(part.nodes) % (group.nodes + 1), sums.cpu())
    scores = total[: group.nodes]  # the last holds what is no node's
    return {"l2": scores.clamp(min=0).sqrt(), "l1": scores, "taylor": scores.square()}[importance]


def least_important(group: NodeGroup, scores: Tensor, share: float, round_to: int) -> list[int]:
    """The nodes that `prune_nodes` removes: the least important units, as the share allows."""
    stay = group.nodes - int(share * group.nodes + 1e-9)
    stay = min(max(-(-stay // round_to) * round_to, 1), group.nodes)
    values = scores.tolist()
    ranked = sorted(group.units, key=lambda unit: sum(values[i] for i in unit))
    removed: list[int] = []
    for unit in ranked:
        if len(removed) + len(unit) <= group.nodes - stay:
            removed += unit
    return sorted(removed)


def cut_nodes(module: nn.Module, removals: Sequence[tuple[NodeGroup, list[int]]]) -> None:
    """Take nodes out that somebody else has chosen, in place, untried; see `prune_nodes`."""
    cut_tensors(module, cuts_of(module, removals), ())


def _left(module: nn.Module, name: str) -> int:
    layer = module.get_submodule(name)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore
