"""What an episode must be before it is written down or learned from."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.minari import pixels

_ROUNDING = 4  # units in the last place that an action may lie beyond its bound


def checked(episode: Episode, spec: EnvSpec | None, where: str) -> Episode:
    """The episode in the dtypes of its spaces, if an environment can have said all of it.

    Observations may lie outside the bounds of a Box, which change with versions of an environment;
    actions may do so by a rounding error.

    Args:
        episode: What was recorded or read.
        spec: Its spaces, or None where they are not known: then rows stay as they are.
        where: Where it lies, for messages.

    Raises:
        ConfigurationError: If lengths, shapes or dtypes are wrong, if a number is not finite in the
            dtype that it is stored in, if an action is not of its space or forbidden by its mask,
            if a mask allows nothing, or if the episode ends before its last step.
    """
    flags = [_array(x) for x in (episode.rewards, episode.terminations, episode.truncations)]
    count = len(flags[0]) if flags[0].ndim else 0
    if not count or any(x.shape != (count,) for x in flags):
        raise ConfigurationError(
            f"{where}: rewards, terminations and truncations must have the shape [T] with T at "
            f"least 1, not {', '.join(str(list(x.shape)) for x in flags)}"
        )
    rewards = _rewards(flags[0], where)
    terminated = _flags(flags[1], f"{where}: terminations")
    truncated = _flags(flags[2], f"{where}: truncations")
    _check_end(terminated | truncated, where)
    spaces = (None, None) if spec is None else (spec.observation_space, spec.action_space)
    actions = _rows(episode.actions, spaces[1], count, 0, f"{where}: actions")
    masks = _masks(episode.action_masks, count, f"{where}: action masks")
    if masks is not None and spaces[1] is not None:
        # What is allowed when all is over means nothing.
        told = masks[:-1] if terminated[-1] else masks
        _check_masks(told, actions, spaces[1], where)
    return Episode(
        _rows(episode.observations, spaces[0], count, 1, f"{where}: observations"),
        actions,
        rewards,
        terminated,
        truncated,
        masks,
    )


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # rows of differing lengths
        return np.asarray(None)


def _rewards(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        kind = "text" if values.dtype.kind in "US" else values.dtype
        raise ConfigurationError(f"{where}: rewards must be real numbers, not {kind}")
    rewards = values.astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(rewards.astype(np.float32))  # as which they are learned from
    if not finite.all():
        step = int(np.argmin(finite))
        kind = "" if not np.isfinite(rewards[step]) else ", infinite in float32"
        raise ConfigurationError(f"{where}: the reward of step {step} is {rewards[step]}{kind}")
    return rewards


def _flags(values: np.ndarray, where: str) -> np.ndarray:
    """0s and 1s of any type, as bool."""
    if values.dtype == bool:
        return values
    if values.dtype.kind in "iuf" and ((values == 0) | (values == 1)).all():
        return values.astype(bool)
    raise ConfigurationError(f"{where} must be flags, 0 or 1, and nothing else")


def _check_end(ends: np.ndarray, where: str) -> None:
    early = np.flatnonzero(ends[:-1])
    if len(early):
        raise ConfigurationError(
            f"{where}: the episode ends at step {early[0]}, but goes on to step {len(ends) - 1}; "
            "an end must be the last step, so cut the episode there"
        )


def _masks(masks: Any, steps: int, where: str) -> np.ndarray | None:
    if masks is None:
        return None
    array = _array(masks)
    if array.ndim != 2 or len(array) != steps + 1:
        raise ConfigurationError(
            f"{where} have the shape {list(array.shape)}; with {steps} rewards it must be "
            f"[{steps + 1}, actions], the final observation's being the last one"
        )
    return _flags(array, where)


def _check_masks(masks: np.ndarray, actions: Any, space: gym.Space, where: str) -> None:
    """Refuse masks that allow nothing, and actions that their masks forbid.

    Masks of another width than the action space's are for the policy to refuse, see
    `Dataset.check_masks`; that a mask of bits forbids them all leaves the action 0.
    """
    s = gym.spaces
    steps, width = len(actions), masks.shape[1]
    if isinstance(space, s.MultiBinary) and space.shape == (width,):
        allowed, some = (masks[:steps] | (actions == 0)).all(1), None
    elif isinstance(space, s.Discrete) and space.n == width:
        allowed, some = masks[np.arange(steps), actions - space.start], masks.any(1)
    elif isinstance(space, s.MultiDiscrete) and space.nvec.ndim == 1 and space.nvec.sum() == width:
        first = np.concatenate([[0], np.cumsum(space.nvec[:-1], dtype=np.int64)])
        column = first + actions.astype(np.int64) - space.start
        allowed = masks[np.arange(steps)[:, None], column].all(1)
        some = np.logical_or.reduceat(masks, first, axis=1).all(1)
    else:
        return
    if some is not None and not some.all():
        raise ConfigurationError(
            f"{where}: the action mask of step {np.argmin(some)} allows no action"
        )
    if not allowed.all():
        step = int(np.argmin(allowed))
        raise ConfigurationError(
            f"{where}: the action of step {step}, {shortened(actions[step])}, is one that its own "
            "action mask forbids"
        )


def _rows(value: Any, space: gym.Space | None, steps: int, more: int, where: str) -> Any:
    """`steps + more` rows of a space, in its dtypes; `space` None takes them as they are."""
    s = gym.spaces
    if isinstance(value, Mapping):
        if space is not None and not (isinstance(space, s.Dict) and set(space) == set(value)):
            raise ConfigurationError(
                f"{where} has the entries {shortened(sorted(value))}, not those of "
                f"{shortened(space)}"
            )
        return {
            key: _rows(value[key], space and space[key], steps, more, f"{where}/{shortened(key)}")
            for key in space or value
        }
    if isinstance(value, tuple):
        if space is not None and not (isinstance(space, s.Tuple) and len(space) == len(value)):
            raise ConfigurationError(
                f"{where} has {len(value)} entries, not those of {shortened(space)}"
            )
        return tuple(
            _rows(entry, space and space[i], steps, more, f"{where}/_index_{i}")
            for i, entry in enumerate(value)
        )
    text = isinstance(value, list) and all(isinstance(row, str) for row in value)
    array = _array(None if text else value)  # texts would be padded to the longest
    rows = len(value) if text else len(array) if array.ndim else 0
    if rows != steps + more:
        final = ", the final observation being the last one" if more else ""
        raise ConfigurationError(
            f"{where} has {rows} rows; with {steps} rewards it must have {steps + more}{final}"
        )
    if text and (space is None or isinstance(space, s.Text)):
        return value
    if text or isinstance(space, s.Dict | s.Tuple | s.Text):
        raise ConfigurationError(
            f"{where} is {'text' if text else 'an array'}, not those of {shortened(space)}"
        )
    array = pixels(array, None if space is None else space.shape, where)
    if space is None:
        _check_finite(array, where)
        return array
    dtype = np.dtype(space.dtype)
    # An integer of any width, signed or not, will do: it is seen below whether it fits.
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    castable = integers or np.can_cast(array.dtype, dtype, "same_kind")
    if array.shape[1:] != space.shape or not castable:
        raise ConfigurationError(
            f"{where} has rows of shape {array.shape[1:]} and dtype {array.dtype}, "
            f"not those of {shortened(space)}"
        )
    _check_inside(array, space, bounded=more == 0, where=where)
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    _check_finite(array, where)
    return array


def _check_finite(array: np.ndarray, where: str) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):  # costs less than to ask each, and tells as much
            return
    finite = np.isfinite(array)
    if not finite.all():
        step, *place = map(int, np.unravel_index(int(np.argmin(finite)), array.shape))
        raise ConfigurationError(
            f"{where}: step {step}{_entry(place)} is {array[(step, *place)]}, not finite in "
            f"{array.dtype}; record with a wrapper that says it by a number"
        )


def _check_inside(array: np.ndarray, space: gym.Space, bounded: bool, where: str) -> None:
    """Refuse rows that are not of their space; of a Box, only if it is `bounded`."""
    s = gym.spaces
    if isinstance(space, s.Discrete):
        low, high = int(space.start), int(space.start) + int(space.n) - 1
    elif isinstance(space, s.MultiDiscrete):
        low = np.asarray(space.start, np.int64)
        high = low + np.asarray(space.nvec, np.int64) - 1
    elif isinstance(space, s.MultiBinary):
        low, high = 0, 1
    elif isinstance(space, s.Box) and bounded:
        low, high = space.low, space.high
        if array.dtype.kind == "f" or space.dtype.kind == "f":
            low, high = _widened(low, high, array.dtype)
    elif array.dtype != space.dtype and np.dtype(space.dtype).kind in "iu":
        low, high = np.iinfo(space.dtype).min, np.iinfo(space.dtype).max  # what would wrap around
    else:
        return
    inside = (array >= low) & (array <= high)
    if not inside.all():
        step, *place = map(int, np.unravel_index(int(np.argmin(inside)), array.shape))
        if np.isnan(array[(step, *place)]):
            return  # said better by `_check_finite`
        raise ConfigurationError(
            f"{where}: step {step}{_entry(place)} is {array[(step, *place)]}, outside "
            f"{shortened(space)}"
        )


def _entry(place: list[int]) -> str:
    return f", entry {place}," if place else ""


def _widened(low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> tuple[Any, Any]:
    """Bounds that forgive the rounding of the coarsest of the types involved."""
    kinds = [t for t in (dtype, low.dtype, np.dtype(np.float32)) if t.kind == "f"]
    eps = max(float(np.finfo(t).eps) for t in kinds)
    low, high = low.astype(np.float64), high.astype(np.float64)
    ends = np.abs(np.stack([low, high]))
    rounding = _ROUNDING * eps * np.where(np.isfinite(ends), ends, 0).max(0)
    return low - rounding, high + rounding
