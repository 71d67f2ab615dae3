"""Putting the infos of several environments together, whatever they hold."""

import copy
from typing import Any

import numpy as np

from rl_lightning.envs.conform import MisfitError

_PLAIN = {bool: np.bool_, int: np.int64, float: np.float64}


def add_info(infos: dict[str, Any], info: Any, i: int, num_envs: int) -> dict[str, Any]:
    """Add environment i's info to those of the others, as Gymnasium's vector environments do.

    A key's values are one array `[B, ...]` with the flags `_key` of who has it, and a nested dict
    is one of arrays. Gymnasium takes for granted that all values of a key are alike, and fails, or
    silently rounds, where they are not. Here they become an object array of the values as they are,
    None where there is none. An environment's own `_key` beside a `key` is left out.

    Raises:
        MisfitError: If `info` is no dict.
    """
    if not isinstance(info, dict):
        raise MisfitError(f"info must be a dict, not {type(info).__name__}")
    for key, value in info.items():
        if isinstance(key, str) and key[:1] == "_" and (key[1:] in info or key[1:] in infos):
            continue  # it would stand where the flags of that key do
        flag = f"_{key}"
        if key not in infos:
            infos[key], infos[flag] = _fresh(key, value, num_envs), np.zeros(num_envs, bool)
        column = infos[key]
        if isinstance(column, dict):
            if isinstance(value, dict):
                add_info(column, value, i, num_envs)
                infos[flag][i] = True
                continue
            column = _pulled_apart(column, infos[flag])
        elif column.dtype != object and not _alike(column, value):
            column = _singly(column, infos[flag])
        try:
            column[i] = value
        except (TypeError, ValueError, OverflowError):  # an integer beyond 64 bits, for one
            column = _singly(column, infos[flag])
            column[i] = value
        infos[key] = column
        infos[flag][i] = True
    return infos


def kept(info: Any) -> dict[str, Any]:
    """A final info that outlives the environment's next reset, as far as anyone reads it.

    Raises:
        MisfitError: If it is no dict.
    """
    if not info:
        return {}
    if not isinstance(info, dict):
        raise MisfitError(f"info must be a dict, not {type(info).__name__}")
    if "action_mask" in info:
        return {**info, "action_mask": copy.deepcopy(info["action_mask"])}
    return dict(info)


def _fresh(key: str, value: Any, num_envs: int) -> Any:
    if key == "final_obs":
        return _objects([None] * num_envs)
    if isinstance(value, dict):
        return {}
    if isinstance(value, np.ndarray):
        return np.zeros((num_envs, *value.shape), value.dtype)
    kind = _PLAIN.get(type(value)) or (type(value) if isinstance(value, np.number) else None)
    return _objects([None] * num_envs) if kind is None else np.zeros(num_envs, kind)


def _alike(column: np.ndarray, value: Any) -> bool:
    """Whether a value is of the shape and type of those that are there."""
    if isinstance(value, np.ndarray):
        return column.dtype == value.dtype and column.shape[1:] == value.shape
    return column.ndim == 1 and column.dtype.type is _PLAIN.get(type(value), type(value))


def _singly(column: np.ndarray, has: np.ndarray) -> np.ndarray:
    """An array of values as an array of objects."""
    return _objects([value if there else None for value, there in zip(column, has, strict=True)])


def _pulled_apart(column: dict[str, Any], has: np.ndarray) -> np.ndarray:
    """A dict of arrays as an array of dicts."""

    def at(part: dict[str, Any], i: int) -> dict[str, Any]:
        keys = [key for key in part if f"_{key}" in part and part[f"_{key}"][i]]
        return {k: at(part[k], i) if isinstance(part[k], dict) else part[k][i] for k in keys}

    return _objects([at(column, i) if there else None for i, there in enumerate(has)])


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array
