"""Least squares after pruning: the next layer's weights make up for the channels that went."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.compress import NodeGroup
from rl_lightning.compress.cut import layer_of

RIDGE = 1e-3
"""Pull towards the weights as they were, relative to the mean square of the inputs."""


@torch.no_grad()
def reconstruct(
    original: nn.Module,
    masked: nn.Module,
    groups: Sequence[NodeGroup],
    removed: Sequence[Collection[int]],
    x: Tensor,
) -> list[str]:
    """Fit the weights that read pruned nodes so that outputs come near the original ones, in place.

    Layer by layer, in the order of the call: with inputs A of what is left and the original
    network's outputs Y on the same x, W minimises ‖A W + b − Y‖² + λ ‖W − W₀‖² (He, Zhang & Sun
    2017, "Channel pruning for accelerating very deep neural networks", equation 1, solved for the
    weights, as AMC does between pruning and judging). The second term keeps what the data leave
    open as it was, λ = `RIDGE` times the mean square of the inputs times their number.

    Only `nn.Linear` and ungrouped `nn.Conv2d` with zero padding that are called once are fitted;
    the others stay as the mask left them.

    Args:
        original: The whole network.
        masked: The same with the removed nodes at zero, changed.
        groups: Of nodes.
        removed: Of each group, the nodes that went.
        x: Calibration inputs, `[N, ...]`.

    Returns:
        Names of the layers that were fitted.
    """
    lost = _lost(groups, removed)
    outputs = _record(original, x, [name for name, (_, inputs) in lost.items() if inputs])
    fitted: list[str] = []

    def fit(name: str) -> Any:
        """Just before a layer is called, with what the layers before it, fitted, give it."""

        def hook(layer: Any, given: Any) -> None:
            _solve(layer, given[0], outputs[name][0], *lost[name])
            fitted.append(name)

        return hook

    hooks = []
    for name, (_, calls) in outputs.items():
        layer = masked.get_submodule(name)
        if calls == 1 and _fits(layer):
            hooks.append(layer.register_forward_pre_hook(fit(name)))
    try:
        masked(x)
    finally:
        for hook in hooks:
            hook.remove()
    return fitted


def _solve(layer: Any, given: Tensor, output: Tensor, rows_lost: set[int], lost: set[int]) -> None:
    """Fit what is left of one layer's weight to the original output."""
    columns = [i for i in range(layer.weight.shape[1]) if i not in lost]
    rows = [i for i in range(layer.weight.shape[0]) if i not in rows_lost]
    a, old = _columns(layer, given, columns), layer.weight.flatten(1).double()
    y = output[:, rows].movedim(1, -1) if isinstance(layer, nn.Conv2d) else output[..., rows]
    b = 0.0 if layer.bias is None else layer.bias[rows].double()
    spatial = layer.weight[0, 0].numel()
    kept = torch.tensor(columns)[:, None].mul(spatial).add(torch.arange(spatial)).flatten()
    chosen = torch.tensor(rows)[:, None], kept[None]
    start = old[chosen].T
    target = y.flatten(0, -2).double() - b - a @ start
    gram = a.T @ a
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    new = old.clone()
    new[chosen] = (start + torch.linalg.solve(gram, a.T @ target)).T
    layer.weight.copy_(new.view(layer.weight.shape))


def _lost(
    groups: Sequence[NodeGroup], removed: Sequence[Collection[int]]
) -> dict[str, tuple[set[int], set[int]]]:
    """Removed rows and columns of each layer's weight."""
    found: dict[str, tuple[set[int], set[int]]] = {}
    for group, nodes in zip(groups, removed, strict=True):
        gone = set(nodes)
        for part in group.slices:
            name = layer_of(part.tensor)
            if part.dim < 2 and part.tensor == f"{name}.weight".removeprefix("."):
                lost = found.setdefault(name, (set(), set()))[part.dim]
                lost |= {i for i, node in enumerate(part.nodes) if node in gone}
    return found


def _record(network: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, int]]:
    """Output and number of calls of some layers, in the order of the call."""
    found: dict[str, tuple[Tensor, int]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, given: Any, output: Tensor) -> None:
            found[name] = (output, 1 + (found[name][1] if name in found else 0))

        return hook

    hooks = [network.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _fits(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and layer.padding != "same"
    return type(layer) is nn.Linear


def _columns(layer: Any, given: Tensor, left: list[int]) -> Tensor:
    """What a layer multiplies its weight by, for some inputs or channels, `[M, N]` in float64."""
    if not isinstance(layer, nn.Conv2d):
        return given[..., left].double().flatten(0, -2)
    padding: Any = 0 if layer.padding == "valid" else layer.padding
    given = given[:, left].double()
    patches = F.unfold(given, layer.kernel_size, layer.dilation, padding, layer.stride)  # type: ignore
    return patches.transpose(1, 2).flatten(0, -2)  # (B · L, C · k · k)
