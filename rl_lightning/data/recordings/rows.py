"""Recorded episodes as rows of a replay buffer, in blocks that an encoder reads at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rl_lightning.data.recordings.episode import Episode

READ_ROWS = 256  # observations that an encoder is shown at a time


def blocks(episodes: Iterable[Episode], size: int) -> Iterator[tuple[Any, ...]]:
    """Rows of episodes one after the other, in blocks of `size` rows; the last one may be smaller.

    Returns:
        Blocks of what `ReplayBuffer.extend` takes, `[size]` each: observations, not yet
        preprocessed, actions, rewards, starts, terminated, truncated, action masks (None if there
        are none).
    """
    waiting, count = [], 0
    for episode in episodes:
        waiting.append(_rows(episode))
        count += len(episode) + 1
        if count >= size:
            rows, whole = joined(waiting), count - count % size
            for start in range(0, whole, size):
                yield cut(rows, start, start + size)
            waiting, count = [cut(rows, whole, count)], count - whole
    if count:
        yield joined(waiting)


def _rows(episode: Episode) -> tuple[Any, ...]:
    """Every observation is a row; at the final one nothing was done."""

    def padded(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros_like(x[:1])])

    starts = padded(np.ones(len(episode), bool))
    rest = (episode.rewards, starts[:-1], episode.terminations, episode.truncations)
    return (
        episode.observations,
        padded(episode.actions),
        *map(padded, rest),
        episode.action_masks,
    )


def joined(parts: list[Any]) -> Any:
    """Rows of observations, actions and the like, one part after the other."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(joined(list(entries)) for entries in zip(*parts, strict=True))
    if isinstance(first, list):
        return [text for part in parts for text in part]
    return np.concatenate(parts)


def cut(x: Any, start: int, stop: int) -> Any:
    """Some rows of an episode's observations, actions or masks; None of None."""
    if isinstance(x, dict):
        return {key: cut(entry, start, stop) for key, entry in x.items()}
    if isinstance(x, tuple):
        return tuple(cut(entry, start, stop) for entry in x)
    return None if x is None else x[start:stop]


def batched(obs: Any) -> Any:
    """Observations as a vector env returns them: texts in a tuple."""
    if isinstance(obs, dict):
        return {key: batched(entry) for key, entry in obs.items()}
    if isinstance(obs, tuple):
        return tuple(batched(entry) for entry in obs)
    return tuple(obs) if isinstance(obs, list) else obs
