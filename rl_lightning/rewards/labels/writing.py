"""Answers that a language model on this machine writes."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.llm import Backbone, Dtype
from rl_lightning.llm.chunks import like_lengths
from rl_lightning.llm.generation import write
from rl_lightning.llm.prompt import Prompter, Template
from rl_lightning.llm.sampling import Sampling
from rl_lightning.rewards.labels.labeller import Labeller
from rl_lightning.rewards.labels.questions import Question, prompt_of
from rl_lightning.rewards.labels.verdict import WHOLE, Verdict

BLOCK = 64  # questions between two answers that are kept


class WritingLabeller(Labeller):
    """Has a language model go on from the question, always by the likeliest token.

    Where a text is asked for, the answer is what was written; where a number is, what `pattern`,
    `values` and `parse` find in it.

    Args:
        model: Hub name, folder or weights package, see `rl_lightning.llm.find_model`; one that
            writes.
        template: The prompt: `{a}` and `{b}` stand for the texts of a pair, `{text}` for a single
            one. A chat is written down as lines of `role: content`. End it without a blank.
        max_new_tokens: Longest answer.
        stop: Texts that end an answer, and are no part of it, beside the model's own end.
        chat: Put the prompt into the tokenizer's chat template, as the user's message.
        pattern: See `Verdict`, as for
        values: this
        parse: and this, a function by its import path.
        layers: Transformer layers to keep; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens of a prompt; a longer one loses its beginning, with a warning.
        batch_size: Prompts that the model reads at a time.
        device: Where it computes.
        cache: See `Labeller`, as for
        on_unreadable: this.

    Raises:
        ConfigurationError: If there is no such model, or an argument is wrong.
    """

    def __init__(
        self,
        model: str,
        template: str = "{text}",
        max_new_tokens: int = 32,
        stop: list[str] | None = None,
        chat: bool = False,
        pattern: str = WHOLE,
        values: dict[str, float] | None = None,
        parse: Callable[[str], float | None] | None = None,
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 512,
        batch_size: int = 16,
        device: str = "cpu",
        cache: str | None = None,
        on_unreadable: Literal["stop", "skip"] | float = "skip",
    ) -> None:
        super().__init__(cache, "stop", on_unreadable)
        self.stop = list(stop or ())
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigurationError(f"stop must be texts, not {stop!r}")
        self.model, self.template, self.chat = model, template, chat
        self.max_new_tokens = whole("max_new_tokens", max_new_tokens, 1)
        self.read_text = Verdict(pattern, values, parse)
        self.layers, self.device = layers, device
        self.dtype: Dtype = dtype
        self.max_length = whole("max_length", max_length, 1)
        self.batch_size = whole("batch_size", batch_size, 1)

    def identity(self) -> Any:
        names = ("model", "layers", "dtype", "template", "chat", "max_length")
        rest = ("max_new_tokens", "stop")
        return ["writing", *(getattr(self, name) for name in (*names, *rest))]

    def read(self, answer: Any) -> float:
        return self.read_text(answer)

    @cached_property
    def write_on(self) -> Callable[[Sequence[str]], list[str]]:
        """What a model writes behind each of several prompts; it is loaded when asked."""
        return _Writer(self)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "write_on"}

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        prompts = [prompt_of(self.template, question) for question in questions]
        for start in range(0, len(prompts), BLOCK):
            for offset, answer in enumerate(self.write_on(prompts[start : start + BLOCK])):
                keep(start + offset, answer)


class _Writer:
    """A model and how it is asked."""

    def __init__(self, asked: WritingLabeller) -> None:
        self.sampling = Sampling(asked.max_new_tokens, 0.0, stop=asked.stop)
        self.batch_size = asked.batch_size
        self.device = torch.device(asked.device)
        self.backbone = Backbone(
            asked.model,
            layers=asked.layers,
            dtype=asked.dtype,
            max_length=asked.max_length,
            truncation_side="left",
            head=True,
        ).to(self.device)
        both, positions = self.backbone.encoder_decoder, self.backbone.positions
        most = asked.max_new_tokens
        if not both and positions is not None and asked.max_length + most > positions:
            raise ConfigurationError(
                f"max_length={asked.max_length} and max_new_tokens={most} are more than the "
                f"{positions} tokens that {asked.model} reads"
            )
        # What a template ends in matters to candidates alone, and there are none.
        end = Template("{text}\n", ["text"])
        self.prompter = Prompter(self.backbone.tokens, end, asked.chat, both)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        ids = self.prompter.prompts(prompts)
        out = [""] * len(ids)
        for chunk in like_lengths([len(row) for row in ids], self.batch_size):
            padded, mask = self.backbone.tokens.pad([ids[i] for i in chunk])
            padded, length = padded.to(self.device), mask.sum(1).to(self.device)
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                written = write(self.backbone, padded, length, self.sampling)
            rows = zip(written.ids.tolist(), written.length.tolist(), strict=True)
            own = [row[:count] for row, count in rows]
            texts = self.backbone.tokens.tokenizer.batch_decode(own, skip_special_tokens=True)
            for i, text in zip(chunk, texts, strict=True):
                out[i] = self._cut(text).strip()
        return out

    def _cut(self, text: str) -> str:
        """Up to the first text that ends it."""
        ends = [text.find(end) for end in self.sampling.stop]
        found = [end for end in ends if end >= 0]
        return text[: min(found)] if found else text
