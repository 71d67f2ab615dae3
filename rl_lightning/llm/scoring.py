"""log p(candidate | prompt) of several texts after one prompt, in one row of tokens.

A row holds a prompt and all its candidates, one after the other. In the packed form each candidate
sees the prompt and itself (a 4-D attention mask) at the positions it would have alone, so that one
pass reads the prompt once; a candidate's last token need not be read at all, and one logit row says
the first token of all candidates. Scoring K whole pairs reads the prompt K times.

Shapes: N rows, W tokens of a row, A candidates.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_one_of, shortened
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.continuation import Continuation
from rl_lightning.llm.logits import log_probs
from rl_lightning.llm.pool import Pooling, pool
from rl_lightning.llm.rows import PADDING, Rows, lay_out, make_rows

Method = Literal["auto", "packed", "cached", "pairs"]


class Scores(NamedTuple):
    """`log_prob` float32 `[N, A]`, 0 where there is no candidate; `hidden` float32 `[N, D]`: what
    the head was given at the prompt's tokens, pooled (encoder-decoder: the encoder's states)."""

    log_prob: Tensor
    hidden: Tensor


def score(
    backbone: Backbone, rows: Rows, actions: int, method: Method, pooling: Pooling = "last"
) -> Scores:
    """log p of every candidate, with gradient where the model is trained.

    Args:
        backbone: With its head.
        rows: Of this many rows at once.
        actions: A, at least as many as any row has.
        method: `packed`, `cached` (the prompt's keys and values are shared) or `pairs`; an
            encoder-decoder has a way of its own.
        pooling: Of the prompt's tokens.
    """
    longest = max(int((rows.part != PADDING).sum(1).max()), 1)
    rows = Rows(rows.ids[:, :longest].long(), rows.part[:, :longest].long())
    if backbone.encoder_decoder:
        return _by_decoder(backbone, rows, actions, pooling)
    return _METHODS[method](backbone, rows, actions, pooling)


def choose_method(backbone: Backbone, wanted: Method, longest: int) -> Method:
    """How to score with a model: the fastest way in which it gives what whole pairs give.

    It is found by trying, not by the model's name: what its attention makes of a mask of ours, or
    whether it has keys and values to share, only it knows. A model whose attention looks back over
    a window is tried with a prompt beyond it.

    Args:
        backbone: With its head.
        wanted: `auto`, or a method that must work.
        longest: Most tokens of a prompt and a candidate together.

    Raises:
        ConfigurationError: If `wanted` does not work, or is unknown.
    """
    check_one_of("method", wanted, get_args(Method))
    if backbone.encoder_decoder or wanted == "pairs":
        return "pairs"
    tried: Sequence[Method] = ("packed", "cached") if wanted == "auto" else (wanted,)
    why = ""
    for method in tried:
        why = why_not(backbone, method, longest)
        if not why:
            return method
    kind = f"this {backbone.model.config.model_type}"
    if wanted != "auto":
        raise ConfigurationError(
            f"method={wanted!r}: {kind} does not score so what it scores alone ({why}); leave it "
            "out"
        )
    warnings.warn(
        f"{kind} cannot read several candidates behind one prompt ({why}), so each is read with a "
        "prompt of its own: exact, but slow",
        stacklevel=2,
    )
    return "pairs"


def why_not(backbone: Backbone, method: Method, longest: int) -> str:
    """Why a decoder does not score so what whole pairs score; empty if it does.

    Args:
        backbone: With its head.
        method: `packed` or `cached`.
        longest: Most tokens of a prompt and a candidate together.
    """
    rows = _trial_rows(backbone, longest)
    with torch.no_grad(), torch.autocast(rows.ids.device.type, enabled=False):
        expected = score(backbone, rows, 3, "pairs").log_prob
        try:
            found = score(backbone, rows, 3, method).log_prob
        except Exception as error:  # whatever a foreign model may say to it
            return shortened(error, 120) or type(error).__name__
    off = float((found - expected).abs().max())
    enough = _TOLERANCE[backbone.source["dtype"]] * float(expected.abs().max())
    return "" if off <= enough else f"off by {off:.3g} nats"


def window_of(backbone: Backbone) -> int | None:
    """How many tokens a model's attention looks back over, or None without limit."""
    config = backbone.model.config
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_window", None)
    return window if isinstance(window, int) else None


_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


def _trial_rows(backbone: Backbone, longest: int) -> Rows:
    window = window_of(backbone)
    length = max(min(9, longest - 3), 1)
    if window is not None and window < longest:
        length = window + 9
    device = next(backbone.model.parameters()).device
    vocabulary = min(int(backbone.model.config.vocab_size), 1000)
    first = [i * 7 % vocabulary for i in range(3, 3 + length)]
    ids = [[5, 8, 3], [8], [2, 9]]
    own = [[i % vocabulary for i in c] for c in ids]
    rows = make_rows([first, first[:5]], [own, own[:2]], backbone.tokens.pad_id)
    return Rows(rows.ids.to(device).long(), rows.part.to(device).long())


# --- packed -----------------------------------------------------------------------------------


def _packed(backbone: Backbone, rows: Rows, actions: int, pooling: Pooling) -> Scores:
    return _in_rows(backbone, rows, actions, pooling, tree=True)


def _in_rows(backbone: Backbone, rows: Rows, actions: int, pooling: Pooling, tree: bool) -> Scores:
    """Score rows as they are: with a mask that keeps candidates apart, or of one candidate each."""
    ids, part = rows
    count = len(ids)
    layout = lay_out(backbone, rows, tree)
    own = layout.part
    last = torch.zeros_like(own, dtype=torch.bool).scatter_(1, layout.last[:, None], True)
    select = (own > 0) | (last & (own == 0))
    out = backbone.logits(select, **layout.inputs)
    row = select.flatten().cumsum(0).view_as(select) - 1  # [N, L], which logits are a position's
    n, w = (part > 0).nonzero(as_tuple=True)
    said = log_probs(out.logits, row[n, layout.before[n, w]], ids[n, w])
    total = said.new_zeros(count * actions).index_add(0, n * actions + part[n, w] - 1, said)
    return Scores(total.view(count, actions), pool(out.hidden, own == 0, pooling))


# --- one candidate a row ----------------------------------------------------------------------


def _pairs(backbone: Backbone, rows: Rows, actions: int, pooling: Pooling) -> Scores:
    owner, candidate, pair = _split(rows)
    if not len(owner):
        return _in_rows(backbone, rows, actions, pooling, tree=False)
    out = _in_rows(backbone, pair, 1, pooling, tree=False)
    count = len(rows.ids)
    total = out.log_prob.new_zeros(count * actions)
    total = total.index_add(0, owner * actions + candidate, out.log_prob[:, 0])
    first = torch.zeros(count, dtype=torch.long, device=owner.device)
    first.scatter_reduce_(0, owner, torch.arange(len(owner)).to(owner), "amin", include_self=False)
    return Scores(total.view(count, actions), out.hidden[first])


def _split(rows: Rows) -> tuple[Tensor, Tensor, Rows]:
    """Of each candidate: its row, its number from 0, and prompt and candidate in a row."""
    ids, part = rows
    most = int(part.max()) if part.numel() else 0
    if not most:
        empty = torch.zeros(0, dtype=torch.long, device=ids.device)
        return empty, empty, Rows(ids[:0], part[:0])
    has = torch.stack([(part == k).any(1) for k in range(1, most + 1)], 1)
    owner, candidate = has.nonzero(as_tuple=True)
    of = part[owner]  # [R, W]
    kept = (of == 0) | (of == candidate[:, None] + 1)
    order = torch.sort(~kept, dim=1, stable=True).indices[:, : int(kept.sum(1).max())]
    own = torch.where(kept, of.clamp(max=1), PADDING).gather(1, order)
    return owner, candidate, Rows(ids[owner].gather(1, order), own)


# --- one prompt, many continuations -----------------------------------------------------------


class _Continuations(NamedTuple):
    """Candidates by themselves: ids `[R, a]`, which of them are there, and whose they are."""

    owner: Tensor
    candidate: Tensor
    ids: Tensor
    there: Tensor


def _continuations(rows: Rows, pad_id: int) -> _Continuations:
    owner, candidate, pair = _split(rows)
    of = pair.part == 1
    width = max(int(of.sum(1).max()), 1) if len(owner) else 1
    order = torch.sort(~of, dim=1, stable=True).indices[:, :width]
    there = of.gather(1, order)
    ids = torch.where(there, pair.ids.gather(1, order), pad_id)
    return _Continuations(owner, candidate, ids, there)


def _cached(backbone: Backbone, rows: Rows, actions: int, pooling: Pooling) -> Scores:
    """The prompt once, its keys and values shared by the candidates."""
    ids, part = rows
    step = Continuation(backbone)
    out = step.begin(ids, (part == 0).sum(1))
    hidden = pool(out.hidden, step.mask, pooling)
    own = _continuations(rows, backbone.tokens.pad_id)
    said = log_probs(out.logits, own.owner, own.ids[:, 0])  # of the first tokens
    if own.ids.shape[1] > 1 and len(own.owner):
        step.share(own.owner)
        there = own.there[:, 1:]
        more = step.more(own.ids[:, :-1], own.there[:, :-1], there)
        said = said + _rest(more.logits, own.ids[:, 1:], there)
    return Scores(_gather(said, own, len(ids), actions), hidden)


def _by_decoder(backbone: Backbone, rows: Rows, actions: int, pooling: Pooling) -> Scores:
    """An encoder-decoder: the prompt is encoded once, the decoder says the candidates."""
    ids, part = rows
    pad = backbone.tokens.pad_id
    mask = part == 0
    lengths = mask.sum(1)
    width = max(int(lengths.max()), 1)
    mask = mask[:, :width]
    prompt = torch.where(mask, ids[:, :width], pad)
    model = backbone.model
    read = model.get_encoder()(input_ids=prompt, attention_mask=mask.long())
    states = read.last_hidden_state
    hidden = pool(states, mask, pooling)
    own = _continuations(rows, pad)
    if not len(own.owner):
        return Scores(hidden.new_zeros(len(ids), actions, dtype=torch.float32), hidden)
    start = torch.full_like(own.ids[:, :1], model.config.decoder_start_token_id)
    given = torch.cat([start, own.ids[:, :-1]], 1)
    out = backbone.logits(
        own.there,
        encoder_outputs=(states[own.owner],),
        attention_mask=mask[own.owner].long(),
        decoder_input_ids=given,
        use_cache=False,
    )
    said = _rest(out.logits, own.ids, own.there)
    return Scores(_gather(said, own, len(ids), actions), hidden)


def _rest(logits: Tensor, ids: Tensor, there: Tensor) -> Tensor:
    """Sums of log p over the tokens that are there, `[R]`."""
    r, column = there.nonzero(as_tuple=True)
    said = log_probs(logits, torch.arange(len(r), device=ids.device), ids[r, column])
    return said.new_zeros(len(ids)).index_add(0, r, said)


def _gather(said: Tensor, own: _Continuations, count: int, actions: int) -> Tensor:
    total = said.new_zeros(count * actions)
    return total.index_add(0, own.owner * actions + own.candidate, said).view(count, actions)


_METHODS: dict[str, Callable[[Backbone, Rows, int, Pooling], Scores]] = {
    "packed": _packed,
    "cached": _cached,
    "pairs": _pairs,
}
