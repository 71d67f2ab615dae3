"""From what a language model says to a number."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.rewards.labels.labeller import UnreadableError

# Nothing but the verdict, whatever marks stand around it.
WHOLE = r"^[\s\"'*`(\[]*(.+?)[\s\"'*`)\].!]*$"
VALUES = {"A": 0.0, "B": 1.0, "tie": 0.5, "yes": 1.0, "no": 0.0}


class Verdict:
    """Reads a number out of a text: what a pattern finds, by name or as it stands.

    Args:
        pattern: Regular expression; its first group, or all of it, is the verdict, and of several
            finds the last one. The default takes an answer that is nothing else.
        values: Numbers by their names in answers, in any case. What is no name must be a number.
        parse: A function of the text in place of both, which returns a number, or None for none.

    Raises:
        ConfigurationError: If the pattern is none, or a value is no number.
    """

    def __init__(
        self,
        pattern: str = WHOLE,
        values: Mapping[str, float] | None = None,
        parse: Callable[[str], float | None] | None = None,
    ) -> None:
        try:
            self.pattern = re.compile(pattern, re.IGNORECASE | re.DOTALL)
        except re.error as error:
            raise ConfigurationError(
                f"verdict: {pattern!r} is no regular expression: {error}"
            ) from None
        self.values = {}
        for name, value in (VALUES if values is None else values).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigurationError(f"values: {name!r} must be a number, not {value!r}")
            self.values[str(name).casefold()] = float(value)
        self.parse = parse

    def __call__(self, text: Any) -> float:
        """The number.

        Raises:
            UnreadableError: If there is none, or one that is not finite.
        """
        if not isinstance(text, str):
            raise UnreadableError(repr(text))
        number = self._find(text) if self.parse is None else self.parse(text)
        if number is None or not math.isfinite(number):
            raise UnreadableError(shortened(repr(text), 120))
        return float(number)

    def _find(self, text: str) -> float | None:
        found = None
        for match in self.pattern.finditer(text):
            found = match.group(1) if self.pattern.groups else match.group()
        if found is None:
            return None
        named = self.values.get(found.strip().casefold())
        if named is not None:
            return named
        try:
            return float(found)
        except ValueError:
            return None
