"""From what a language model has written to an action that there is."""

import re
from collections.abc import Sequence

from rl_lightning.core.errors import ConfigurationError, shortened

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

    def __call__(self, text: str, names: Sequence[str]) -> int | None:
        """The index of the name that `text` says, or None if it says none."""
        if self.pattern is not None:
            found = list(self.pattern.finditer(text))
            if not found:
                return None
            text = found[-1].group(1 if self.pattern.groups else 0) or ""
        said = " ".join(text.split()).strip(_EDGES).casefold()
        own = [" ".join(name.split()).strip(_EDGES).casefold() for name in names]
        if said in own:
            return own.index(said)
        for name in sorted(own, key=len, reverse=True):
            if name and said.startswith(name) and not said[len(name)].isalnum():
                return own.index(name)
        return None
