"""How likely a causal language model finds each of a few answers to a prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.llm.load import Dtype, load_causal
from rl_lightning.llm.tokens import Tokens


class OptionScorer:
    """log p(option | prompt) = Σₜ log p(wₜ | prompt, w₁ … wₜ₋₁) over an option's tokens, frozen.

    Prompt and option are tokenised as one text, since the tokens of both together may be others
    than those of each: what counts are the tokens from the first one on that holds a letter of the
    option. End a prompt without a blank, and begin options with one: then no token holds both.

    Args:
        model: Hub name, folder or weights package, see `rl_lightning.llm.find_model`.
        dtype: Of the weights; log-probabilities are float32.
        max_length: Most tokens of prompt and option together.
        batch_size: Rows that the model reads at a time.
        device: Where it computes.

    Raises:
        ConfigurationError: If there is no such causal model.
    """

    def __init__(
        self,
        model: str,
        dtype: Dtype = "float32",
        max_length: int = 1024,
        batch_size: int = 16,
        device: str | torch.device = "cpu",
    ) -> None:
        self.model, tokenizer = load_causal(model, dtype)
        if not tokenizer.is_fast:
            raise ConfigurationError(
                f"model={model!r}: its tokenizer does not say where tokens lie in a text; take one "
                "with a tokenizer.json"
            )
        self.model.to(device)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        self.tokens = Tokens(tokenizer, min(max_length, limit or max_length), limit)
        self.batch_size = batch_size
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], options: Sequence[str]) -> Tensor:
        """Log-probabilities, float32 `[N, K]`, of K options after each of N prompts.

        Raises:
            ConfigurationError: If a prompt with an option is too long.
        """
        rows = [self._row(prompt, option) for prompt in prompts for option in options]
        out = torch.empty(len(rows))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            out[chosen] = self._score([rows[i] for i in chosen])
        return out.view(len(prompts), len(options))

    def _row(self, prompt: str, option: str) -> tuple[list[int], int]:
        """Token ids, and the index of the option's first token."""
        found: Any = self.tokens.tokenizer(
            prompt + option, return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )
        ids: list[int] = found["input_ids"]
        ends = [end for _, end in found["offset_mapping"]]
        first = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        last = max((i for i, end in enumerate(ends) if end), default=-1)  # behind it: the template
        if first > last or first == 0:
            raise ConfigurationError(
                f"the option {option!r} has no tokens of its own behind {shortened(prompt, 80)!r}"
            )
        if last + 1 > self.tokens.max_length:
            raise ConfigurationError(
                f"a prompt of {last + 1} tokens, option included, is longer than max_length="
                f"{self.tokens.max_length}: raise it, or ask about shorter texts"
            )
        return ids[: last + 1], first

    def _score(self, rows: Sequence[tuple[list[int], int]]) -> Tensor:
        ids, mask = self.tokens.pad([row for row, _ in rows])  # [n, L]
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        log_prob = logits[:, :-1].float().log_softmax(-1)
        taken = log_prob.gather(2, ids[:, 1:, None]).squeeze(2)  # [n, L-1], of tokens 1 …
        first = torch.tensor([start for _, start in rows], device=self.device)[:, None]
        position = torch.arange(1, ids.shape[1], device=self.device)
        return (taken * ((position >= first) & mask[:, 1:])).sum(1).cpu()
