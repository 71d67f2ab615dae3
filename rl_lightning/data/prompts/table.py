"""Prompts by number, and what else the data say of each."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.rewards.completions import Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")


class Prompts:
    """N prompts, texts or chats, with columns: an answer to compare with, say.

    A subclass implements `__len__`, `names`, `prompt` and `columns`.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def names(self) -> Sequence[str]:
        """Of the columns."""
        raise NotImplementedError

    def prompt(self, index: int) -> Prompt:
        """A text, or a list of messages with `role` and `content`."""
        raise NotImplementedError

    def columns(self, index: int) -> dict[str, Any]:
        """What else the data say of a prompt: all columns, None where there is nothing."""
        raise NotImplementedError

    def number(self, index: int) -> int:
        """What messages call a prompt: its place in what was read, from one on."""
        return index + 1

    def batch(self, rows: Sequence[int]) -> tuple[list[Prompt], dict[str, list[Any]]]:
        """Several prompts, and their columns, each a list of as many."""
        prompts, columns = [], {name: [] for name in self.names}
        for row in rows:
            prompts.append(self.prompt(row))
            for name, value in self.columns(row).items():
                columns[name].append(value)
        return prompts, columns

    @cached_property
    def fingerprint(self) -> str:
        """What tells these prompts and columns from others, 32 hexadecimal digits."""
        content = hashlib.blake2b(digest_size=16)
        for row in range(len(self)):
            where = f"data.prompts: prompt {self.number(row)}"
            content.update(as_json([self.prompt(row), self.columns(row)], where) + b"\n")
        return content.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} prompts)"


class RowPrompts(Prompts):
    """Prompts out of rows: texts, chats, or mappings with a prompt and columns.

    Args:
        rows: Anything with a length and rows by number, such as a list or a Hugging Face dataset.
        column: Of the mappings, which entry is the prompt; all others are columns.
        where: What messages call the rows.

    Raises:
        ConfigurationError: If there are none, or a row has no prompt that is text or chat.
    """

    def __init__(self, rows: Any, column: str = "prompt", where: str = "data.prompts") -> None:
        if not len(rows):
            raise ConfigurationError(f"{where} is empty: there is no prompt in it")
        self.rows, self.column = rows, column
        names: dict[str, None] = {}
        for number, row in enumerate(rows, 1):
            if isinstance(row, Mapping):
                if column not in row:
                    raise ConfigurationError(
                        f"{where}: row {number} has no {column!r}, but "
                        f"{', '.join(map(str, row)) or 'nothing'}; say which column is the prompt, "
                        f"FilePrompts(dataset, column={_likeliest(row)!r})"
                    )
                names |= dict.fromkeys(row)
                row = row[column]
            check_prompt(row, f"{where}: row {number}")
        names.pop(column, None)
        self._names = list(names)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> Sequence[str]:
        return self._names

    def prompt(self, index: int) -> Prompt:
        row = self.rows[index]
        return row[self.column] if isinstance(row, Mapping) else row

    def columns(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {name: row.get(name) if isinstance(row, Mapping) else None for name in self.names}


class PickedPrompts(Prompts):
    """Some of a source's prompts.

    Args:
        source: Where they stand.
        rows: Their numbers there.
    """

    def __init__(self, source: Prompts, rows: Sequence[int]) -> None:
        self.source, self.rows = source, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> Sequence[str]:
        return self.source.names

    def prompt(self, index: int) -> Prompt:
        return self.source.prompt(self.rows[index])

    def columns(self, index: int) -> dict[str, Any]:
        return self.source.columns(self.rows[index])

    def number(self, index: int) -> int:
        return self.source.number(self.rows[index])


def check_prompt(prompt: Any, where: str) -> None:
    """Refuse what is neither a text nor a chat.

    Raises:
        ConfigurationError: That says where it stands.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ConfigurationError(f"{where}: the prompt is empty; leave that row out")
        check_encodable(prompt, f"{where}: the prompt")
        return
    is_chat = isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and len(prompt) > 0
    if not is_chat or not all(isinstance(message, Mapping) for message in prompt):
        raise ConfigurationError(
            f"{where}: a prompt is a text, or a list of messages with role and content, not "
            f"{shortened(repr(prompt), 80)}"
        )
    messages: Any = prompt
    for message in messages:
        if message.get("role") not in ROLES:
            raise ConfigurationError(
                f"{where}: the role of a message must be one of {', '.join(ROLES)}, not "
                f"{message.get('role')!r}"
            )
        if not isinstance(message.get("content"), str):
            raise ConfigurationError(
                f"{where}: the content of a message must be a text, not "
                f"{shortened(repr(message.get('content')), 80)}"
            )
        check_encodable(message["content"], f"{where}: the content of a message")


def check_encodable(text: str, what: str) -> None:
    """Refuse a text with half a character in it, which JSON can say and no tokenizer reads.

    Args:
        text: A text.
        what: What messages call it, and where it stands.

    Raises:
        ConfigurationError: That says so.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{what} holds {text[error.start]!a} at {error.start + 1}, half of a character: "
            "mend it, or leave that row out"
        ) from None


def _likeliest(row: Mapping[str, Any]) -> Any:
    """Which entry of a row may be its prompt."""
    return next((name for name, value in row.items() if isinstance(value, str)), "question")


def as_json(value: Any, where: str = "data.prompts") -> bytes:
    """Plain data as bytes, the same for equal ones; of anything else what it says of itself.

    Args:
        value: Anything.
        where: What messages call it.

    Raises:
        ConfigurationError: If it holds itself, or is nested too deeply.
    """
    try:
        try:
            return json.dumps(value, sort_keys=True, default=str).encode()
        except TypeError:  # names of several types have no order
            return json.dumps(_with_texts_as_names(value), sort_keys=True, default=str).encode()
    except (ValueError, RecursionError):
        raise ConfigurationError(
            f"{where}: a value holds itself, or is nested too deeply; leave it out"
        ) from None


def _with_texts_as_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {repr(name): _with_texts_as_names(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_texts_as_names(inner) for inner in value]
    return value
