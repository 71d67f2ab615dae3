"""Answers by a language model behind an OpenAI-compatible address."""

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import Any, Literal

from rl_lightning.core.errors import ConfigurationError, RunError, check_range, whole
from rl_lightning.rewards.labels.http import RequestError, check_url, post_json
from rl_lightning.rewards.labels.labeller import MOST_FAILURES, Labeller, OnFailure
from rl_lightning.rewards.labels.questions import Question, as_data, fill
from rl_lightning.rewards.labels.verdict import WHOLE, Verdict

HIDDEN = "[api key]"
COMPARE = (
    "Here are two situations.\n\nA: {a}\n\nB: {b}\n\n"
    "Which is better? Answer with A, B or tie, and nothing else."
)


class EndpointLabeller(Labeller):
    """Asks a model by HTTP, `POST {base_url}/chat/completions`, as vLLM, llama.cpp, Ollama, OpenAI
    and most others understand it.

    Nothing is sent elsewhere. The key is read from an environment variable when a request is made,
    and stands in no log, message, cache or checkpoint; where an answer repeats it, it is cut out.

    Args:
        base_url: Such as `http://localhost:8000/v1`.
        model: As the server calls it.
        template: The user's message: `{a}` and `{b}` stand for the texts of a pair, `{text}` for a
            single one. Questions that are messages are sent as they are.
        system: A message in front of it; None for none.
        api_key_env: *Name* of the environment variable that holds the key; None sends none.
        temperature: Of sampling; 0 for the likeliest answer.
        max_tokens: Longest answer.
        extra: More entries of the request, e.g. `{seed: 1}`.
        pattern: See `Verdict`, as for
        values: this
        parse: and this, a function by its import path.
        concurrency: Most requests at a time.
        connect_timeout: Seconds until there is a connection.
        read_timeout: Seconds from then until an answer is complete.
        retries: How often a request is made again that failed by overload, a time-out, a broken
            connection or half an answer.
        backoff: Seconds before the first repetition, doubled before each further one, of which a
            random part is waited: between half and all.
        longest_wait: Most of it; a server that asks for more (`Retry-After`) has failed.
        budget: Most requests, repetitions included, of this object; None: no limit. What lies in
            the cache costs nothing.
        cache: See `Labeller`: what was paid for. Its key is the whole request and the address.
        on_failure: See `Labeller`. In `skip`, after ten failures in a row nobody is asked any more.
        on_unreadable: See `Labeller`.

    Raises:
        ConfigurationError: If an argument is wrong, or where there is no key when it is needed.
    """

    sleep: Callable[[float], None] = staticmethod(time.sleep)
    """Waits before a repetition; another one in tests."""

    def __init__(
        self,
        base_url: str,
        model: str,
        template: str = COMPARE,
        system: str | None = None,
        api_key_env: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 16,
        extra: dict[str, Any] | None = None,
        pattern: str = WHOLE,
        values: dict[str, float] | None = None,
        parse: Callable[[str], float | None] | None = None,
        concurrency: int = 8,
        connect_timeout: float = 10.0,
        read_timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        budget: int | None = None,
        cache: str | None = None,
        on_failure: OnFailure = "stop",
        on_unreadable: Literal["stop", "skip"] | float = "skip",
    ) -> None:
        super().__init__(cache, on_failure, on_unreadable)
        check_range("temperature", temperature, 0.0)
        for name, value in (("connect_timeout", connect_timeout), ("read_timeout", read_timeout)):
            check_range(name, value, 1e-3)
        check_range("backoff", backoff, 0.0)
        check_range("longest_wait", longest_wait, 0.0)
        if api_key_env is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", api_key_env):
            # Not what was given: it may be the key.
            raise ConfigurationError(
                "api_key_env must be the name of an environment variable in capital letters, such "
                "as OPENAI_API_KEY, never the key itself"
            )
        self.url = f"{check_url(base_url)}/chat/completions"
        self.model, self.template, self.system = model, template, system
        self.api_key_env = api_key_env
        self.request = {
            "model": model,
            "temperature": temperature,
            "max_tokens": whole("max_tokens", max_tokens, 1),
            **(extra or {}),
        }
        self.read_text = Verdict(pattern, values, parse)
        self.concurrency = whole("concurrency", concurrency, 1, 1000)
        self.connect_timeout, self.read_timeout = connect_timeout, read_timeout
        self.retries = whole("retries", retries, 0)
        self.backoff, self.longest_wait = backoff, longest_wait
        self.budget = None if budget is None else whole("budget", budget, 0)
        self.requests = 0
        """Requests made."""
        self._dice = random.Random()

    def identity(self) -> Any:
        return [self.url, self.request, self.system, self.template]

    def read(self, answer: Any) -> float:
        return self.read_text(answer)

    def metrics(self) -> dict[str, float]:
        return {**super().metrics(), "labels/requests": float(self.requests)}

    def body(self, question: Question) -> dict[str, Any]:
        """The request for an answer, as plain data."""
        data = as_data(question)
        if isinstance(data, list) and isinstance(data[0], Mapping):
            messages = data
        else:
            messages = [{"role": "user", "content": fill(self.template, question)}]
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        return {**self.request, "messages": messages}

    # --- asking -------------------------------------------------------------------------------

    def ask(self, questions: Sequence[Question], keep: Callable[[int, Any], None]) -> None:
        key = self._key()
        bodies = [self.body(question) for question in questions]  # all of them, before one is paid
        lock, interrupted, in_a_row = Lock(), Event(), 0
        waiting: Iterator[int] = iter(range(len(bodies)))
        running: set[Future[None]] = set()
        stop: Exception | None = None

        def answer(index: int) -> None:
            text = self._answer(bodies[index], key, lock, interrupted)
            keep(index, self._without_key(text, key))

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="labels")
        try:
            while True:
                while stop is None and len(running) < self.concurrency:
                    index = next(waiting, None)
                    if index is None:
                        break
                    running.add(pool.submit(answer, index))
                if not running:
                    break
                # After a failure too: what has been asked for is paid for, and kept.
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    in_a_row = 0 if error is None else in_a_row + 1
                    if error is not None and not isinstance(error, RequestError):
                        stop = stop if isinstance(stop, RunError) else _as_exception(error)
                    elif error is not None and stop is None:
                        stop = self._verdict_on(error, in_a_row)
        finally:
            # Interrupted: no new requests, and the answers under way are still kept.
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if stop is not None and not isinstance(stop, RequestError):
            raise stop

    def _verdict_on(self, error: Any, in_a_row: int) -> Exception | None:
        """What comes of a failure: an error, no more questions (the failure), or nothing."""
        if self.on_failure == "stop":
            return RunError(
                f"{self.url} gave no answer: {error}. The answers before are kept"
                f"{'' if self.answers is None else f' in {self.answers.path}'}; start again to "
                "go on, or set on_failure: skip"
            )
        return error if error.hopeless or in_a_row >= MOST_FAILURES else None

    def _answer(self, body: Any, key: str | None, lock: Lock, interrupted: Event) -> str:
        """One answer, if need be after several requests."""
        for attempt in range(self.retries + 1):
            with lock:
                if self.budget is not None and self.requests >= self.budget:
                    raise RequestError(
                        f"the budget of {self.budget} requests is used up", hopeless=True
                    )
                self.requests += 1
            try:
                reply = post_json(self.url, body, key, self.connect_timeout, self.read_timeout)
                return _content(reply)
            except RequestError as error:
                told = self._without_key(str(error), key)
                failed = RequestError(told, error.again, error.hopeless, error.wait)
            if not failed.again or attempt == self.retries or interrupted.is_set():
                raise failed
            seconds = min(self.backoff * 2**attempt, self.longest_wait)
            seconds *= 0.5 + 0.5 * self._dice.random()
            if failed.wait is not None:
                if failed.wait > self.longest_wait:
                    raise RequestError(
                        f"{failed}; it asks to wait {failed.wait:.0f} s, and longest_wait is "
                        f"{self.longest_wait:g} s"
                    )
                seconds = max(seconds, failed.wait)
            self.sleep(seconds)
        raise AssertionError("a loop that always returns or raises")

    # --- the key ------------------------------------------------------------------------------

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigurationError(
                f"api_key_env: the environment variable {self.api_key_env} is not set; export it, "
                "or leave api_key_env out for a server that asks for no key"
            )
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                f"api_key_env: what {self.api_key_env} holds is no key: it has blanks or letters "
                "that no header can hold"
            )
        return key

    @staticmethod
    def _without_key(text: str, key: str | None) -> str:
        return text if key is None else text.replace(key, HIDDEN)


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, OSError):
        return RunError(f"the answers cannot be kept: {error}")
    return error if isinstance(error, Exception) else RunError(repr(error))


def _content(reply: Any) -> str:
    """What the model has said."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise RequestError("the answer holds no choices[0].message.content", again=True)
    return content
