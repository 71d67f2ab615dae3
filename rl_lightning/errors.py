"""The one exception that means "the user's configuration is wrong"."""

import math


def check_range(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Refuse a hyper-parameter outside `[low, high]`; None passes.

    Raises:
        ConfigurationError: That names the argument, the value and the range.
    """
    if value is not None and not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigurationError(f"{name} must be {allowed}, not {value}")


class ConfigurationError(ValueError):
    """A wrong argument or an impossible combination; its message is the whole explanation.

    The command line prints the message alone and exits with status 2; anything else it lets through
    as a traceback, since it would be a defect of the library.
    """
