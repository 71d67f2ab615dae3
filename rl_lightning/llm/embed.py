"""Texts → one vector each, by a model that does not change."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.chunks import MOST_PADDING, like_lengths
from rl_lightning.llm.pool import Pooling, pool


def embed(
    backbone: Backbone,
    texts: Sequence[str],
    device: torch.device,
    *,
    pooling: Pooling = "mean",
    normalize: bool = False,
    batch_size: int = 64,
) -> Tensor:
    """Vectors of texts, whatever the precision around: `TextCache.get` may ask for them.

    Args:
        backbone: On `device`.
        texts: N texts.
        device: Where it computes.
        pooling: See `rl_lightning.llm.pool`, as for
        normalize: this.
        batch_size: Texts it reads at a time.

    Returns:
        float32 `[N, D]`, on the CPU.

    Raises:
        FloatingPointError: If the model's dtype does not hold what it computes.
    """
    ids = backbone.tokens(texts)
    out = torch.empty(len(ids), backbone.hidden_size, dtype=torch.float32)  # not the default dtype
    # Elsewhere than on a CPU, beginning a chunk costs more than some padding.
    padding = MOST_PADDING if device.type == "cpu" else 1.0
    for rows in like_lengths([len(row) for row in ids], batch_size, padding):
        padded, mask = backbone.tokens.pad([ids[i] for i in rows])
        padded, mask = padded.to(device), mask.to(device)
        # A vector must not depend on the precision of the training step it was first met in.
        with torch.autocast(device.type, enabled=False):
            features = pool(backbone(padded, mask), mask, pooling, normalize=normalize)
        out[rows] = features.cpu()
    if not torch.isfinite(out).all():
        raise FloatingPointError(
            f"the model gave inf or nan in dtype={backbone.source['dtype']!r}: use "
            "'bfloat16' or 'float32'"
        )
    return out
