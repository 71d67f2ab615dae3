"""Text → token ids, right-padded, never longer than `max_length`."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl_lightning.errors import ConfigurationError


class Tokens:
    """A tokenizer with one length limit, whose padding a model never sees.

    Padding is done here, on the right, and always comes with an attention mask. So a tokenizer
    without a pad token (GPT-2, Llama) is as good as any other, and needs no new embedding row.

    Args:
        tokenizer: A transformers tokenizer.
        max_length: Most tokens of a text, special tokens included; longer texts are cut (where the
            tokenizer's `truncation_side` says) and the first cut is warned of.
        limit: Positions the model has, or None where it has no limit.

    Raises:
        ConfigurationError: If `max_length` is more than the model reads, or too little for text.
    """

    def __init__(self, tokenizer: Any, max_length: int, limit: int | None = None) -> None:
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

    def _ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        if not texts:
            return []
        out = self.tokenizer(
            list(texts), padding=False, return_attention_mask=False, verbose=False, **options
        )
        return out["input_ids"]

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
        """A digest of everything that decides which ids a text becomes."""
        if self.tokenizer.is_fast:
            rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
            rules = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}
        else:
            rules = [type(self.tokenizer).__name__, self.tokenizer.get_vocab()]
        side = self.tokenizer.truncation_side
        text = json.dumps([rules, side, self.max_length, self.pad_id], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __deepcopy__(self, memo: dict) -> "Tokens":
        return self  # never changes what it returns, and copying a vocabulary is slow
