"""From what a language model has written to an action that there is."""

import re
from collections.abc import Sequence

from rl_lightning.core.errors import ConfigurationError, RunError, shortened

_EDGES = " \t\n\r.,;:!?\"'`*()[]<>"


class ActionParser:
    """Finds an action's name in a text.

    White space, case and punctuation around it do not matter. Names are tried from the longest on,
    and one that the text merely begins with counts too: "north, because …" is "north", and
    "northern" is not.

    Args:
        pattern: A regular expression, whose first group (or, without groups, whole match) is what
            to read, such as `<answer>(.*?)</answer>`; of several matches the last. None: the whole
            text.

    Raises:
        ConfigurationError: If it is no regular expression.
    """

    def __init__(self, pattern: str | None = None) -> None:
        try:
            self.pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigurationError(
                f"answer={shortened(pattern, 60)!r} is no regular expression: {error}"
            ) from None

    def said_by(self, names: Sequence[str]) -> list[str]:
        """What a text must say for each of the names.

        Raises:
            RunError: If nothing would say one of them, or the same two.
        """
        own = [_plain(name) for name in names]
        for name, said in zip(names, own, strict=True):
            if not said or own.count(said) > 1:
                why = "differs from another one by these alone" if said else "is nothing else"
                raise RunError(
                    f"what is written is read without case and marks, and the action "
                    f"{shortened(name, 60)!r} {why}: give it another name"
                )
        return own

    def answer(self, text: str) -> str | None:
        """What is to be read of `text`, without white space around it; None if it is not there."""
        if self.pattern is None:
            return text.strip()
        found = list(self.pattern.finditer(text))
        if not found:
            return None
        return (found[-1].group(1 if self.pattern.groups else 0) or "").strip()

    def __call__(self, text: str, names: Sequence[str]) -> int | None:
        """The index of the name that `text` says, or None if it says none."""
        answer = self.answer(text)
        if answer is None:
            return None
        said, own = _plain(answer), self.said_by(names)
        if said in own:
            return own.index(said)
        for name in sorted(own, key=len, reverse=True):
            if name and said.startswith(name) and not said[len(name)].isalnum():
                return own.index(name)
        return None


def _plain(text: str) -> str:
    """A text without case, marks at its ends, and more than single spaces."""
    return " ".join(text.split()).strip(_EDGES).casefold()
