"""The exceptions whose message is the whole explanation."""

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any


class ConfigurationError(ValueError):
    """A wrong argument, an impossible combination, or a file that is not what it should be.

    Its message is the whole explanation. The command line prints the message alone and exits with
    status 2; anything else it lets through as a traceback, since it would be a defect of the
    library.
    """


class RunError(RuntimeError):
    """A run that cannot go on, through no mistake in its configuration: an environment, a disk or
    the numbers failed.

    Its message is the whole explanation: what failed, where and when, and the way out. The command
    line prints the message alone and exits with status 1. Checkpoints written before stay.
    """


class FormerWarning(FutureWarning):
    """What was said works for one more version; the message names what takes its place.

    No DeprecationWarning, which Python shows to nobody but the main script.
    """


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Refuse a hyper-parameter outside `[low, high]`, NaN and infinity; None passes.

    Infinity is refused even where `high` is: what is switched off or unlimited is None, or left
    out, and a product of infinity and 0 is NaN.

    Raises:
        ConfigurationError: That names the argument, the value and the range.
    """
    if value is None:
        return
    if isinstance(value, str):
        raise ConfigurationError(f"{name} must be a number, not {value!r}")
    if not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigurationError(f"{name} must be {allowed}, not {value}")
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} must be finite, not {value}")


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN, infinity and what is no number; None passes.

    Raises:
        ConfigurationError: That names the argument and the value.
    """
    if value is not None and (isinstance(value, str) or not math.isfinite(value)):
        raise ConfigurationError(f"{name} must be a finite number, not {value!r}")


def check_one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of some words.

    Raises:
        ConfigurationError: That names the argument, the value and the words.
    """
    if value not in choices:
        raise ConfigurationError(f"{name}={value!r}: use one of {', '.join(choices)}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of whatever type."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and value % 1 == 0  # type: ignore


def whole(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """A count in `[low, high]` as an int: whole floats such as 1e5 are meant as what they equal.

    Raises:
        ConfigurationError: If it is no whole number, None included, or outside the range.
    """
    if not is_whole(value):
        given = repr(value) if isinstance(value, str) else value
        raise ConfigurationError(f"{name} must be a whole number, at least {low}, not {given}")
    if value < low:
        raise ConfigurationError(f"{name} must be at least {low}, not {int(value)}")
    if value > high:
        raise ConfigurationError(f"{name} must be at most {high:,}, not {int(value)}")
    return int(value)


def whole_seed(name: str, value: Any) -> int:
    """A seed as an int in [0, 2³²), which is what NumPy's and other generators take.

    Raises:
        ConfigurationError: If it is none.
    """
    return whole(name, value, 0, 2**32 - 1)


def shortened(value: Any, most: int = 200) -> str:
    """A value, a space or a stranger's text, as one line of a message can hold it."""
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}…"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Names that exist, those most like `name` first."""
    names = list(dict.fromkeys(known))
    return sorted(names, key=lambda n: -difflib.SequenceMatcher(None, name, n).ratio())
