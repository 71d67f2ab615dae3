"""The protocol between questions about observations and whoever answers them."""

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args

from tqdm import tqdm

from rl_lightning.core.answer_file import AnswerFile
from rl_lightning.core.errors import ConfigurationError, RunError, check_finite, shortened
from rl_lightning.rewards.labels.questions import Question, as_data, digest

OnFailure = Literal["stop", "skip"]
T = TypeVar("T")
MOST_FAILURES = 10  # in a row, then nobody is asked any more


class UnreadableError(ValueError):
    """An answer that is not what was asked for. No defect of the run: it is counted."""


class Labeller:
    """Answers questions with numbers, or with texts (`texts`), each different question once.

    A subclass implements `ask` and `identity`, and `read` where answers are not numbers already.
    Whatever is answered is kept as soon as it arrives, so that nothing is paid for twice, and read
    afterwards: a better way of reading asks nothing again.

    Of a pair the answer is which text is the better one: 0 the first, 1 the second, 0.5 neither,
    and what lies in between for how sure that is.

    Args:
        cache: JSONL file of answers, see `AnswerFile`; runs that share it ask each question once.
            None: answers last as long as this object.
        on_failure: What an answer that cannot be had means: `stop` the run, or `skip` the question.
        on_unreadable: What an answer that is no number means: `stop`, `skip`, or a number to take
            for it; where texts are asked for, a number is as `skip`.

    Raises:
        ConfigurationError: If an argument is none of these.
    """

    writes = True
    """Whether there may be texts among its answers."""

    def __init__(
        self,
        cache: str | None = None,
        on_failure: OnFailure = "stop",
        on_unreadable: Literal["stop", "skip"] | float = "skip",
    ) -> None:
        if on_failure not in get_args(OnFailure):
            raise ConfigurationError(f"on_failure must be 'stop' or 'skip', not {on_failure!r}")
        if on_unreadable not in ("stop", "skip"):
            check_finite("on_unreadable ('stop', 'skip' or a number)", on_unreadable)
        self.answers = None if cache is None else AnswerFile(cache)
        self.on_failure: OnFailure = on_failure
        self.on_unreadable = on_unreadable
        self.progress = True
        """Whether long work shows a bar."""
        self.counts = dict.fromkeys(("asked", "remembered", "unreadable", "failed"), 0)
        """Questions since the beginning, each different one of a call once."""
        self._known: dict[str, Any] = {}

    # --- what a subclass says -----------------------------------------------------------------

    def identity(self) -> Any:
        """What answers depend on beside the question, as plain data."""
        raise NotImplementedError

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        """Get answers.

        Args:
            questions: All of them different.
            keep: To be called with a question's index and its answer, plain data, when it is there;
                from any thread. A question without an answer, in `skip`, is left out.

        Raises:
            RunError: In `stop`, where one cannot be answered.
        """
        raise NotImplementedError

    def read(self, answer: Any) -> float:
        """An answer as a number.

        Raises:
            UnreadableError: If it is none.
        """
        if isinstance(answer, bool | int | float) and math.isfinite(answer):
            return float(answer)
        raise UnreadableError(repr(answer))

    # --- what everybody calls -----------------------------------------------------------------

    def __call__(self, questions: Sequence[Question]) -> list[float | None]:
        """Answer a batch.

        Args:
            questions: Texts, pairs of texts, or chats.

        Returns:
            Of each, in their order, a finite number, or None where there is no answer.

        Raises:
            RunError: See `on_failure` and `on_unreadable`.
        """
        return self._answered(questions, self._number)

    def texts(self, questions: Sequence[Question]) -> list[str | None]:
        """Answer a batch in words: what whoever was asked has said, as it stands.

        Args:
            questions: Texts, pairs of texts, or chats.

        Returns:
            Of each, in their order, a text, or None where there is no answer.

        Raises:
            ConfigurationError: If answers are numbers always.
            RunError: See `on_failure` and `on_unreadable`.
        """
        if not self.writes:
            raise ConfigurationError(
                f"{type(self).__name__} answers with numbers: where texts are asked for, give a "
                "RuleLabeller, FileLabeller, WritingLabeller or EndpointLabeller"
            )
        return self._answered(questions, self._text)

    def _answered(self, questions: Sequence[Question], read: Callable[[str], T]) -> list[T]:
        """Ask what is not known yet, and read all answers."""
        identity = self.identity()
        data = [as_data(question) for question in questions]
        keys = [digest(identity, one) for one in data]
        different = dict(zip(keys, zip(questions, data, strict=True), strict=True))
        if self.answers is not None:
            self.answers.refresh()
            self._known = self.answers.known
        todo = [key for key in different if key not in self._known]
        self.counts["remembered"] += len(different) - len(todo)
        self.counts["asked"] += len(todo)
        if todo:
            self._ask(todo, different)
        found = {key: read(key) for key in different}
        return [found[key] for key in keys]

    def _ask(self, keys: Sequence[str], different: dict[str, tuple[Question, Any]]) -> None:
        lock = threading.Lock()
        told = {"desc": "labelling", "unit": " questions", "delay": 2.0, "leave": False}
        bar = tqdm(total=len(keys), disable=not self.progress, **told)

        def keep(index: int, answer: Any) -> None:
            key = keys[index]
            if self.answers is not None:
                self.answers.keep(key, different[key][1], answer)
            with lock:
                self._known.setdefault(key, answer)
                bar.update()

        with bar:
            self.ask([different[key][0] for key in keys], keep)
        missing = sum(key not in self._known for key in keys)
        self.counts["failed"] += missing
        if missing:
            warnings.warn(
                f"{type(self).__name__}: {missing} of {len(keys)} questions have no answer; the "
                "run goes on without them",
                stacklevel=4,
            )

    def _number(self, key: str) -> float | None:
        if key not in self._known:
            return None
        try:
            return self.read(self._known[key])
        except UnreadableError as error:
            self._count_unreadable(error, "number")
            skips = self.on_unreadable in ("stop", "skip")
            return None if skips else float(self.on_unreadable)

    def _text(self, key: str) -> str | None:
        answer = self._known.get(key)
        if key in self._known and not isinstance(answer, str):
            self._count_unreadable(repr(answer), "text")
        return answer if isinstance(answer, str) else None

    def _count_unreadable(self, answer: Any, kind: str) -> None:
        self.counts["unreadable"] += 1
        if self.on_unreadable == "stop":
            raise RunError(
                f"{type(self).__name__}: the answer {shortened(answer, 120)} is no {kind}; ask in "
                "other words, or set on_unreadable to skip"
                f"{' or to a number' if kind == 'number' else ''}"
            ) from None

    def metrics(self) -> dict[str, float]:
        """What was asked since the beginning."""
        return {f"labels/{name}": float(count) for name, count in self.counts.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
