"""Rows of tokens that hold a prompt and what may follow it, and how a model reads them.

In the packed form each candidate sees the prompt and itself (a 4-D attention mask) at the positions
it would have alone, so that one pass reads the prompt once.

Shapes: N rows, W tokens of a row, L of these that are read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_lightning.llm.backbone import Backbone

PADDING = -1


class Rows(NamedTuple):
    """Prompts and their candidates.

    `ids` are token ids `[N, W]`; `part` says whose they are, `[N, W]`: 0 the prompt's, k ≥ 1
    candidate k−1's, −1 padding. A row begins with its prompt; candidates follow in order.
    """

    ids: Tensor
    part: Tensor


def make_rows(
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    width: int | None = None,
) -> Rows:
    """Rows of token ids, int64 and int16, right-padded to `width` or to the longest.

    Args:
        prompts: Token ids of each prompt.
        candidates: Of each prompt, the token ids of its candidates.
        pad_id: What stands on padding.
        width: W.
    """
    lengths = [len(p) + sum(map(len, own)) for p, own in zip(prompts, candidates, strict=True)]
    width = width or max(lengths)
    ids = torch.full((len(prompts), width), pad_id)
    part = torch.full((len(prompts), width), PADDING, dtype=torch.int16)
    for n, (prompt, own) in enumerate(zip(prompts, candidates, strict=True)):
        tokens = [*prompt, *(t for c in own for t in c)]
        parts = [0] * len(prompt) + [k for k, c in enumerate(own, 1) for _ in c]
        ids[n, : lengths[n]] = torch.tensor(tokens)
        part[n, : lengths[n]] = torch.tensor(parts, dtype=torch.int16)
    return Rows(ids, part)


class Layout(NamedTuple):
    """Rows as a model reads them: all tokens but the candidates' last, moved together.

    `inputs` are of its `forward`, `[N, L]`; `part` `[N, L]` as in `Rows`; `before` int64 `[N, W]`:
    of each token of a candidate, which of the L positions foretells it; `last` int64 `[N]`: the
    prompt's last one.
    """

    inputs: dict[str, Any]
    part: Tensor
    before: Tensor
    last: Tensor


def lay_out(backbone: Backbone, rows: Rows, tree: bool) -> Layout:
    """How a model reads rows; there may be padding in them, between the prompt and candidates too.

    Args:
        backbone: With its head.
        rows: int64 both.
        tree: With a mask that keeps candidates apart; without it, there is one candidate a row.
    """
    ids, part = rows
    at = torch.arange(ids.shape[1], device=ids.device)
    prompt = (part == 0).sum(1, keepdim=True)  # [N, 1]
    begins = torch.zeros_like(part, dtype=torch.bool)
    begins[:, 1:] = (part[:, 1:] > 0) & (part[:, 1:] != part[:, :-1])
    first = torch.where(begins, at, 0).cummax(1).values  # where a token's candidate begins
    position = torch.where(part > 0, prompt + at - first, at)
    follows = torch.zeros_like(begins)
    follows[:, :-1] = part[:, :-1] == part[:, 1:]
    read = (part == 0) | ((part > 0) & follows)
    length = max(int(read.sum(1).max()), 1)
    order = torch.sort(~read, dim=1, stable=True).indices[:, :length]  # [N, L]
    here = read.gather(1, order)
    own = torch.where(here, part.gather(1, order), PADDING)
    mask = _tree_mask(own, backbone.model.dtype) if tree else here.long()
    inputs = {
        "input_ids": torch.where(here, ids.gather(1, order), backbone.tokens.pad_id),
        "position_ids": torch.where(here, position.gather(1, order), 0),
        "attention_mask": mask,
        "use_cache": False,
    }
    last = (prompt - 1).clamp(min=0)
    compact = read.cumsum(1) - 1  # where a token that is read went
    before = torch.where(begins, last, compact.roll(1, 1)).clamp(min=0)
    return Layout(inputs, own, before, last[:, 0])


def _tree_mask(part: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, `[N, 1, L, L]`: a token sees the prompt and its own
    candidate up to itself, padding only itself."""
    length = part.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=part.device).tril()
    query, key = part[:, :, None], part[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=part.device)
    seen = ((key == 0) | (key == query)) & (key != PADDING) & causal | itself
    mask = torch.zeros(seen.shape, dtype=dtype, device=part.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
