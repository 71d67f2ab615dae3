"""Writing: sampled continuations of prompts, and what a model says of them afterwards.

What was sampled is kept as token ids and never cut into tokens anew: decoding and encoding again
need not give the same tokens.

Shapes: N prompts, P tokens of a prompt, T tokens of a continuation, V of the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lightning.llm.backbone import Backbone


class Written(NamedTuple):
    """Continuations: `ids` `[N, T]`, and how many of them each has, `length` int64 `[N]`; with
    the token that ended it. `log_prob` `[N, T]` at the temperature they were sampled with, 0
    behind the end."""

    ids: Tensor
    length: Tensor
    log_prob: Tensor


class Spoken(NamedTuple):
    """Of continuations, `[N, T]` each and 0 behind their ends: log p, and the entropy of what
    could have been said there. `hidden` `[N, D]`: see `rl_lightning.llm.scoring.Scores`."""

    log_prob: Tensor
    entropy: Tensor
    hidden: Tensor


@torch.no_grad()
def write(
    backbone: Backbone,
    prompt: Tensor,
    length: Tensor,
    most: int,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
) -> Written:
    """Go on with prompts, batched, over their keys and values.

    Args:
        backbone: With its head.
        prompt: Token ids, right-padded, `[N, P]`.
        length: Tokens of each prompt, int64 `[N]`.
        most: T, most tokens to write.
        temperature: Of the softmax that is sampled from; 0 takes the most likely token.
        stop: Texts that end a continuation once they stand in it, beside the model's own end.
    """
    device, count = prompt.device, len(prompt)
    ends = torch.tensor(end_tokens(backbone), device=device)
    ids = torch.full((count, most), backbone.tokens.pad_id, device=device)
    said = torch.zeros(count, most, device=device)
    done = torch.zeros(count, dtype=torch.bool, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    mask = torch.arange(prompt.shape[1], device=device) < length[:, None]
    step = _Decoder(backbone) if backbone.encoder_decoder else _Continuation(backbone)
    logits = step.begin(prompt.long(), mask, length)  # [N, V]
    for t in range(most):
        token = _choose(logits, temperature)
        log_prob = _log_softmax(logits, temperature)
        own = log_prob.gather(1, token[:, None])[:, 0]
        ids[:, t] = torch.where(done, ids[:, t], token)
        said[:, t] = torch.where(done, said[:, t], own)
        lengths += ~done
        done = done | torch.isin(token, ends)
        if stop:
            done = done | _has_stopped(backbone, ids[:, : t + 1], done, stop)
        if t + 1 == most or bool(done.all()):
            break
        logits = step.more(token, ~done)
    return Written(ids, lengths, said)


def speak(
    backbone: Backbone,
    prompt: Tensor,
    length: Tensor,
    ids: Tensor,
    written: Tensor,
    temperature: float = 1.0,
) -> Spoken:
    """What a model says of continuations, with gradient.

    Args:
        backbone: With its head.
        prompt: Token ids, right-padded, `[N, P]`.
        length: Tokens of each prompt, int64 `[N]`.
        ids: Continuations, right-padded, `[N, T]`.
        written: Tokens of each, int64 `[N]`.
        temperature: As they were sampled with; 0 counts as 1.
    """
    device, count = prompt.device, len(prompt)
    prompt, length, ids, written = (v.long() for v in (prompt, length, ids, written))
    there = torch.arange(ids.shape[1], device=device) < written[:, None]  # [N, T]
    every = torch.arange(count, device=device)
    if backbone.encoder_decoder:
        mask = torch.arange(prompt.shape[1], device=device) < length[:, None]
        start = torch.full_like(ids[:, :1], backbone.model.config.decoder_start_token_id)
        states = backbone.model.get_encoder()(input_ids=prompt, attention_mask=mask.long())[0]
        out = backbone.logits(
            there,
            encoder_outputs=(states,),
            attention_mask=mask.long(),
            decoder_input_ids=torch.cat([start, ids[:, :-1]], 1),
            use_cache=False,
        )
        hidden = states[every, (length - 1).clamp(min=0)]
    else:
        total = length + written
        width = int(total.max())
        at = torch.arange(width, device=device)
        whole = torch.full((count, width), backbone.tokens.pad_id, device=device)
        before = at < length[:, None]
        inside = (at >= length[:, None]) & (at < total[:, None])
        whole[before] = prompt[:, :width][before[:, : prompt.shape[1]]]
        whole[inside] = ids[there]
        select = (at >= length[:, None] - 1) & (at < total[:, None] - 1)
        out = backbone.logits(
            select,
            input_ids=whole,
            attention_mask=(at < total[:, None]).long(),
            position_ids=at.expand_as(whole),
            use_cache=False,
        )
        hidden = out.hidden[every, (length - 1).clamp(min=0)]
    log_probs = _log_softmax(out.logits, temperature or 1.0)  # [M, V]
    own = log_probs.gather(1, ids[there][:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    zeros = torch.zeros(there.shape, device=device)
    return Spoken(zeros.masked_scatter(there, own), zeros.masked_scatter(there, entropy), hidden)


class _Continuation:
    """A decoder goes on, token by token."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def begin(self, prompt: Tensor, mask: Tensor, length: Tensor) -> Tensor:
        last = torch.zeros_like(mask).scatter_(1, (length - 1).clamp(min=0)[:, None], True)
        place = torch.arange(prompt.shape[1], device=prompt.device).expand_as(prompt)
        out = self.backbone.logits(
            last,
            input_ids=prompt,
            attention_mask=mask.long(),
            position_ids=place,
            use_cache=True,
        )
        self.cache, self.mask, self.length = out.cache, mask, length
        return out.logits

    def more(self, token: Tensor, going: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        out = self.backbone.logits(
            torch.ones_like(token, dtype=torch.bool)[:, None],
            input_ids=token[:, None],
            attention_mask=self.mask.long(),
            position_ids=self.length[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache, self.length = out.cache, self.length + 1
        return out.logits


class _Decoder:
    """An encoder-decoder reads once, and its decoder goes on."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def begin(self, prompt: Tensor, mask: Tensor, length: Tensor) -> Tensor:
        model = self.backbone.model
        self.states = model.get_encoder()(input_ids=prompt, attention_mask=mask.long())[0]
        self.mask = mask.long()
        self.given = torch.full_like(prompt[:, :1], model.config.decoder_start_token_id)
        return self._last()

    def more(self, token: Tensor, going: Tensor) -> Tensor:
        self.given = torch.cat([self.given, token[:, None]], 1)
        return self._last()

    def _last(self) -> Tensor:
        select = torch.zeros_like(self.given, dtype=torch.bool)
        select[:, -1] = True
        return self.backbone.logits(
            select,
            encoder_outputs=(self.states,),
            attention_mask=self.mask,
            decoder_input_ids=self.given,
            use_cache=False,
        ).logits


def end_tokens(backbone: Backbone) -> list[int]:
    """Ids of the tokens by which a model says that it has ended."""
    config = backbone.model.config
    generation = getattr(backbone.model, "generation_config", None)
    ids: set[int] = set()
    for value in (
        getattr(generation, "eos_token_id", None),
        getattr(config, "eos_token_id", None),
        backbone.tokens.tokenizer.eos_token_id,
    ):
        ids.update([value] if isinstance(value, int) else value or ())
    return sorted(ids)


def _choose(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0.0:
        return logits.argmax(-1)
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_().log_()
    return (logits.float() / temperature - noise).argmax(-1)  # Gumbel's trick


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)


def _has_stopped(backbone: Backbone, ids: Tensor, done: Tensor, stop: Sequence[str]) -> Tensor:
    """Whether a stop text stands in what was written, of those that are still going."""
    out = torch.zeros_like(done)
    going = (~done).nonzero()[:, 0].tolist()
    texts = backbone.tokens.tokenizer.batch_decode(ids[going].tolist()) if going else []
    for n, text in zip(going, texts, strict=True):
        out[n] = any(end in text for end in stop)
    return out
