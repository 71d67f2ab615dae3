"""Whether a completion says what it should: word by word, or by a pattern."""

from collections.abc import Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.rewards.completions.reward import (
    CompletionReward,
    Prompt,
    column_of,
    compiled,
    last_found,
)


class ExactMatch(CompletionReward):
    """1 where a completion is the answer that the data has, 0 elsewhere.

    A row whose answer is None is not judged.

    Args:
        column: Holds the answers: texts or numbers.
        strip: Whether white space around both does not count.
        ignore_case: Whether capital letters do not.
        pattern: Regular expression of what is compared in the completion: what it finds last, its
            first group or else all of it; where it finds nothing, the completion is worth 0. An
            empty one takes the completion as it is. One that needs ages for odd texts is its
            writer's risk.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If the pattern is none; when judging, if there is no such column, or an
            answer is neither text nor number.
    """

    def __init__(
        self,
        column: str = "answer",
        strip: bool = True,
        ignore_case: bool = False,
        pattern: str = "",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.column, self.strip, self.ignore_case = column, strip, ignore_case
        self.pattern = compiled("pattern", pattern)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        answers = column_of(columns, self.column, self.label)
        return [self._same(*both) for both in zip(completions, answers, strict=True)]

    def _same(self, completion: str, answer: Any) -> float | None:
        if answer is None:
            return None
        if not isinstance(answer, str | int | float):
            raise ConfigurationError(
                f"column {self.column!r} must hold texts or numbers, not "
                f"{shortened(repr(answer), 80)}"
            )
        said = last_found(self.pattern, completion)
        return 0.0 if said is None else self._worth(self._plain(said), self._plain(str(answer)))

    def _worth(self, said: str, answer: str) -> float:
        return float(said == answer)

    def _plain(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.ignore_case else text


class PartialMatch(ExactMatch):
    """How much of the answer that the data has a completion says in its place: from 0 to 1.

    The share of characters that are the same in both, each compared with what stands in the same
    place of the other, of the longer one's. A model that is never wholly right yet learns from it,
    where `ExactMatch` pays nothing. Its arguments are `ExactMatch`'s.
    """

    def _worth(self, said: str, answer: str) -> float:
        if said == answer:  # both may be empty
            return 1.0
        same = sum(one == other for one, other in zip(said, answer, strict=False))
        return same / max(len(said), len(answer))


class RegexMatch(CompletionReward):
    """1 where a pattern is found in a completion, 0 elsewhere.

    Args:
        pattern: Regular expression; its dot stands for line breaks, too. One that needs ages for
            odd texts is its writer's risk.
        full: Whether it must be the whole completion.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If the pattern is none.
    """

    def __init__(self, pattern: str, full: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        self.pattern, self.full = compiled("pattern", pattern), full

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        found = self.pattern.fullmatch if self.full else self.pattern.search
        return [float(found(completion) is not None) for completion in completions]
