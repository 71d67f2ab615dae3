"""Layers in numbers, and what a network costs without some of its nodes."""

import math
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.compress import NodeGroup, count
from rl_lightning.compress.count import stored_bytes
from rl_lightning.compress.cut import CONVOLUTIONS, TRANSPOSED, depthwise, layer_of, tensors_of
from rl_lightning.envs.optimise.data import Splits
from rl_lightning.envs.optimise.targets import trained_target
from rl_lightning.envs.optimise.training import Recipe, accuracy_of, by_itself

LAYER_FEATURES = (
    "convolution",
    "depthwise",
    "log_inputs",
    "log_outputs",
    "stride",
    "kernel",
    "log_pixels",
    "log_weights",
    "log_macs",
)


class LayerDescription(NamedTuple):
    """What can be said of a layer without its weights.

    Attributes:
        convolution: Whether it is one.
        depthwise: Whether it is one with a filter for each channel.
        inputs: Channels or units that it reads.
        outputs: Channels or units that it returns.
        stride: Of a convolution along its first dimension; otherwise 1.
        kernel: Likewise.
        pixels: Places that it is computed at for one input.
        weights: Numbers of its weight.
        macs: Multiply-accumulates for one input.
    """

    convolution: bool
    depthwise: bool
    inputs: int
    outputs: int
    stride: int
    kernel: int
    pixels: int
    weights: int
    macs: int

    def features(self) -> list[float]:
        """The `LAYER_FEATURES`: counts as decimal logarithms, so that they are of one size."""
        numbers = (self.inputs, self.outputs, self.pixels, self.weights, self.macs)
        inputs, outputs, *counts = (math.log10(max(n, 1)) for n in numbers)
        return [
            float(self.convolution),
            float(self.depthwise),
            inputs,
            outputs,
            float(self.stride),
            float(self.kernel),
            *counts,
        ]


def describe_layers(network: nn.Module, x: Tensor) -> dict[str, LayerDescription]:
    """Descriptions of all layers that have a weight matrix or filters, by name.

    Args:
        network: Unchanged.
        x: One input, `[1, ...]`.
    """
    found = {}
    for cost in count(network, x).layers:
        layer = network.get_submodule(cost.name)
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.dim() < 2 or cost.output_shape is None:
            continue
        outputs, inputs, stride, kernel = weight.shape[0], weight.shape[1], 1, 1
        pixels = math.prod(cost.output_shape[1:-1])
        if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
            outputs, inputs = layer.out_channels, layer.in_channels
            stride, kernel = layer.stride[0], layer.kernel_size[0]
            pixels = math.prod(cost.output_shape[2:])
        found[cost.name] = LayerDescription(
            isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)),
            depthwise(layer),
            inputs,
            outputs,
            stride,
            kernel,
            pixels,
            weight.numel(),
            cost.macs,
        )
    return found


def together(layers: Sequence[LayerDescription]) -> LayerDescription:
    """Layers whose nodes only go together as one: kinds and sizes of the first, sums of counts."""
    weights, macs = sum(layer.weights for layer in layers), sum(layer.macs for layer in layers)
    return LayerDescription(*layers[0][:7], weights, macs)


class NodeCosts:
    """What a network costs without some nodes of some groups, without making the smaller network.

    A layer's multiply-accumulates, like a tensor's bytes, are proportional to the kept share of
    each dimension of its weight: the result is what `count` says of the pruned network.

    Args:
        network: Unchanged.
        groups: Those that nodes can go from.
        x: One input, `[1, ...]`.
        resource: `flops` (counted as multiply-accumulates) or `bytes` (of parameters and buffers).

    Attributes:
        total: The cost of the whole network.
        of_layers: Of each group, the cost of the layers whose nodes it holds, in the whole network.
    """

    def __init__(
        self, network: nn.Module, groups: Sequence[NodeGroup], x: Tensor, resource: str
    ) -> None:
        costs = count(network, x)
        tensors = tensors_of(network)
        macs = {cost.name: cost.macs for cost in costs.layers}
        self._sizes = [group.nodes for group in groups]
        self._fixed = 0.0
        # Of what shrinks: cost of one index of every dimension, and per dimension its size and the
        # groups' nodes along it.
        self._parts: list[tuple[float, list[tuple[int, list[tuple[int, np.ndarray]]]]]] = []
        along: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}
        for number, group in enumerate(groups):
            for part in group.slices:
                nodes = np.array(part.nodes)
                along.setdefault((part.tensor, part.dim), []).append((number, nodes))
        seen: set[int] = set()
        for name, (_, _, tensor) in tensors.items():
            if resource == "bytes":
                cost = 0 if id(tensor) in seen else stored_bytes(tensor)
            else:
                weight = name == f"{layer_of(name)}.weight".removeprefix(".")
                cost = macs.pop(layer_of(name), 0) if weight and tensor.ndim > 1 else 0
            seen.add(id(tensor))
            dims = [
                (tensor.shape[dim], along[name, dim])
                for dim in range(tensor.ndim)
                if (name, dim) in along
            ]
            if cost and dims:
                self._parts.append((cost / math.prod(size for size, _ in dims), dims))
            else:
                self._fixed += cost
        if resource == "flops":  # products without a weight of their own, as in attention
            self._fixed += sum(macs.values())
        self.total = self.of([()] * len(groups))
        rows = {cost.name: cost for cost in costs.layers}
        self.of_layers = [
            sum(rows[n].bytes if resource == "bytes" else rows[n].macs for n in group.layers)
            for group in groups
        ]

    def of(self, removed: Sequence[Collection[int]]) -> int:
        """The cost without these nodes, given for each group."""
        gone = []
        for size, nodes in zip(self._sizes, removed, strict=True):
            mask = np.zeros(size + 1, bool)  # the last is what no node belongs to
            mask[list(nodes)] = True
            gone.append(mask)
        cost = self._fixed
        for unit, dims in self._parts:
            for size, slices in dims:
                lost = gone[slices[0][0]][slices[0][1]]
                for number, nodes in slices[1:]:
                    lost = lost | gone[number][nodes]
                unit *= size - int(lost.sum())
            cost += unit
        return round(cost)


class Target(NamedTuple):
    """What a trained network is known by, see `trained_target`."""

    model: str
    data: str
    width: int
    depth: int
    split: int
    epochs: int


@lru_cache(maxsize=128)
def shared_target(target: Target) -> tuple[nn.Module, Splits]:
    """`trained_target`, once in a process: nothing may change the network."""
    model, data, width, depth, split, epochs = target
    return trained_target(model, data, width, depth, split, recipe=Recipe(epochs=epochs))


@lru_cache(maxsize=128)
def original_accuracy(target: Target) -> float:
    """Accuracy of `shared_target` on the validation part, once in a process."""
    network, splits = shared_target(target)
    with by_itself(), torch.no_grad():
        return accuracy_of(network(splits.x_val), splits.y_val)
