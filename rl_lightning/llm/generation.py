"""Writing: sampled continuations of prompts, and what a model says of them afterwards.

What was sampled is kept as token ids and never cut into tokens anew: decoding and encoding again
need not give the same tokens.

Shapes: N prompts, P tokens of a prompt, G continuations of each, T tokens of a continuation, V of
the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.continuation import Continuation
from rl_lightning.llm.reading import read_completions
from rl_lightning.llm.sampling import Sampling


class Generated(NamedTuple):
    """Continuations, those of one prompt side by side.

    `ids` int64 `[N·G, T]`, right-padded, and how many of them each has, `length` int64 `[N·G]`,
    with the token that ended it. `log_prob` float32 `[N·G, T]`: of the whole softmax at the
    temperature they were sampled with, 0 behind the end. `ended` bool `[N·G]`: by the model's own
    end or a stop text, and not because there were to be no more tokens.
    """

    ids: Tensor
    length: Tensor
    log_prob: Tensor
    ended: Tensor


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
    sampling: Sampling,
    samples: int = 1,
    step: Continuation | None = None,
) -> Generated:
    """Go on with prompts, batched, over their keys and values; each prompt is read once.

    Continuations that have ended leave the batch once they are half of it, unless `step` is kept.

    Args:
        backbone: With its head.
        prompt: Token ids, right-padded, `[N, P]`.
        length: Tokens of each prompt, int64 `[N]`.
        sampling: How.
        samples: G, continuations of each prompt.
        step: Reads, and is kept: its rows are all of them, in order. None: nobody keeps it.
    """
    learns = backbone.training
    backbone.eval()  # a layer that recomputes itself in the backward pass keeps no keys and values
    try:
        return _write(backbone, prompt, length, sampling, samples, step)
    finally:
        backbone.train(learns)


def _write(
    backbone: Backbone,
    prompt: Tensor,
    length: Tensor,
    sampling: Sampling,
    samples: int,
    kept: Continuation | None,
) -> Generated:
    device, count, most = prompt.device, len(prompt) * samples, sampling.max_new_tokens
    ends = torch.tensor(end_tokens(backbone), device=device, dtype=torch.long)
    ids = torch.full((count, most), backbone.tokens.pad_id, device=device)
    said = torch.zeros(count, most, device=device)
    done = torch.zeros(count, dtype=torch.bool, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    rows = torch.arange(count, device=device)  # what is in the batch
    step = Continuation(backbone) if kept is None else kept
    logits = step.begin(prompt.long(), length).logits  # [N, V]
    if samples > 1:
        step.keep(owner := torch.arange(len(prompt), device=device).repeat_interleave(samples))
        logits = logits[owner]
    for t in range(most):
        logits = logits.float() / (sampling.temperature or 1.0)  # [B, V]
        token = sampling.choose(logits)
        going = ~done[rows]
        log_prob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
        ids[rows, t] = torch.where(going, token, ids[rows, t])
        said[rows, t] = torch.where(going, log_prob, said[rows, t])
        lengths[rows] += going
        done[rows] |= torch.isin(token, ends)
        if sampling.stop:
            done |= _has_stopped(backbone, ids[:, : t + 1], done, sampling.stop)
        going = ~done[rows]
        left = int(going.sum())
        if t + 1 == most or not left:
            break
        if kept is None and 2 * left <= len(rows):
            step.keep(stay := going.nonzero()[:, 0])
            rows, token = rows[stay], token[stay]
        logits = step.more(token[:, None]).logits
    return Generated(ids, lengths, said, done)


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
    read = read_completions(
        backbone,
        prompt,
        length,
        ids[:, None],
        written[:, None],
        torch.ones_like(ids[:, None], dtype=torch.bool),
        torch.full((len(prompt),), temperature, device=prompt.device),
        method="rows",
        entropy_grad=True,
    )
    return Spoken(read.log_prob[:, 0], read.entropy[:, 0], read.start)


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


def _has_stopped(backbone: Backbone, ids: Tensor, done: Tensor, stop: Sequence[str]) -> Tensor:
    """Whether a stop text stands in what was written, of those that are still going."""
    out = torch.zeros_like(done)
    going = (~done).nonzero()[:, 0].tolist()
    texts = backbone.tokens.tokenizer.batch_decode(ids[going].tolist()) if going else []
    for n, text in zip(going, texts, strict=True):
        out[n] = any(end in text for end in stop)
    return out
