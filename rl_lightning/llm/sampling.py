"""How the next token is chosen, and where a continuation ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_range, whole


@dataclass(frozen=True)
class Sampling:
    """How continuations are sampled.

    What is cut off by `top_k` and `top_p` is never chosen, but has its share in log-probabilities:
    these are of the whole softmax at the temperature, which is what can be learned from.

    Args:
        max_new_tokens: T, most tokens of a continuation.
        temperature: Logits are divided by it; 0 takes the likeliest token, and its log-probability
            at temperature 1.
        top_k: Only the k likeliest tokens are chosen from; None: from all.
        top_p: Of these, only the likeliest whose probabilities add up to p or just above it
            (Holtzman et al. 2020, arXiv:1904.09751); None: from all.
        stop: Texts that end a continuation once they stand in it, beside the model's own end.

    Raises:
        ConfigurationError: If a value can mean nothing.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        most = whole("max_new_tokens", self.max_new_tokens, 1)
        check_range("temperature", self.temperature, 0.0)
        if self.temperature is None:
            raise ConfigurationError("temperature=None: give a number, 0 for the likeliest")
        top_k = None if self.top_k is None else whole("top_k", self.top_k, 1)
        check_range("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise ConfigurationError("top_p=0 leaves no token: for the likeliest, temperature=0")
        given = () if self.stop is None else self.stop
        several = isinstance(given, Sequence) and not isinstance(given, str)
        stop = tuple(given) if several else (given,)
        if not all(isinstance(text, str) and text for text in stop):
            raise ConfigurationError(f"stop must be texts, not {self.stop!r}")
        for name, value in (("max_new_tokens", most), ("top_k", top_k), ("stop", stop)):
            object.__setattr__(self, name, value)

    def choose(self, logits: Tensor) -> Tensor:
        """Tokens, int64 `[B]`, by logits that are divided by the temperature, float32 `[B, V]`."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        logits = self.allowed(logits)
        noise = torch.empty_like(logits).exponential_().log_()
        return (logits - noise).argmax(-1)  # Gumbel's trick

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits `[B, V]` with −∞ for what `top_k` and `top_p` cut off."""
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            most = logits.topk(self.top_k)  # exactly k, also of tokens that are as likely
            logits = torch.full_like(logits, -torch.inf).scatter_(1, most.indices, most.values)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, order = logits.sort(descending=True)
            share = ordered.softmax(-1)
            above = share.cumsum(-1) - share  # of what is likelier
            ordered = ordered.masked_fill(above >= self.top_p, -torch.inf)
            logits = torch.empty_like(logits).scatter_(1, order, ordered)
        return logits
