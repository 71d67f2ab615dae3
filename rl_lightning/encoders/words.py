"""Text observations, read without a language model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import whole
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder, check_reads_text
from rl_lightning.encoders.hashed_words import WORD, hashed_words
from rl_lightning.llm import TextCache


class BagOfWordsEncoder(Encoder):
    """Learned vectors of a text's words and of its runs of up to `ngrams` words, added up.

    The small network that a language model has to beat. Words are lower-cased, a punctuation mark
    is one; each word or run is hashed into one of `buckets` vectors (the hashing trick, Weinberger
    et al. 2009; fastText, Joulin et al. 2017), so that there is no list of words to make, and two
    of them share a vector now and then. The sum is divided by the root of their number, so that
    features of long and short texts begin with the same variance, 1.

    Args:
        spec: Of an environment whose observations are text.
        buckets: Vectors there are.
        ngrams: Words of the longest runs. 1 knows no order; with 3, "near north" and "wall east"
            are not "near east" and "wall north".
        width: Elements of a vector, and of the features.
        max_words: Most words of a text. What is longer is cut, with a warning.
        remembered: Most texts whose words are remembered.

    Raises:
        ConfigurationError: If observations are not text, or if an argument is below 1.
    """

    def __init__(
        self,
        spec: EnvSpec,
        buckets: int = 8192,
        ngrams: int = 3,
        width: int = 128,
        max_words: int = 256,
        remembered: int = 100_000,
    ) -> None:
        super().__init__()
        check_reads_text("BagOfWordsEncoder", spec)
        self.buckets = whole("buckets", buckets, 1)
        self.ngrams = whole("ngrams", ngrams, 1)
        self.max_words = whole("max_words", max_words, 1)
        self.out_dim = whole("width", width, 1)
        self.vectors = nn.EmbeddingBag(buckets + 1, width, mode="sum", padding_idx=0)
        self.cache = TextCache(remembered, self.row_width, torch.int32)
        self._told = False
        self.register_buffer("_here", torch.zeros(1), persistent=False)  # knows the device

    @property
    def device(self) -> torch.device:
        return self._here.device  # type: ignore[return-value]

    @property
    def row_width(self) -> int:
        """Most words and runs of words of a text."""
        return sum(max(self.max_words - n, 0) for n in range(self.ngrams))

    def preprocess(self, obs: Sequence[str]) -> Tensor:
        """`B` texts → numbers of their words and runs, int32 `[B, row_width]`, then zeros."""
        if isinstance(obs, str):
            raise TypeError(
                "preprocess takes a sequence of texts, one per environment, not one text"
            )
        return self.cache.get(obs, self._number).to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers `[N, row_width]` → features `[N, width]`."""
        count = (x != 0).sum(1, keepdim=True).clamp(min=1)  # [N, 1]; 0 is padding
        used = int(count.max()) if len(x) else 1
        return self.vectors(x[:, :used]) / count.sqrt()

    def repeats(self) -> bool | Mapping[str, Any]:
        return True

    def _number(self, texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), self.row_width, dtype=torch.int32)
        for row, text in zip(rows, texts, strict=True):
            words = WORD.findall(text.lower())
            if len(words) > self.max_words and not self._told:
                self._told = True
                warnings.warn(
                    f"BagOfWordsEncoder: a text of {len(words)} words was cut to the first "
                    f"max_words={self.max_words}",
                    stacklevel=2,
                )
            numbers = hashed_words(words[: self.max_words], self.buckets, self.ngrams)
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        return rows
