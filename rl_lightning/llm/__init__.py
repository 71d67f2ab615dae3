"""What every language-model role shares: loading, tuning, tokenising, pooling and caching.

The only package that imports transformers or peft, and only inside functions, so that importing it
is quick.
"""

from rl_lightning.llm.backbone import Backbone, frozen_models
from rl_lightning.llm.cache import TextCache
from rl_lightning.llm.embed import embed
from rl_lightning.llm.find import find_model
from rl_lightning.llm.load import Dtype, load_backbone
from rl_lightning.llm.pool import Pooling, pool
from rl_lightning.llm.tokens import Tokens, TruncationSide
from rl_lightning.llm.tune import Tune, tune_backbone

__all__ = [
    "Backbone",
    "Dtype",
    "Pooling",
    "TextCache",
    "Tokens",
    "TruncationSide",
    "Tune",
    "embed",
    "find_model",
    "frozen_models",
    "load_backbone",
    "pool",
    "tune_backbone",
]
