"""Operators on any module: prune, quantise, count; for the command line and for environments."""

from rl_lightning.compress.count import LayerCost, ModelCost, count
from rl_lightning.compress.dependencies import NodeGroup
from rl_lightning.compress.nodes import node_groups, prune_nodes
from rl_lightning.compress.records import restructure
from rl_lightning.compress.transformers import attention_heads, prune_heads, prune_layers
from rl_lightning.compress.weights import bake, prune_weights

__all__ = [
    "LayerCost",
    "ModelCost",
    "NodeGroup",
    "attention_heads",
    "bake",
    "count",
    "node_groups",
    "prune_heads",
    "prune_layers",
    "prune_nodes",
    "prune_weights",
    "restructure",
]
