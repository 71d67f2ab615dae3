"""The contract between what was written and what is paid for it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, check_finite
from rl_lightning.rewards.labels.questions import Message, prompt_of
from rl_lightning.rewards.make import name_of

Prompt = str | Sequence[Message]


class CompletionReward(Described):
    """What completions are worth: a number for each of N.

    A subclass implements `__call__`, as a function or as `async def`, and hands `weight` and `name`
    on (`**shared`). No completion is ever run as code.

    Args:
        weight: Its weight in the sum; 0 only has it logged.
        name: What it is called in logs; None: its class's name, in lower case.

    Raises:
        ConfigurationError: If the weight is not finite or the name no name.
    """

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if weight is None or isinstance(weight, bool):
            raise ConfigurationError(
                f"data.rewards: weight must be a finite number, not {weight!r}"
            )
        check_finite("data.rewards: weight", weight)
        if name is not None and not (isinstance(name, str) and name.strip() and "/" not in name):
            raise ConfigurationError(
                f"data.rewards: name must be a word without '/', not {name!r}; it names a curve"
            )
        self.weight, self.name = float(weight), name

    @property
    def own_name(self) -> str:
        """Its name where none was given."""
        return name_of(type(self))

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> Any:
        """Judge N completions.

        Args:
            prompts: Texts, or chats: lists of messages with `role` and `content`.
            completions: Texts.
            **columns: Lists of N: whatever the data holds beside its prompts, and of each
                completion its tokens, `completion_ids`, and whether it came to an end of its own,
                `ended`. A subclass may name those it wants and leave out the rest.

        Returns:
            N numbers, before their weight; None where it does not apply: that counts as 0.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Values to log since the last call, each as `reward/<name>/<key>`."""
        return {}


def column_of(columns: Mapping[str, Any], name: str, label: str) -> Any:
    """A column that a reward cannot do without, `[N]`.

    Raises:
        ConfigurationError: That says which there are.
    """
    if name not in columns:
        raise ConfigurationError(
            f"{label} needs a column {name!r} beside the prompts, and there "
            + (f"are {', '.join(sorted(columns))}" if columns else "is none")
        )
    return columns[name]


def as_text(prompt: Prompt) -> str:
    """A prompt as one text: of a chat a line `role: content` for each message, then `assistant:`.

    Raises:
        ConfigurationError: If it is neither text nor chat.
    """
    return prompt if isinstance(prompt, str) else prompt_of("", prompt)


def compiled(name: str, pattern: str) -> re.Pattern[str]:
    """A regular expression whose dot stands for line breaks, too.

    Raises:
        ConfigurationError: That names the argument, if it is none.
    """
    try:
        return re.compile(pattern, re.DOTALL)
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"{name}: {pattern!r} is no regular expression: {error}") from None


def last_found(pattern: re.Pattern[str], text: str) -> str | None:
    """What a pattern finds last, its first group or else all of it; None if it finds nothing.

    An empty pattern finds the text as it is.
    """
    if not pattern.pattern:
        return text
    found = None
    for match in pattern.finditer(text):
        found = match.group(1) if pattern.groups else match.group()
    return found
