"""Text observations by hashed words: the smallest reader of texts, for small policies."""

import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import whole
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder, check_reads_text
from rl_lightning.llm import TextCache

WORD = re.compile(r"\w+|[^\w\s]")


def hashed_words(words: Sequence[str], buckets: int, ngrams: int) -> list[int]:
    """Numbers in [1, buckets] of words, then of their pairs, and so on up to runs of `ngrams`.

    CRC-32 modulo `buckets`, which is the same in every process and on every machine; Python's own
    hash is not.

    Args:
        words: As `WORD` finds them in a text.
        buckets: Numbers there are; 0 is left for padding.
        ngrams: Words of the longest runs.
    """
    runs = (
        " ".join(words[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(words) - n + 1)
    )
    return [zlib.crc32(run.encode("utf-8", "surrogatepass")) % buckets + 1 for run in runs]


class HashedWordsEncoder(Encoder):
    """Mean of the learned vectors of a text's hashed words and word pairs (the hashing trick,
    Weinberger et al. 2009; fastText, Joulin et al. 2017).

    A student of a language model: 2048 vectors of 32 numbers are 262 kB. A punctuation mark is a
    word; words that fall into one bucket share a vector. `BagOfWordsEncoder` is the wider one, for
    learning from rewards: its features keep their variance however long a text is.

    Args:
        spec: Of an environment whose observations are text; of a Dict, give it to `DictEncoder`.
        dim: Elements of a vector, and of the features.
        buckets: Vectors there are.
        ngrams: Words of the longest runs. 1 knows no order; 2 tells "wall north" from "north wall".
        lowercase: Whether "North" is "north".
        max_words: Most words of a text. What is longer is cut, with a warning.
        remembered: Most texts whose numbers are remembered.

    Raises:
        ConfigurationError: If observations are not text, or if an argument is below 1.
    """

    def __init__(
        self,
        spec: EnvSpec,
        dim: int = 32,
        buckets: int = 2048,
        ngrams: int = 2,
        lowercase: bool = True,
        max_words: int = 128,
        remembered: int = 100_000,
    ) -> None:
        super().__init__()
        check_reads_text("HashedWordsEncoder", spec)
        self.out_dim = whole("dim", dim, 1)
        self.buckets = whole("buckets", buckets, 1)
        self.ngrams = whole("ngrams", ngrams, 1)
        self.max_words = whole("max_words", max_words, 1)
        self.lowercase = lowercase
        self.vectors = nn.EmbeddingBag(self.buckets + 1, self.out_dim, mode="mean", padding_idx=0)
        small = self.buckets <= torch.iinfo(torch.int16).max
        self.cache = TextCache(remembered, self.row_width, torch.int16 if small else torch.int32)
        self._told = False

    @property
    def row_width(self) -> int:
        """Most words and runs of words of a text."""
        return sum(max(self.max_words - n, 0) for n in range(self.ngrams))

    def preprocess(self, obs: Sequence[str]) -> Tensor:
        """`B` texts → numbers of their words and runs, int16 `[B, row_width]`, then zeros; int32
        from 32,768 buckets on."""
        if isinstance(obs, str):
            raise TypeError(
                "preprocess takes a sequence of texts, one per environment, not one text"
            )
        return self.cache.get(obs, self._number).to(self.vectors.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers `[N, row_width]` → features `[N, dim]`, zero of an empty text."""
        used = int((x != 0).sum(1).max()) if len(x) else 0
        return self.vectors(x[:, : max(used, 1)].int())

    def repeats(self) -> bool | Mapping[str, Any]:
        return True

    def _number(self, texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), self.row_width, dtype=self.cache.dtype)
        for row, text in zip(rows, texts, strict=True):
            words = WORD.findall(text.lower() if self.lowercase else text)
            if len(words) > self.max_words and not self._told:
                self._told = True
                warnings.warn(
                    f"HashedWordsEncoder: a text of {len(words)} words was cut to the first "
                    f"max_words={self.max_words}",
                    stacklevel=2,
                )
            numbers = hashed_words(words[: self.max_words], self.buckets, self.ngrams)
            row[: len(numbers)] = torch.tensor(numbers, dtype=rows.dtype)
        return rows
