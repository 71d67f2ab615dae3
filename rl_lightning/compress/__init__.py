"""Operators on any module: prune, quantise, count; for the command line and for environments."""

from rl_lightning.compress.agreement import Agreement, agreement
from rl_lightning.compress.fake import fake_quantise, harden, refake
from rl_lightning.compress.quantisable import quantisable
from rl_lightning.compress.quantise import dequantise, quantise, requantise
from rl_lightning.compress.vocabulary import CutVocabulary, cut_vocabulary, remap

__all__ = [
    "Agreement",
    "CutVocabulary",
    "agreement",
    "cut_vocabulary",
    "dequantise",
    "fake_quantise",
    "harden",
    "quantisable",
    "quantise",
    "refake",
    "remap",
    "requantise",
]
