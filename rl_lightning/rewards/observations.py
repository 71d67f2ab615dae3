"""Observations as vector environments batch them: some rows, and whether two kinds are one."""

from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.spaces import is_text


def select(space: gym.Space, obs: Any, rows: np.ndarray) -> Any:
    """Some rows of observations `[B, ...]`, as a batch again.

    Args:
        space: Of one observation.
        obs: Arrays, tuples of B texts, dicts and tuples of those.
        rows: Which, `[n]`.
    """
    if isinstance(space, gym.spaces.Dict):
        return {key: select(part, obs[key], rows) for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(select(part, column, rows) for part, column in zip(space, obs, strict=True))
    if isinstance(obs, np.ndarray):
        return obs[rows]
    return tuple(obs[b] for b in rows.tolist())


def same_kind(one: gym.Space, other: gym.Space) -> bool:
    """Whether an encoder for observations of one space reads those of the other.

    Bounds and lengths of texts may differ; shapes, entries and numbers of values may not.
    """
    s = gym.spaces
    if is_text(one) or is_text(other):
        return is_text(one) and is_text(other)
    if isinstance(one, s.Dict) and isinstance(other, s.Dict):
        # More entries than were learned from do not matter.
        return all(key in other.spaces and same_kind(part, other[key]) for key, part in one.items())
    if isinstance(one, s.Tuple) and isinstance(other, s.Tuple):
        return len(one) == len(other) and all(map(same_kind, one, other))
    if isinstance(one, s.Box) and isinstance(other, s.Box):
        return one.shape == other.shape and one.dtype.kind == other.dtype.kind
    return one == other
