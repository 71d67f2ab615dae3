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

from rl_lightning.core.errors import check_one_of, whole
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.chunks import like_lengths
from rl_lightning.llm.logits import head_logits
from rl_lightning.llm.rows import PADDING, Layout, Rows, lay_out
from rl_lightning.llm.scoring import choose_method, why_not, window_of

Method = Literal["auto", "packed", "rows"]


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

    `rows` reads each completion behind a prompt of its own; `packed` reads a prompt and all its
    completions in one row, the prompt once, with a mask that keeps completions apart. An
    encoder-decoder has a way of its own: each prompt is encoded once.

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
        method: `auto` packs where the model can (it is tried) and where it pays.
        chunk: Positions.
        hidden: Whether to return what the head was given.
        entropy_grad: Whether the entropy has a gradient.

    Raises:
        ConfigurationError: If `method` is unknown, or the model cannot read so.
    """
    check_one_of("method", method, get_args(Method))
    chunk = whole("chunk", chunk, 1)
    there = torch.arange(ids.shape[-1], device=ids.device) < length[..., None]
    prompt, prompt_length, ids = prompt.long(), prompt_length.long(), ids.long()
    if backbone.encoder_decoder:
        states = _by_decoder(backbone, prompt, prompt_length, ids)
    else:
        tree = _packs(backbone, prompt_length, length, method)
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


# --- whether to pack --------------------------------------------------------------------------


def _packs(backbone: Backbone, prompt_length: Tensor, length: Tensor, method: Method) -> bool:
    longest = int((prompt_length[:, None] + length).max())
    if method == "packed" and _why_not_packed(backbone, longest):
        choose_method(backbone, "packed", longest)  # says it
    if method != "auto":
        return method == "packed"
    pays = length.shape[1] > 1 and _pays(backbone, prompt_length, length)
    return pays and not _why_not_packed(backbone, longest)


def _pays(backbone: Backbone, prompt_length: Tensor, length: Tensor) -> bool:
    """Whether a long row with the prompt once costs less than rows with a prompt each.

    By the arithmetic of a layer, D wide: 24 D² of a token's matrices, and 4 D of each token that
    it may see, masked or not.
    """
    wide, total = 6 * backbone.hidden_size, (prompt_length[:, None] + length).float()
    packed = (prompt_length + length.sum(1)).max().float()
    together = len(length) * packed * (wide + packed)
    return bool(together < (total * (wide + total)).sum())


_TRIED: weakref.WeakKeyDictionary[Backbone, dict[bool, str]] = weakref.WeakKeyDictionary()
_TRIAL = 16  # tokens, at least, of what it is tried with


def _why_not_packed(backbone: Backbone, longest: int) -> str:
    window = window_of(backbone)
    beyond = window is not None and longest > window
    tried = _TRIED.setdefault(backbone, {})
    if beyond not in tried:
        tried[beyond] = why_not(backbone, "packed", longest if beyond else _TRIAL)
    return tried[beyond]
