"""How likely a causal language model finds each of a few answers to a prompt."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.chunks import like_lengths
from rl_lightning.llm.load import Dtype
from rl_lightning.llm.rows import make_rows
from rl_lightning.llm.scoring import Method, choose_method, score

MOST_IN_A_ROW = 16  # options of one prompt that are read together
LEAST = 16  # tokens
Cut = Literal["prompt", "option"]


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
        device: Where it computes; None: where the model is, until `to`.
        layers: Transformer layers to keep; None keeps all.

    Raises:
        ConfigurationError: If there is no such causal model.
    """

    def __init__(
        self,
        model: str,
        dtype: Dtype = "float32",
        max_length: int = 1024,
        batch_size: int = 16,
        device: str | torch.device | None = "cpu",
        layers: int | None = None,
    ) -> None:
        self.backbone = Backbone(model, dtype=dtype, layers=layers, max_length=LEAST, head=True)
        if self.backbone.encoder_decoder:
            raise ConfigurationError(
                f"model={model!r} reads by one half and writes by the other: give a causal "
                "language model, such as a Llama, Qwen or GPT-2"
            )
        self.tokenizer: Any = self.backbone.tokens.tokenizer
        if not self.tokenizer.is_fast:
            raise ConfigurationError(
                f"model={model!r}: its tokenizer does not say where tokens lie in a text; take one "
                "with a tokenizer.json"
            )
        limit = self.backbone.positions
        self.max_length = max_length if limit is None else min(max_length, limit)
        self.method: Method = choose_method(self.backbone, "auto", self.max_length)
        self.batch_size = batch_size
        self.device = next(self.backbone.model.parameters()).device
        if device is not None:
            self.to(device)

    def to(self, device: str | torch.device) -> None:
        """Compute there from now on."""
        self.device = torch.device(device)
        self.backbone.to(device)

    def __call__(self, prompts: Sequence[str], options: Sequence[str]) -> Tensor:
        """Log-probabilities, float32 `[N, K]`, of K options after each of N prompts.

        Raises:
            ConfigurationError: If a prompt with an option is too long.
        """
        groups = [(prompt, list(options)) for prompt in prompts]
        return self._score(groups)[0].view(len(prompts), len(options))

    def pairs(
        self, pairs: Sequence[tuple[str, str]], cut: Cut | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of N prompts, each with an option of its own: log-probabilities, float32 `[N]`, and
        tokens of the options, int64 `[N]`.

        Args:
            pairs: The prompts and their options.
            cut: What is cut, with a warning, if both are longer than `max_length`: the beginning
                of the prompt, or the end of the option; None: that is an error.

        Raises:
            ConfigurationError: See `__call__`.
        """
        groups: list[tuple[str, list[str]]] = []
        for prompt, option in pairs:
            if groups and groups[-1][0] == prompt and len(groups[-1][1]) < MOST_IN_A_ROW:
                groups[-1][1].append(option)
            else:
                groups.append((prompt, [option]))
        return self._score(groups, cut)

    @torch.no_grad()
    def _score(
        self, groups: Sequence[tuple[str, Sequence[str]]], cut: Cut | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of all options of all groups, one after the other, see `pairs`."""
        # Options that leave a prompt's tokens alone share a row with it.
        rows: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        own: list[list[int]] = []
        for n, (prompt, options) in enumerate(groups):
            for option in options:
                ids, first = self._row(prompt, option, cut)
                rows.setdefault((n, tuple(ids[:first])), []).append(len(own))
                own.append(ids[first:])
        keys = list(rows)
        out = torch.empty(len(own))
        most = max((len(which) for which in rows.values()), default=1)
        lengths = [len(key[1]) + sum(len(own[i]) for i in rows[key]) for key in keys]
        for chunk in like_lengths(lengths, self.batch_size):
            chosen = [keys[i] for i in chunk]
            packed = make_rows(
                [prompt for _, prompt in chosen],
                [[own[i] for i in rows[key]] for key in chosen],
                self.backbone.tokens.pad_id,
            )
            packed = type(packed)(*(part.to(self.device) for part in packed))
            with torch.autocast(self.device.type, enabled=False):
                found = score(self.backbone, packed, most, self.method).log_prob.cpu()
            for key, said in zip(chosen, found, strict=True):
                out[rows[key]] = said[: len(rows[key])]
        return out, torch.tensor([len(ids) for ids in own], dtype=torch.long)

    def _row(self, prompt: str, option: str, cut: Cut | None) -> tuple[list[int], int]:
        """Token ids, and the index of the option's first token."""
        found: Any = self.tokenizer(
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
        over = last + 1 - self.max_length
        # One token of the prompt stays, from which the option's first is foretold.
        if over > 0 and ((cut == "option" and first < self.max_length) or
                         (cut == "prompt" and over < first)):  # fmt: skip
            warnings.warn(
                f"a text was cut to max_length={self.max_length} tokens: raise it if what is cut "
                "matters",
                stacklevel=2,
            )
            if cut == "option":
                return ids[: self.max_length], first
            return ids[over : last + 1], first - over
        if over > 0:
            raise ConfigurationError(
                f"a prompt of {last + 1} tokens, option included, is longer than max_length="
                f"{self.max_length}: raise it, or ask about shorter texts"
            )
        return ids[: last + 1], first
