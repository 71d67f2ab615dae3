"""Hidden states, and the logits of some positions, from one pass of a model with its head."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError


class Logits(NamedTuple):
    """What a model makes of tokens.

    `hidden` is what its head was given, `[N, L, D]`; `logits` are those of the selected positions,
    `[M, V]`; `cache` is the keys and values of all tokens, where they were asked for.
    """

    hidden: Tensor
    logits: Tensor
    cache: Any


def read_logits(model: Any, select: Tensor, **inputs: Any) -> Logits:
    """Run a model, its head at some positions only.

    The vocabulary is large and few positions matter. What is selected is taken out right before the
    head, so that whatever a family does on either side of it (scaling, soft caps) is done.

    Args:
        model: A transformers model with its head, adapters around it or not.
        select: Positions, bool `[N, L]`, in the order of which the rows of `logits` come.
        **inputs: Of its `forward`.
    """
    seen: list[Tensor] = []

    def pick(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (args[0][select].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    if head is None:
        raise ConfigurationError(
            f"a {model.config.model_type} has no layer that gives logits: give another model"
        )
    handle = head.register_forward_pre_hook(pick)
    try:
        out = model(**inputs)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ConfigurationError(
            f"a {model.config.model_type} gives its logits past its own head: give another model"
        )
    logits = out.logits.squeeze(0)
    return Logits(seen[0], logits, getattr(out, "past_key_values", None))


def log_probs(logits: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """log p of tokens, float32 `[K]`, in float32 whatever the logits are.

    Args:
        logits: `[M, V]`.
        row: Which of them, int64 `[K]`.
        token: Token ids, int64 `[K]`.
    """
    logits = logits.float()
    return logits[row, token] - torch.logsumexp(logits, dim=-1)[row]
