"""From one vector per token to one vector per text."""

from typing import Literal

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError

Pooling = Literal["mean", "last", "cls"]


def pool(
    hidden: Tensor, mask: Tensor, pooling: Pooling = "mean", *, normalize: bool = False
) -> Tensor:
    """Pool the hidden states of each text, by its attention mask only.

    `"mean"` averages the tokens (Reimers & Gurevych 2019, arXiv:1908.10084), `"last"` takes the
    last token and `"cls"` the first. The first token of a decoder-only model sees nothing but
    itself, so there `"cls"` is the same vector for every text that begins alike.

    Args:
        hidden: Hidden states `[N, L, D]`, of any float dtype.
        mask: True (or 1) on the tokens of a text, False on padding of either side, `[N, L]`.
        pooling: Which tokens to read.
        normalize: Scale every vector to length 1.

    Returns:
        Features `[N, D]`, float32. A text without a token gives zeros with `"mean"`.

    Raises:
        ConfigurationError: For an unknown `pooling`.
    """
    mask = mask.bool()
    if pooling == "mean":
        # `where`, not a product: what a model leaves on padding may be inf or nan.
        tokens = torch.where(mask.unsqueeze(-1), hidden.float(), 0.0)  # [N, L, D]
        features = tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    elif pooling in ("last", "cls"):
        position = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        index = (position * mask).argmax(1) if pooling == "last" else mask.int().argmax(1)
        features = hidden[torch.arange(hidden.shape[0], device=hidden.device), index].float()
    else:
        raise ConfigurationError(f"pooling={pooling!r} is unknown: use 'mean', 'last' or 'cls'")
    return torch.nn.functional.normalize(features, dim=-1) if normalize else features
