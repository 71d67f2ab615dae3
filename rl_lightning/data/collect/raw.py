"""Raw observations of a vector environment: kept for a step, and in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, shortened


def copied(obs: Any) -> Any:
    """Observations `[B, ...]` that the next step cannot overwrite."""
    if isinstance(obs, np.ndarray):
        return obs.copy()
    if isinstance(obs, Mapping):
        return {key: copied(part) for key, part in obs.items()}
    if isinstance(obs, tuple | list):
        return tuple(part if isinstance(part, str) else copied(part) for part in obs)
    return obs


def with_rows(space: gym.Space, obs: Any, index: np.ndarray, rows: Any) -> Any:
    """Observations with others in some environments' places.

    Args:
        space: Of one observation.
        obs: `[B, ...]`; stays as it is.
        index: Which, `[F]`.
        rows: What comes there, `[F, ...]`.
    """
    if isinstance(space, gym.spaces.Dict):
        return {k: with_rows(part, obs[k], index, rows[k]) for k, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        parts = zip(space, obs, rows, strict=True)
        return tuple(with_rows(part, column, index, new) for part, column, new in parts)
    if isinstance(obs, np.ndarray):
        out = obs.copy()
        out[index] = rows
        return out
    out = list(obs)
    for b, row in zip(index.tolist(), rows, strict=True):
        out[b] = row
    return tuple(out)


def final_info(info: Mapping[str, Any], done: np.ndarray) -> Mapping[str, Any]:
    """What a SAME_STEP env says of where a step led to, rather than of what was begun after it.

    Args:
        info: Of the step, with `final_info`.
        done: Where an episode ended, `[B]`.
    """
    final = info.get("final_info")
    if not isinstance(final, Mapping):
        return info
    own = ("final_info", "_final_info", "final_obs", "_final_obs")
    return _merged({k: v for k, v in info.items() if k not in own}, final, done)


def _merged(now: Mapping[str, Any], final: Mapping[str, Any], done: np.ndarray) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in [*now, *(key for key in final if key not in now)]:
        a, b = now.get(key), final.get(key)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            out[key] = _merged(_mapping(a), _mapping(b), done)
            continue
        a = _nothing(b, done) if a is None else a
        b = _nothing(a, done) if b is None else b
        if not all(isinstance(one, np.ndarray) and len(one) == len(done) for one in (a, b)):
            out[key] = b if key in final else a
        elif a.shape == b.shape:
            out[key] = np.where(done.reshape(-1, *[1] * (a.ndim - 1)), b, a)
        else:
            out[key] = np.array([*a, None], dtype=object)[:-1]
            for row in np.flatnonzero(done):
                out[key][row] = b[row]
    return out


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _nothing(like: Any, done: np.ndarray) -> Any:
    """What stands where nobody said anything: zeros, as Gymnasium has it."""
    if not isinstance(like, np.ndarray):
        return None
    return np.full(like.shape, None, object) if like.dtype == object else np.zeros_like(like)


def plain(obs: Any, name: str = "the environment") -> Any:
    """Observations `[B, ...]` as a checkpoint can hold them.

    Raises:
        ConfigurationError: If they are of a kind that it cannot.
    """
    if isinstance(obs, np.ndarray) and obs.dtype.kind in "biuf":
        return torch.from_numpy(obs.copy())
    if isinstance(obs, Mapping):
        return {key: plain(part, name) for key, part in obs.items()}
    if isinstance(obs, tuple | list):
        return [part if isinstance(part, str) else plain(part, name) for part in obs]
    if isinstance(obs, bool | int | float | str) or obs is None:
        return obs
    raise ConfigurationError(
        f"data.rewards: observations of {name} hold {shortened(repr(obs), 60)} of class "
        f"{type(obs).__name__}, which a checkpoint cannot keep: give them as numbers or texts, by "
        "a wrapper, or leave out data.rewards"
    )


def restored(saved: Any) -> Any:
    """What `plain` was given."""
    if isinstance(saved, torch.Tensor):
        return saved.numpy().copy()
    if isinstance(saved, Mapping):
        return {key: restored(part) for key, part in saved.items()}
    return tuple(map(restored, saved)) if isinstance(saved, list | tuple) else saved
