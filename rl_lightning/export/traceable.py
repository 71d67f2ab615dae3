"""The same encoders and statistics, without what a graph of tensors cannot hold.

Reading texts, remembering them and gathering statistics stay outside: what is left is arithmetic.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.encoders import BagOfWordsEncoder, Encoder, LLMEncoder, TableEncoder
from rl_lightning.export.inputs import as_array
from rl_lightning.llm import Pooling, pool
from rl_lightning.nn.compiled import WRAPPED
from rl_lightning.nn.insides import children
from rl_lightning.nn.norm import RunningNorm


class FixedNorm(RunningNorm):
    """A `RunningNorm` whose statistics are numbers of the graph, clamp included."""

    mean: Tensor
    scale: Tensor

    def __init__(self, norm: RunningNorm) -> None:
        super().__init__(norm.running.moments.shape[1], norm.clip)
        mean, scale = norm.running.scale()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.scale).clamp(-self.clip, self.clip)


class TokensInside(Encoder):
    """An `LLMEncoder` from token ids on, its adapters merged into the weights.

    Args:
        encoder: It; left as it is.
    """

    def __init__(self, encoder: LLMEncoder) -> None:
        super().__init__()
        backbone = encoder.backbone
        # A copy, in which those who share its weights do not notice that adapters are merged.
        model = copy.deepcopy(backbone.model)
        self.model: Any = model.merge_and_unload() if backbone.tune == "lora" else model
        self.model.requires_grad_(False).eval()
        self.norm = None if encoder.norm is None else FixedNorm(encoder.norm)
        self.pooling: Pooling = encoder.pooling
        self.normalize = encoder.normalize
        self.out_dim = encoder.out_dim

    def preprocess(self, obs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Token ids and attention mask, `[N, L]`."""
        return {"input_ids": obs[0], "attention_mask": obs[1]}

    def forward(self, x: Any) -> Tensor:
        ids, mask = x["input_ids"], x["attention_mask"]
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        features = pool(hidden, mask, self.pooling, normalize=self.normalize)
        return features if self.norm is None else self.norm(features)


class WordsInside(Encoder):
    """A `BagOfWordsEncoder` from numbers of words on, `[N, L]`; 0 is padding."""

    def __init__(self, encoder: BagOfWordsEncoder) -> None:
        super().__init__()
        weight = encoder.vectors.weight.detach().clone()
        weight[0] = 0.0  # padding adds nothing, whatever stands there
        self.vectors = nn.Embedding.from_pretrained(weight)
        self.out_dim = encoder.out_dim

    def preprocess(self, obs: Tensor) -> Tensor:
        return obs

    def forward(self, x: Tensor) -> Tensor:
        count = (x != 0).sum(1, keepdim=True).clamp(min=1)
        return self.vectors(x).sum(1) / count.sqrt()


class RowsInside(Encoder):
    """A `TableEncoder` that numbers observations by arithmetic."""

    def __init__(self, encoder: TableEncoder) -> None:
        super().__init__()
        if encoder.strides is None:
            raise ConfigurationError(
                "TableEncoder has numbered these observations as they came up, and a list of them "
                "is no graph of tensors: only tables of Discrete, MultiDiscrete and MultiBinary "
                "observations, numbered by arithmetic, are exported; or train DQN"
            )
        self.numbering = [encoder]  # in a list: it is no part of the graph
        self.out_dim = encoder.out_dim

    def preprocess(self, obs: Any) -> Tensor:
        return as_array(self.numbering[0], obs)

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(1) == torch.arange(self.out_dim)).float()


_INSTEAD: dict[type, Any] = {
    RunningNorm: FixedNorm,
    LLMEncoder: TokensInside,
    BagOfWordsEncoder: WordsInside,
    TableEncoder: RowsInside,
}


def make_traceable(module: nn.Module) -> None:
    """Put these in the place of those, wherever they are inside a module.

    Raises:
        ConfigurationError: If a table has numbered observations as they came up.
    """
    for name, child in list(children(module).items()):
        while child is not None and WRAPPED in children(child):
            child = children(child)[WRAPPED]
            setattr(module, name, child)
        if child is None:
            continue
        instead = next((new for old, new in _INSTEAD.items() if isinstance(child, old)), None)
        if instead is None:
            make_traceable(child)
        else:
            setattr(module, name, instead(child))
