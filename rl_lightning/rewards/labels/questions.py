"""What labellers are asked: a text, two texts to compare, or the messages of a chat."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened

Message = Mapping[str, str]
Question = str | tuple[str, str] | Sequence[Message]


def as_data(question: Question) -> Any:
    """A question as JSON has it: a text, a list of two texts, or a list of messages.

    Raises:
        ConfigurationError: If it is none of the three.
    """
    if isinstance(question, str):
        return question
    parts: list[Any] = list(question) if isinstance(question, Sequence) else []
    if len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return parts
    if parts and all(isinstance(part, Mapping) for part in parts):
        messages: list[dict[str, Any]] = [dict(part) for part in parts]
        if all(isinstance(m.get("role"), str) and "content" in m for m in messages):
            return messages
    raise ConfigurationError(
        f"a question is a text, a pair of texts or a list of messages with role and content, not "
        f"{shortened(repr(question), 120)}"
    )


def digest(*parts: Any) -> str:
    """What tells equal plain data from other data, as 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fill(template: str, question: Question) -> str:
    """A template with a question's texts in it: `{text}` for one, `{a}` and `{b}` for two.

    Texts are put in as they are, braces included.

    Raises:
        ConfigurationError: If the template has no place for them, or the question is a chat.
    """
    data = as_data(question)
    if isinstance(data, str):
        places = {"text": data}
    elif isinstance(data[0], str):
        places = dict(zip("ab", data, strict=True))
    else:
        raise ConfigurationError("a question of messages needs no template; give texts or pairs")
    if missing := [f"{{{name}}}" for name in places if f"{{{name}}}" not in template]:
        kind = "one text" if "text" in places else "a pair of texts"
        raise ConfigurationError(
            f"template: {shortened(repr(template), 80)} has no {' and '.join(missing)}, where a "
            f"question of {kind} would stand"
        )
    # Not one after the other: a text may hold `{b}` itself.
    pieces: list[str] = [template]
    for name in places:
        mark = f"{{{name}}}"
        cut: list[str] = []
        for index, piece in enumerate(pieces):
            if index % 2:  # a mark found before
                cut.append(piece)
                continue
            for number, part in enumerate(piece.split(mark)):
                cut += [name, part] if number else [part]
        pieces = cut
    return "".join(places[p] if i % 2 else p for i, p in enumerate(pieces))


def prompt_of(template: str, question: Question) -> str:
    """What a language model reads of a question: its template filled in, or of a chat a line
    `role: content` for each message and one that its answer goes on from."""
    data = as_data(question)
    if isinstance(data, list) and isinstance(data[0], Mapping):
        lines = [f"{message['role']}: {message['content']}" for message in data]
        return "\n".join([*lines, "assistant:"])
    return fill(template, question)
