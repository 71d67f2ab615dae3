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
    kept: list[tuple[LoraLayer, str, nn.Parameter]] = []
    try:
        with torch.no_grad():
            for layer in layers:
                base: Any = layer.get_base_layer()
                name = getattr(layer, "parameter_name", "weight")  # of experts, all in one tensor
                weight = getattr(base, name)
                kept.append((layer, name, weight))
                setattr(base, name, nn.Parameter(weight.clone(), requires_grad=False))
                layer.merge()
        yield
    finally:
        for layer, name, weight in reversed(kept):
            setattr(layer.get_base_layer(), name, weight)
            layer.merged_adapters.clear()
