"""Teacher forcing: what a model says of the completions of prompts, token by token.

Shapes: P prompts, G completions of each (a group), L tokens of a prompt, T of a completion, M
tokens that were chosen, D hidden size, V of the vocabulary.
"""

import weakref
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rl_lightning.core.errors import ConfigurationError, check_one_of, whole
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.chunks import like_lengths
from rl_lightning.llm.continuation import Continuation
from rl_lightning.llm.logits import head_logits
from rl_lightning.llm.rows import PADDING, Layout, Rows, lay_out
from rl_lightning.llm.scoring import why_not, window_of
from rl_lightning.llm.tune import checkpointed_layers

Method = Literal["auto", "packed", "cached", "rows"]


class Reading(NamedTuple):
    """What a model says of completions.

    `log_prob` and `entropy`, float32 `[P, G, T]`, are 0 where the model chose nothing, as is
    `hidden` `[P, G, T, D]`, if it was asked for: what the head was given at the position that
    foretells the token. `start` `[P, D]` is what it was given at the prompt's last token
    (encoder-decoder: the encoder's state there).
    """

    log_prob: Tensor
    entropy: Tensor
    hidden: Tensor | None
    start: Tensor


class _States(NamedTuple):
    """What the head was given: `hidden` `[R, L, D]` of R rows; of each token of a completion, its
    `row` and the `place` there that foretells it, int64 `[P, G, T]`; `start` as in `Reading`."""

    hidden: Tensor
    row: Tensor
    place: Tensor
    start: Tensor


def read_completions(
    backbone: Backbone,
    prompt: Tensor,
    prompt_length: Tensor,
    ids: Tensor,
    length: Tensor,
    own: Tensor,
    temperature: Tensor,
    *,
    method: Method = "auto",
    chunk: int = 1024,
    hidden: bool = False,
    entropy_grad: bool = False,
) -> Reading:
    """What a model says of completions, with gradient, in float32.

    `rows` reads each completion behind a prompt of its own; the others read a prompt once: `packed`
    in one row with all its completions, by a mask that keeps these apart; `cached` by itself, and
    completions over its keys and values, with gradient through them. An encoder-decoder has a way
    of its own: each prompt is encoded once.

    The vocabulary is large: logits are made of `chunk` positions at a time, and made again in the
    backward pass, so that there are never more of them.

    Args:
        backbone: With its head.
        prompt: Token ids, right-padded, `[P, L]`.
        prompt_length: Tokens of each, at least 1, `[P]`.
        ids: Token ids of completions, right-padded, `[P, G, T]`.
        length: Tokens of each, `[P, G]`.
        own: Tokens that the model chose, bool `[P, G, T]`; the others are read, not foretold.
        temperature: That they were sampled with, `[P]`; 0 counts as 1.
        method: `auto` takes what should be quickest of what the model can do, which is tried.
        chunk: Positions.
        hidden: Whether to return what the head was given.
        entropy_grad: Whether the entropy has a gradient.

    Raises:
        ConfigurationError: If `method` is unknown, or the model cannot read so.
    """
    check_one_of("method", method, get_args(Method))
    chunk = whole("chunk", chunk, 1)
    there = torch.arange(ids.shape[-1], device=ids.device) < length[..., None]
    prompt, prompt_length, ids = prompt.long(), prompt_length.long(), ids.long().contiguous()
    if backbone.encoder_decoder:
        states = _by_decoder(backbone, prompt, prompt_length, ids)
    else:
        method = _choose(backbone, prompt_length, length, method)
        if method == "cached":
            states = _behind(backbone, prompt, prompt_length, ids, there)
        else:
            tree = method == "packed"
            states = _in_rows(backbone, prompt, prompt_length, ids, there, tree)
    chosen = own & there
    given = states.hidden[states.row[chosen], states.place[chosen]]  # [M, D]
    heat = torch.where(temperature > 0, temperature, 1.0).float()
    heat = heat[:, None, None].expand_as(chosen)[chosen]
    pieces = list(zip(*(part.split(chunk) for part in (given, ids[chosen], heat)), strict=True))
    say: Any = partial(_say, backbone, entropy_grad)
    if torch.is_grad_enabled() and len(pieces) > 1:
        say = partial(checkpoint, say, use_reentrant=False)
    said = [say(*piece) for piece in pieces]
    log_prob, entropy = (torch.cat(parts) for parts in zip(*said, strict=True))
    zeros = torch.zeros(chosen.shape, device=ids.device)
    kept = None
    if hidden:
        kept = given.new_zeros(*chosen.shape, given.shape[-1])
        kept = kept.masked_scatter(chosen[..., None], given)
    return Reading(
        zeros.masked_scatter(chosen, log_prob),
        zeros.masked_scatter(chosen, entropy),
        kept,
        states.start,
    )


def _say(
    backbone: Backbone, entropy_grad: bool, hidden: Tensor, token: Tensor, heat: Tensor
) -> tuple[Tensor, Tensor]:
    """log p of tokens, and the entropy of what could have been said, `[M]` each."""
    logits = head_logits(backbone.model, hidden).float() / heat[:, None]  # [M, V]
    total = logits.logsumexp(-1)
    log_prob = logits.gather(1, token[:, None])[:, 0] - total
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        # Last: what is made again in the backward pass ends where no gradient needs more.
        entropy = total - (logits.softmax(-1) * logits).sum(-1)
    return log_prob, entropy


def _in_rows(
    backbone: Backbone,
    prompt: Tensor,
    prompt_length: Tensor,
    ids: Tensor,
    there: Tensor,
    tree: bool,
) -> _States:
    count, samples, most = ids.shape
    width = prompt.shape[1]
    beside = samples if tree else 1  # completions of a row
    each = samples // beside
    first = torch.arange(width, device=ids.device) < prompt_length[:, None]
    number = torch.arange(1, beside + 1, device=ids.device)[:, None]
    behind = torch.where(there.view(-1, beside, most), number, PADDING).flatten(1)
    before = torch.where(first, 0, PADDING).repeat_interleave(each, 0)
    rows = Rows(
        torch.cat([prompt.repeat_interleave(each, 0), ids.view(len(behind), -1)], 1),
        torch.cat([before, behind], 1),
    )
    layout = lay_out(backbone, rows, tree)
    hidden = _hidden(backbone, layout, tree)
    row = torch.arange(len(behind), device=ids.device).repeat_interleave(beside)
    row = row.view(count, samples, 1).expand_as(ids)
    start = torch.arange(0, len(behind), each, device=ids.device)
    return _States(
        hidden,
        row,
        layout.before[:, width:].reshape(ids.shape),
        hidden[start, layout.last[start]],
    )


def _hidden(backbone: Backbone, layout: Layout, tree: bool) -> Tensor:
    """What the head is given, `[N, L, D]`; without a tree, rows of like lengths are read together:
    conversations of one batch may end at very different turns."""
    count, width = layout.part.shape
    lengths = (layout.part != PADDING).sum(1).tolist()
    parts, order = [], []
    for rows in [list(range(count))] if tree else like_lengths(lengths, count):
        longest = width if tree else max(lengths[rows[-1]], 1)
        own = {
            name: x[rows][:, :longest] if isinstance(x, Tensor) and not tree else x
            for name, x in layout.inputs.items()
        }
        none = torch.zeros_like(own["input_ids"], dtype=torch.bool)
        hidden = backbone.logits(none, **own).hidden
        parts.append(torch.nn.functional.pad(hidden, (0, 0, 0, width - longest)))
        order += rows
    places = torch.tensor(order, device=layout.part.device).argsort()
    return torch.cat(parts)[places]


def _behind(
    backbone: Backbone, prompt: Tensor, prompt_length: Tensor, ids: Tensor, there: Tensor
) -> _States:
    count, samples, most = ids.shape
    step = Continuation(backbone)
    start = step.begin(prompt, prompt_length).hidden[:, -1]
    owner = torch.arange(count, device=ids.device).repeat_interleave(samples)
    behind, there = ids.view(-1, most), there.view(-1, most)
    hidden = start[owner, None]
    read = int(there.sum(1).max()) - 1  # the last token foretells nothing
    if read > 0:
        step.share(owner)
        none = torch.zeros_like(there[:, :read])
        more = step.more(behind[:, :read], there[:, :read], none)
        hidden = torch.cat([hidden, more.hidden], 1)
    row = torch.arange(count * samples, device=ids.device).view(count, samples, 1)
    place = torch.arange(most, device=ids.device)
    return _States(hidden, row.expand_as(ids), place.expand_as(ids), start)


def _by_decoder(backbone: Backbone, prompt: Tensor, prompt_length: Tensor, ids: Tensor) -> _States:
    count, samples, most = ids.shape
    model = backbone.model
    mask = (torch.arange(prompt.shape[1], device=ids.device) < prompt_length[:, None]).long()
    encoded = model.get_encoder()(input_ids=prompt, attention_mask=mask)[0]
    given = ids.view(-1, most)
    start = torch.full_like(given[:, :1], model.config.decoder_start_token_id)
    hidden = backbone.logits(
        torch.zeros_like(given, dtype=torch.bool),
        encoder_outputs=(encoded.repeat_interleave(samples, 0),),
        attention_mask=mask.repeat_interleave(samples, 0),
        decoder_input_ids=torch.cat([start, given[:, :-1]], 1),
        use_cache=False,
    ).hidden
    row = torch.arange(count * samples, device=ids.device).view(count, samples, 1)
    last = encoded[torch.arange(count, device=ids.device), (prompt_length - 1).clamp(min=0)]
    place = torch.arange(most, device=ids.device)
    return _States(hidden, row.expand_as(ids), place.expand_as(ids), last)


# --- which way --------------------------------------------------------------------------------


def _choose(backbone: Backbone, prompt_length: Tensor, length: Tensor, wanted: Method) -> Method:
    """The way that should be quickest of those which a model can go."""
    longest = int((prompt_length[:, None] + length).max())
    if wanted == "auto":
        costs = _costs(backbone.hidden_size, prompt_length, length)
        ways: list[Method] = sorted(costs, key=costs.__getitem__)
        return next(way for way in ways if not _why_not(backbone, way, longest))
    why = _why_not(backbone, wanted, longest)
    if why:
        raise ConfigurationError(
            f"method={wanted!r}: this {backbone.model.config.model_type} does not read so what it "
            f"reads alone ({why}); leave it out"
        )
    return wanted


def _costs(size: int, prompt_length: Tensor, length: Tensor) -> dict[Method, float]:
    """What each way should cost, in products of a query with a key.

    By the arithmetic of a layer, D wide: 24 D² of a token's matrices, and 4 D of each token that it
    may see, masked or not. That reading twice, and copying keys and values, costs a quarter more is
    measured (`benchmarks/completions.py`).

    Args:
        size: D.
        prompt_length: `[P]`.
        length: `[P, G]`.
    """
    token, total = 6 * size, (prompt_length[:, None] + length).float()
    row, prompt = (prompt_length + length.sum(1)).max().float(), prompt_length.max().float()
    behind = length.max() * (token + prompt + length.max())
    return {
        "rows": float((total * (token + total)).sum()),
        "packed": float(len(length) * row * (token + row)),
        "cached": float(1.25 * (len(length) * prompt * (token + prompt) + length.numel() * behind)),
    }


_TRIED: weakref.WeakKeyDictionary[Backbone, dict[tuple[Method, bool], str]] = (
    weakref.WeakKeyDictionary()
)
_TRIAL = 16  # tokens that it is tried with


def _why_not(backbone: Backbone, method: Method, longest: int) -> str:
    """See `rl_lightning.llm.scoring.why_not`; found once for each backbone."""
    if method == "rows":
        return ""
    recomputes = any(layer.training for layer in checkpointed_layers(backbone.model))
    if method == "cached" and recomputes:
        return "layers that recompute themselves in the backward pass keep no keys and values"
    window = window_of(backbone)
    beyond = window is not None and longest > window
    tried = _TRIED.setdefault(backbone, {})
    if (method, beyond) not in tried:
        within = min(_TRIAL, window or _TRIAL)
        tried[method, beyond] = why_not(backbone, method, longest if beyond else within)
    return tried[method, beyond]
