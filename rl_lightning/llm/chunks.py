"""Texts of like lengths read together: little is spent on padding."""

from collections.abc import Iterator, Sequence

MOST_PADDING = 0.1  # of a chunk's tokens
FEWEST = 8  # texts of a chunk that padding may close: fewer would leave the processor idle


def like_lengths(
    lengths: Sequence[int], most: int, padding: float = MOST_PADDING, fewest: int = FEWEST
) -> Iterator[list[int]]:
    """The indices of texts in chunks, each padded to its longest, short texts first.

    A chunk ends when it is full, or when one more text would make more of it padding than
    `padding` says.

    Args:
        lengths: Tokens of each text.
        most: Texts of a chunk.
        padding: Largest share of padding, of chunks of more than `fewest` texts.
        fewest: See `padding`.
    """
    chunk: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        room = (len(chunk) + 1) * length
        padded = room - tokens - length
        if len(chunk) >= most or (len(chunk) >= fewest and padded > padding * room):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(index)
        tokens += length
    if chunk:
        yield chunk
