"""Saying so while waiting for something that may never come."""

import time

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

STEPS = 10_000
SECONDS = 600.0
CLOCK_STEPS = 16  # between two looks at the clock


class Patience:
    """Warns while evaluation waits for an episode to end, each time after twice as long.

    A warning and no error: long episodes are legitimate. Only an episode that is counted ends the
    waiting, since others may go on beginning and ending beside one that never does.

    Args:
        env: Name of the environment.
    """

    def __init__(self, env: str) -> None:
        self.env = env
        self.steps, self.seconds = STEPS, SECONDS
        self.ended()

    def ended(self) -> None:
        """A counted episode has ended."""
        self._waited = 0
        self._since = time.monotonic()

    def wait(self, left: np.ndarray) -> None:
        """One more step has been taken.

        Args:
            left: Episodes that each environment is still to play to their end, `[B]`.
        """
        self._waited += 1
        if self._waited % CLOCK_STEPS and self._waited < self.steps:
            return
        seconds = time.monotonic() - self._since
        if self._waited < self.steps and seconds < self.seconds:
            return
        rank_zero_warn(
            f"evaluation has waited {self._waited:,} steps ({seconds:.0f} s) for an episode of "
            f"{self.env} to end; {left.sum()} are still to come. If they may never end, give them "
            "a limit, data.val_env_kwargs: {max_episode_steps: 1000}"
        )
        self.steps, self.seconds = 2 * max(self._waited, self.steps), 2 * max(seconds, self.seconds)
