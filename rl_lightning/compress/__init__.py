"""Operators on any module: prune, quantise, count; for the command line and for environments."""

from rl_lightning.compress.agreement import Agreement, agreement
from rl_lightning.compress.count import LayerCost, ModelCost, count
from rl_lightning.compress.dependencies import NodeGroup
from rl_lightning.compress.fake import fake_quantise, harden, refake
from rl_lightning.compress.nodes import node_groups, prune_nodes
from rl_lightning.compress.quantisable import quantisable
from rl_lightning.compress.quantise import dequantise, quantise, requantise
from rl_lightning.compress.records import restructure
from rl_lightning.compress.transformers import (
    attention_heads,
    layer_lists,
    prune_heads,
    prune_layers,
)
from rl_lightning.compress.vocabulary import CutVocabulary, cut_vocabulary, remap
from rl_lightning.compress.weights import bake, prune_weights

__all__ = [
    "Agreement",
    "CutVocabulary",
    "LayerCost",
    "ModelCost",
    "NodeGroup",
    "agreement",
    "attention_heads",
    "bake",
    "count",
    "cut_vocabulary",
    "dequantise",
    "fake_quantise",
    "harden",
    "layer_lists",
    "node_groups",
    "prune_heads",
    "prune_layers",
    "prune_nodes",
    "prune_weights",
    "quantisable",
    "quantise",
    "refake",
    "remap",
    "requantise",
    "restructure",
]
