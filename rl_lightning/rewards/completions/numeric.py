"""Whether a completion comes to the right number."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from rl_lightning.core.errors import ConfigurationError, check_range, shortened
from rl_lightning.rewards.completions.reward import (
    CompletionReward,
    Prompt,
    column_of,
    compiled,
    last_found,
)

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]}}])[-+−])?  # not of a difference, such as 5-3 and 5 - 3
    (?:[$€£]\s?)?
    (?:
        \\[dt]?frac\{{(?P<over>\d+)\}}\{{(?P<under>\d+)\}}
        | (?<![\w.])(?P<number>{_DIGITS})
          (?:\s?/\s?(?P<part>\d+)(?![\d/.]) | [eE](?P<power>[-+]?\d{{1,3}})(?!\w))?
    )
    \s?(?P<percent>\\?%)?
    """,
    re.VERBOSE,
)
_LONGEST = 400  # characters of a number; longer ones are none


class Number(NamedTuple):
    """A number that a text holds, as exact as it stands there."""

    value: Fraction
    percent: bool


def last_number(text: str) -> Number | None:
    """The last number of a text; None if it holds none.

    Read are signs, commas between thousands, decimals, powers of ten (`1.5e3`), fractions (`3/4`,
    `\\frac{3}{4}`), currencies before them and percents behind. The digits of a word (`x2`) are no
    number, and the minus of a difference (`5-3`) no sign.
    """
    found = None
    for match in _NUMBER.finditer(text):
        found = _value(match) or found
    return found


def _value(match: re.Match[str]) -> Number | None:
    if len(match.group()) > _LONGEST:
        return None
    part = match.groupdict()
    under = int(part["under"] or part["part"] or 1)
    if not under:
        return None
    value = Fraction((part["over"] or part["number"]).replace(",", "")) / under
    value *= Fraction(10) ** int(part["power"] or 0)
    negative = (part["sign"] or "").strip() in ("-", "−")
    return Number(-value if negative else value, part["percent"] is not None)


class NumericAnswer(CompletionReward):
    """1 where the number of a completion is that of the answer, 0 elsewhere.

    Numbers are compared exactly as they stand, so `0.50`, `1/2` and `.5` are one. Where one of two
    is in percents, the other may be as well or not: `50%` is both 50 and 0.5. Which numbers there
    are, see `last_number`. A row whose answer is None is not judged.

    Args:
        column: Holds the answers: numbers, or texts whose last number counts, such as `#### 72`.
        tolerance: Largest difference, as a share of the answer, of answers below 1 as it is.
        pattern: Regular expression of where the number stands in the completion: the last number of
            what it finds last, its first group or else all of it. An empty one: the last number of
            the completion. One that needs ages for odd texts is its writer's risk.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If the pattern is none or the tolerance negative; when judging, if there
            is no such column, or an answer holds no number.
    """

    def __init__(
        self,
        column: str = "answer",
        tolerance: float = 1e-6,
        pattern: str = "",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        check_range("data.rewards: tolerance", tolerance, 0.0)
        self.column, self.tolerance = column, Fraction(tolerance)
        self.pattern = compiled("pattern", pattern)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        answers = column_of(columns, self.column, self.label)
        return [self._right(*both) for both in zip(completions, answers, strict=True)]

    def _right(self, completion: str, answer: Any) -> float | None:
        if answer is None:
            return None
        wanted = last_number(str(answer))
        if wanted is None:
            raise ConfigurationError(
                f"column {self.column!r} must hold numbers, or texts with one, not "
                f"{shortened(repr(answer), 80)}"
            )
        said = last_found(self.pattern, completion)
        number = None if said is None else last_number(said)
        if number is None:
            return 0.0
        one, other = number.value, wanted.value
        ways = [(one, other)]
        if number.percent != wanted.percent:
            ways.append((one / 100, other) if number.percent else (one, other / 100))
        return float(any(abs(a - b) <= self.tolerance * max(1, abs(b)) for a, b in ways))
