"""Ending a command by a signal: at once, in one sentence, and with nothing left behind.

Imports next to nothing, because a command can be stopped while everything else is being imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_inside = False


class Stopped(BaseException):
    """A signal has ended the command. No `Exception`: nobody on the way is to handle it."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(self.number.name)


def stop(number: int, frame: FrameType | None = None) -> NoReturn:
    """The handler of a signal that ends the command."""
    raise Stopped(number)


def take_signals() -> None:
    """Let signals end the command again, where somebody else has taken them over since."""
    if _inside:
        for number in SIGNALS:
            signal.signal(number, stop)


def within_command() -> bool:
    """Whether a command is running that signals end."""
    return _inside


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within this context SIGINT and SIGTERM end the command with status 128 + the signal's number.

    They do it by an exception, so that what must be closed is closed. Handlers are what they were
    afterwards. In a thread other than the main one, signals are somebody else's.

    Raises:
        SystemExit: When a signal came.
    """
    global _inside
    if _inside or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _inside = True
    take_signals()
    try:
        yield
    except Stopped as stopped:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # the other ranks would say the same
            print(f"rl-lightning: stopped by {stopped.number.name}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    finally:
        _inside = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
