"""Answers by the words of a text, by a Python function, and by a file."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rl_lightning.core.errors import (
    ConfigurationError,
    RunError,
    check_finite,
    check_range,
    shortened,
)
from rl_lightning.core.names import public_path
from rl_lightning.rewards.labels.labeller import Labeller, OnFailure
from rl_lightning.rewards.labels.questions import Question, as_data, digest


class RuleLabeller(Labeller):
    """Answers by a function of the question.

    Args:
        function: Takes a text, a pair of texts or a list of messages; returns a number (a text
            where one is asked for), or None where it has no answer (`on_unreadable`). In a
            configuration its import path, `my_module.my_function`.
        cache: See `Labeller`. Rules are fast: leave it out, or change the file with the function,
            which is told from others by its name alone.
        on_failure: See `Labeller`; an exception of the function is a failure.
        on_unreadable: See `Labeller`.
    """

    def __init__(
        self,
        function: Callable[[Any], float | str | None],
        cache: str | None = None,
        on_failure: OnFailure = "stop",
        on_unreadable: Literal["stop", "skip"] | float = "skip",
    ) -> None:
        super().__init__(cache, on_failure, on_unreadable)
        if not callable(function):
            raise ConfigurationError(
                f"function must be a function or its import path, not {function!r}"
            )
        self.function = function

    def identity(self) -> Any:
        named = hasattr(self.function, "__qualname__")
        return ["rule", public_path(self.function if named else type(self.function))]

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        for index, question in enumerate(questions):
            try:
                answer: Any = self.function(question)
            except Exception as error:
                if self.on_failure == "stop":
                    raise RunError(
                        f"the rule {self.identity()[1]} failed on "
                        f"{shortened(repr(question), 120)}: {type(error).__name__}: "
                        f"{shortened(error)}"
                    ) from error
                continue
            # NumPy's and torch's numbers, too.
            keep(index, answer.item() if hasattr(answer, "item") else answer)


class WordLabeller(Labeller):
    """Answers by counting words: a text's score is the sum of its words' weights.

    Of a pair the text with the higher score is the better one. A single text's answer is its score.
    Capital letters do not matter; a word of several, such as `far north`, is looked for as it
    stands, and a word inside another is none.

    Args:
        weights: Of each word that counts, such as `{near: 1, far: -1}`.
        margin: A pair whose scores differ by no more is a tie.

    Raises:
        ConfigurationError: If there are no words, or a weight is no number.
    """

    writes = False

    def __init__(self, weights: dict[str, float], margin: float = 0.0) -> None:
        super().__init__()
        if not weights or not all(isinstance(w, str) and w.strip() for w in weights):
            raise ConfigurationError(
                f"weights must be numbers by word, a word of digits in quotes, not {weights!r}"
            )
        for word, weight in weights.items():
            check_finite(f"weights: {word}", weight)
        check_range("margin", margin, 0.0)
        self.weights, self.margin = dict(weights), margin
        self._words = [
            (re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE), weight)
            for word, weight in weights.items()
        ]

    def identity(self) -> Any:
        return ["words", self.weights, self.margin]

    def score(self, text: str) -> float:
        """Σ weight · how often the word stands there."""
        return float(sum(weight * len(word.findall(text)) for word, weight in self._words))

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        for index, question in enumerate(questions):
            data = as_data(question)
            if isinstance(data, str):
                keep(index, self.score(data))
                continue
            if not all(isinstance(part, str) for part in data):
                raise ConfigurationError("WordLabeller compares texts, and reads no chats")
            first, second = map(self.score, data)
            keep(index, 0.5 if abs(first - second) <= self.margin else float(second > first))


class FileLabeller(Labeller):
    """Answers out of a file.

    Args:
        path: JSONL: `{"question": …, "answer": …}` a line, where the question is a text, a list of
            two texts or a list of messages, and the answer a number or a text, as it is asked for.
            The cache of another labeller is such a file. Of a question that stands there twice the
            last answer counts; a pair the other way round is another question.
        missing: What a question that is not there means: `stop`, `skip`, or a number to answer.
        on_unreadable: See `Labeller`.

    Raises:
        ConfigurationError: If there is no such file, or a line is no such pair.
    """

    def __init__(
        self,
        path: str,
        missing: Literal["stop", "skip"] | float = "stop",
        on_unreadable: Literal["stop", "skip"] | float = "skip",
    ) -> None:
        super().__init__(None, "skip" if missing == "skip" else "stop", on_unreadable)
        if missing not in ("stop", "skip"):
            check_finite("missing ('stop', 'skip' or a number)", missing)
        self.path, self.missing = path, missing
        self._given = {
            digest(as_data(row["question"])): row["answer"]
            for row in read_rows(path, ("question", "answer"))
        }

    def identity(self) -> Any:
        return ["file", self.path]

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        for index, question in enumerate(questions):
            key = digest(as_data(question))
            if key in self._given:
                keep(index, self._given[key])
            elif self.missing == "stop":
                raise RunError(
                    f"{self.path} has no answer to {shortened(repr(question), 120)}; add it, or "
                    "set missing to skip or to a number"
                )
            elif self.missing != "skip":
                keep(index, float(self.missing))


def read_rows(path: str | Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The lines of a JSONL file, each an object that has these entries; empty lines are none.

    Raises:
        ConfigurationError: If there is no such file, if one of its lines is not so, or has an entry
            twice.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigurationError(f"{path}: there is no such file")
    rows = []
    with file.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = _parsed(line, f"{path}, line {number}")
                if not isinstance(row, dict) or any(name not in row for name in names):
                    wanted = " and ".join(map(repr, names)) or "entries"
                    raise ConfigurationError(
                        f"{path}, line {number}: {shortened(line, 80)} is no JSON object with "
                        f"{wanted}"
                    )
                rows.append(row)
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path} is no text in UTF-8: {error.reason}") from error
    return rows


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=partial(once, where))
    except ConfigurationError:
        raise
    except (ValueError, RecursionError):
        return None


def once(where: str, entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON object, for `object_pairs_hook`.

    Raises:
        ConfigurationError: If one stands there twice.
    """
    names = [name for name, _ in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(f"{where}: {twice[0]!r} stands there twice; leave one out")
    return dict(entries)
