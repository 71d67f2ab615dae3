"""Text observations: the one character set that every text space of rl_lightning uses.

Give `AsyncVectorEnv` `shared_memory=False` with them: Gymnasium 1.4 reads texts from shared memory
once, when it is built, and from then on returns those blanks.
"""

import gymnasium as gym

from rl_lightning.core.charset import PRINTABLE


def text_space(max_length: int) -> gym.spaces.Text:
    """The space of printable ASCII texts of at most `max_length` characters, newlines included."""
    return gym.spaces.Text(max_length, min_length=0, charset=PRINTABLE)


def is_printable(text: str) -> bool:
    """Whether every character of `text` is in `PRINTABLE`."""
    return text.isascii() and text.replace("\n", "").isprintable()
