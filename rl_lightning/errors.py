"""The exceptions whose message is the whole explanation."""

import math


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


def check_range(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Refuse a hyper-parameter outside `[low, high]`; None passes.

    Raises:
        ConfigurationError: That names the argument, the value and the range.
    """
    if value is not None and not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigurationError(f"{name} must be {allowed}, not {value}")
