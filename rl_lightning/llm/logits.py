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


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """The logits `[M, V]` of what a head was given, `[M, D]`, a part of `Logits.hidden`.

    The model's own `forward` runs, its layers left out, so that whatever a family does behind the
    head is done.
    """
    body = model.get_decoder()
    given: dict[str, Any] = {}
    if model.config.is_encoder_decoder:
        given["encoder_outputs"] = (hidden[None],)
    nothing = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
    given["decoder_input_ids" if given else "input_ids"] = nothing

    def layers(*args: Any, **kwargs: Any) -> _Nothing:
        return _Nothing(last_hidden_state=hidden[None, :1])

    def give(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden[None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(give)
    former = vars(body).get("forward")
    body.forward = layers
    try:
        return model(**given, use_cache=False).logits.squeeze(0)
    finally:
        handle.remove()
        del body.forward
        if former is not None:
            body.forward = former


class _Nothing(dict[str, Any]):
    """What layers that did not run have put out: hidden states, and None for all else."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__("last_hidden_state" if key == 0 else key)


def log_probs(logits: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """log p of tokens, float32 `[K]`, in float32 whatever the logits are.

    Args:
        logits: `[M, V]`.
        row: Which of them, int64 `[K]`.
        token: Token ids, int64 `[K]`.
    """
    logits = logits.float()
    return logits[row, token] - torch.logsumexp(logits, dim=-1)[row]
