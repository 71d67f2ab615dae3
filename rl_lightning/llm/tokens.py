"""Text → token ids, right-padded, never longer than `max_length`."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError

TruncationSide = Literal["left", "right"]


class Tokens:
    """A tokenizer with one length limit, whose padding a model never sees.

    Padding is done here, on the right, and always comes with an attention mask. So a tokenizer
    without a pad token (GPT-2, Llama) is as good as any other, and needs no new embedding row.

    A text is text: `[SEP]` or `<|im_end|>` typed by a player or found on a page is spelled out in
    ordinary tokens, and only the tokenizer's own template puts control tokens around it. Where the
    vocabulary has the control token as a word of its own, which spelling out cannot avoid (T5's
    Unigram), it becomes the unknown token. Texts without control tokens are not affected.

    Args:
        tokenizer: A transformers tokenizer. Several `Tokens` may share it.
        max_length: Most tokens of a text, special tokens included; longer texts are cut, and the
            first cut is warned of.
        limit: Positions the model has, or None where it has no limit.
        truncation_side: Which end of a longer text is cut off; None: the tokenizer's own choice.
        split_special_tokens: False lets control tokens in a text act, as they do in a prompt
            template whose writer is trusted.

    Raises:
        ConfigurationError: If `max_length` is more than the model reads, or too little for text.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        limit: int | None = None,
        truncation_side: TruncationSide | None = None,
        split_special_tokens: bool = True,
    ) -> None:
        if truncation_side is not None and truncation_side not in get_args(TruncationSide):
            raise ConfigurationError(
                f"truncation_side={truncation_side!r}: use one of {get_args(TruncationSide)}, or "
                "leave it out for the tokenizer's own"
            )
        least = tokenizer.num_special_tokens_to_add() + 1
        if max_length < least:
            raise ConfigurationError(
                f"max_length={max_length} leaves no room for text: give {least} at least"
            )
        if limit is not None and max_length > limit:
            raise ConfigurationError(
                f"max_length={max_length} is more than the {limit} tokens the model reads"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )
        self.truncation_side = truncation_side or tokenizer.truncation_side
        self.split_special_tokens = split_special_tokens
        self._heard: set[int] | None = None  # what it made of texts, while somebody listens
        self._warned = False

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included; an empty text has one (pad) token.

        Raises:
            TypeError: If something is not a text.
        """
        if not all(isinstance(text, str) for text in texts):
            kinds = sorted({type(text).__name__ for text in texts} - {"str"})
            raise TypeError(f"expected texts (str), got {', '.join(kinds)}")
        ids = self._ids(texts, truncation=True, max_length=self.max_length)
        if not self._warned:
            full = [i for i, row in enumerate(ids) if len(row) == self.max_length]
            longest = max((len(row) for row in self._ids([texts[i] for i in full])), default=0)
            if longest > self.max_length:
                self._warned = True
                warnings.warn(
                    f"a text of {longest} tokens was cut to max_length={self.max_length}: what was "
                    "cut is invisible to the agent; raise max_length or write shorter texts",
                    stacklevel=2,
                )
        return [row or [self.pad_id] for row in ids]

    def plain(self, text: str) -> list[int]:
        """Token ids of a text by itself: without what the template puts around it, never cut."""
        split = self.split_special_tokens
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, verbose=False, split_special_tokens=split
        )["input_ids"]
        if self._heard is not None:
            self._heard.update(ids)
        if not split or self._control_ids.isdisjoint(ids):
            return ids
        unknown = self.tokenizer.unk_token_id
        instead = [] if unknown is None else [unknown]
        return [
            i for token in ids for i in ([token] if token not in self._control_ids else instead)
        ]

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that are gone on with: with what the template puts before a text,
        without what it puts behind, and never cut; an empty text may have none."""
        _, behind = self._template
        return [row[: len(row) - behind] for row in self._ids(texts)]

    @property
    def around(self) -> tuple[int, int]:
        """How many control tokens the template puts before and behind a text."""
        return self._template

    def _ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        if not texts:
            return []
        tokenizer, side = self.tokenizer, self.tokenizer.truncation_side
        tokenizer.truncation_side = self.truncation_side
        try:
            out = tokenizer(
                list(texts),
                padding=False,
                return_attention_mask=False,
                verbose=False,
                split_special_tokens=self.split_special_tokens,
                **options,
            )
        finally:
            tokenizer.truncation_side = side  # another owner's may be the tokenizer's own
        rows: list[list[int]] = out["input_ids"]
        if self._heard is not None:
            self._heard.update(*rows)
        if self.split_special_tokens:
            return [self._without_control(row) for row in rows]
        return rows

    def _without_control(self, row: list[int]) -> list[int]:
        """Ids of a text, in which what looks like control tokens between the template's is not."""
        first, behind = self._template
        end = len(row) - behind
        control = self._control_ids
        if control.isdisjoint(row[first:end]):
            return row
        unknown = self.tokenizer.unk_token_id
        instead = [] if unknown is None else [unknown]
        body = [[i] if i not in control else instead for i in row[first:end]]
        return [*row[:first], *(i for ids in body for i in ids), *row[end:]]

    @cached_property
    def _control(self) -> list[str]:
        return control_tokens(self.tokenizer)

    def has_control_token(self, text: str) -> bool:
        """Whether a control token stands in a text, in any case and whatever it is taken for."""
        return bool(self._control) and self._pattern.search(text) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._control)), re.IGNORECASE)

    @cached_property
    def _control_ids(self) -> set[int]:
        ids = self.tokenizer.convert_tokens_to_ids(self._control)
        return set(ids) - {self.tokenizer.unk_token_id, None}

    @cached_property
    def _template(self) -> tuple[int, int]:
        """How many control tokens the template puts before and behind a text."""
        around = self.tokenizer.num_special_tokens_to_add()
        if not around:
            return 0, 0
        whole, bare = (
            self.tokenizer("a", add_special_tokens=own, verbose=False)["input_ids"]
            for own in (True, False)
        )
        first = next(
            (i for i in range(around + 1) if whole[i : i + len(bare)] == bare),
            around,
        )
        return first, around - first

    @contextmanager
    def heard(self) -> Iterator[set[int]]:
        """The ids of all texts that are read inside, those that a cut leaves out included."""
        before, self._heard = self._heard, set()
        try:
            yield self._heard
        finally:
            self._heard = before

    def pad(self, ids: Sequence[Sequence[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
        """Right-pad to `width` tokens, or to the longest row.

        Returns:
            Ids, int64 `[N, L]`, and the attention mask, bool `[N, L]`.
        """
        lengths = torch.tensor([len(row) for row in ids])
        width = width or int(lengths.max())
        mask = torch.arange(width) < lengths.unsqueeze(1)  # [N, L]
        padded = torch.full((len(ids), width), self.pad_id)
        padded[mask] = torch.tensor([token for row in ids for token in row])
        return padded, mask

    def fingerprint(self) -> str:
        """A digest of everything that decides which ids a text without control tokens becomes."""
        if self.tokenizer.is_fast:
            rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
            rules = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}
        else:
            rules = [type(self.tokenizer).__name__, self.tokenizer.get_vocab()]
        text = json.dumps(
            [rules, self.truncation_side, self.max_length, self.pad_id], sort_keys=True
        )
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __deepcopy__(self, memo: dict) -> "Tokens":
        return self  # never changes what it returns, and copying a vocabulary is slow


def control_tokens(tokenizer: Any) -> list[str]:
    """The strings that a tokenizer takes for control tokens where it may."""
    added = tokenizer.added_tokens_decoder.values()
    special = {str(token) for token in added if token.special}
    return sorted(special.union(tokenizer.all_special_tokens) - {""})
