"""Encoders: observation → features, one file a modality."""

from rl_lightning.encoders.actions import TextActionEncoder
from rl_lightning.encoders.dict import DictEncoder
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.guided import GuidedEncoder
from rl_lightning.encoders.hashed_words import HashedWordsEncoder
from rl_lightning.encoders.image import ImpalaCNN, MinAtarCNN, NatureCNN
from rl_lightning.encoders.table import TableEncoder
from rl_lightning.encoders.text import LLMEncoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.encoders.words import BagOfWordsEncoder

__all__ = [
    "BagOfWordsEncoder",
    "DictEncoder",
    "Encoder",
    "GuidedEncoder",
    "HashedWordsEncoder",
    "ImpalaCNN",
    "LLMEncoder",
    "MLPEncoder",
    "MinAtarCNN",
    "NatureCNN",
    "TableEncoder",
    "TextActionEncoder",
]
