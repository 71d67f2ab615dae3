"""Adapters merged into the weights for a while: each layer is then one product instead of three."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rl_lightning.llm.backbone import Backbone


@contextmanager
def merged(backbone: Backbone) -> Iterator[None]:
    """While inside, a backbone with adapters computes by W + BA; without, nothing happens.

    The weights of before are put aside and back again, the very tensors: subtracting what was added
    would leave them rounded. Whoever shares them does not notice.
    """
    if backbone.tune != "lora":
        yield
        return
    from peft.tuners.lora import LoraLayer

    parts = backbone.model.modules()
    layers = [part for part in parts if isinstance(part, LoraLayer) and not part.merged]
    if not all(isinstance(_base_weight(layer), nn.Parameter) for layer in layers):
        yield  # packed: there is no weight that something could be added to
        return
    kept: list[tuple[LoraLayer, str, nn.Parameter]] = []
    try:
        with torch.no_grad():
            for layer in layers:
                base: Any = layer.get_base_layer()
                name, weight = _name(layer), _base_weight(layer)
                kept.append((layer, name, weight))
                setattr(base, name, nn.Parameter(weight.clone(), requires_grad=False))
                layer.merge()
        yield
    finally:
        for layer, name, weight in reversed(kept):
            setattr(layer.get_base_layer(), name, weight)
            layer.merged_adapters.clear()


def _name(layer: Any) -> str:
    return getattr(layer, "parameter_name", "weight")  # of experts, all in one tensor


def _base_weight(layer: Any) -> Any:
    """What an adapter adds to."""
    return getattr(layer.get_base_layer(), _name(layer))
