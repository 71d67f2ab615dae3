"""Observations and actions of a space: one or many, and of the space's own shape and dtype."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, shortened

if TYPE_CHECKING:  # environments in processes of their own need no torch
    from torch import Tensor


def as_batch(space: gym.Space, obs: Any, name: str = "obs") -> tuple[Any, int | None]:
    """One observation, or a batch of them, as a vector environment returns a batch.

    The space decides which of the two it is, never the data: an observation has exactly the shape
    of the space, and a batch one axis more in front.

    Args:
        space: Space of one observation.
        obs: Arrays or lists of numbers; texts; dicts and tuples of those. A batch of texts is a
            sequence of texts, one of dicts a dict of batches.
        name: What messages call it.

    Returns:
        Arrays `[B, ...]`, tuples of B texts, dicts and tuples of those; and B, or None for a single
        observation, with which B is 1.

    Raises:
        ConfigurationError: If it is neither.
    """
    s = gym.spaces
    if isinstance(space, s.Dict):
        if not isinstance(obs, Mapping) or not set(space.spaces) <= set(obs):
            _refuse(name, obs, f"a dict with the entries {', '.join(map(repr, space.spaces))}")
        entries = {key: as_batch(part, obs[key], f"{name}[{key!r}]") for key, part in space.items()}
        count = _common_count(name, [count for _, count in entries.values()])
        return {key: batch for key, (batch, _) in entries.items()}, count
    if isinstance(space, s.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            _refuse(name, obs, f"a tuple of {len(space.spaces)} entries")
        parts = [
            as_batch(part, entry, f"{name}[{i}]")
            for i, (part, entry) in enumerate(zip(space.spaces, obs, strict=True))
        ]
        return tuple(batch for batch, _ in parts), _common_count(name, [n for _, n in parts])
    if is_text(space):
        if isinstance(obs, str):
            return (obs,), None
        texts = list(obs) if isinstance(obs, Sequence | np.ndarray) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            _refuse(name, obs, "one text (a str), or a sequence of them for a batch")
        return tuple(map(str, texts)), len(texts)
    if isinstance(space, s.Box | s.Discrete | s.MultiDiscrete | s.MultiBinary):
        return _numbers(space, obs, name)
    if space.contains(obs):
        return (obs,), None
    if isinstance(obs, tuple | list) and obs and all(space.contains(one) for one in obs):
        return tuple(obs), len(obs)
    _refuse(name, obs, f"an element of {shortened(space)}, or a sequence of them for a batch")


def is_text(space: gym.Space) -> bool:
    """Whether its elements are texts; minigrid's instructions are, by another name."""
    return isinstance(space, gym.spaces.Text) or type(space).__name__ == "MissionSpace"


def allowed_action(space: gym.Space, info: Any) -> Any:
    """A random action that an environment will take.

    Args:
        space: Action space of one environment, or of several: those have no masks here.
        info: Of its last reset or step. If there is an `action_mask`, `[A]` as Gymnasium has it
            (for MultiDiscrete the parts one after the other), the action keeps to it.
    """
    mask = info.get("action_mask") if isinstance(info, Mapping) else None
    if mask is not None and isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        flat = np.asarray(mask).reshape(-1).astype(np.int8)
        counts = np.atleast_1d(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec)
        if len(flat) == counts.sum():
            parts: Any = np.split(flat, np.cumsum(counts.reshape(-1))[:-1])
            allowed: Any = parts[0] if isinstance(space, gym.spaces.Discrete) else tuple(parts)
            return space.sample(allowed)
    return space.sample()


def action_writer(space: gym.Space) -> "Callable[[Tensor], np.ndarray]":
    """What turns a policy's actions into what environments of this action space accept.

    A policy computes in float32 and int64. Rounded to the space's dtype, an action may lie outside
    its bounds by a hair (float32's 0.1 is more than float64's), and Gymnasium's `contains` asks for
    the dtype too. So actions get the space's dtype, then its bounds. What is stored for learning is
    not touched: the result is a copy, which an environment may even change in place.

    Args:
        space: Action space of one environment.

    Returns:
        A function of actions `[B, ...]` that gives an array `[B, ...]`, whose rows the space
        contains, NaN aside.
    """
    dtype = np.dtype(space.dtype)
    if isinstance(space, gym.spaces.Box) and (
        space.bounded_below.any() or space.bounded_above.any()
    ):
        return partial(_within, dtype, space.low, space.high)
    return partial(_cast, dtype)


def _cast(dtype: np.dtype, action: "Tensor") -> np.ndarray:
    return action.cpu().numpy().astype(dtype)


def _within(dtype: np.dtype, low: np.ndarray, high: np.ndarray, action: "Tensor") -> np.ndarray:
    out = action.cpu().numpy().astype(dtype)
    np.maximum(out, low, out=out)
    return np.minimum(out, high, out=out)


def _numbers(space: Any, obs: Any, name: str) -> tuple[np.ndarray, int | None]:
    shape = list(space.shape)
    kind = f"numbers of shape {shape}, or {['N', *shape]} for a batch".replace("'N'", "N")
    try:
        given = np.asarray(obs)
    except (ValueError, TypeError):  # lists of different lengths, tensors of another device
        _refuse(name, obs, kind)
    if given.dtype.kind not in "biuf":
        _refuse(name, obs, kind)
    single = list(given.shape) == shape
    if not single and (list(given.shape[1:]) != shape or not len(given)):
        _refuse(name, given, kind)
    with np.errstate(invalid="ignore"):  # of a nan that becomes an integer
        array = given.astype(space.dtype)
    whole = not np.issubdtype(array.dtype, np.floating)
    if whole and not ((array == given).all() and _known(space, array)):
        raise ConfigurationError(
            f"{name}: {_values(given)} is not in {_spell(space)}; give observations as the "
            "environment returns them, unscaled"
        )
    return (array[None], None) if single else (array, len(array))


def _known(space: Any, array: np.ndarray) -> bool:
    """Whether there are such elements, of a space of whole numbers."""
    if isinstance(space, gym.spaces.Box):
        return True  # its bounds are a promise that environments break
    if isinstance(space, gym.spaces.MultiBinary):
        return bool(((array == 0) | (array == 1)).all())
    count = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
    return bool(((array >= space.start) & (array < space.start + count)).all())


def _common_count(name: str, counts: list[int | None]) -> int | None:
    if len(set(counts)) > 1:
        spelled = ", ".join("one" if n is None else f"a batch of {n}" for n in counts)
        raise ConfigurationError(
            f"{name}: its entries hold {spelled}; all of them must hold one observation, or "
            "batches of equal length"
        )
    return counts[0] if counts else None


def _refuse(name: str, obs: Any, wanted: str) -> NoReturn:
    if isinstance(obs, np.ndarray):
        given = f"an array of shape {list(obs.shape)}"
    elif isinstance(obs, Mapping):
        given = f"a dict with the entries {', '.join(map(repr, obs))}"
    elif isinstance(obs, tuple | list):
        given = f"a {type(obs).__name__} of {len(obs)}"
    else:
        given = f"a {type(obs).__name__}"
    raise ConfigurationError(f"{name}: {given} is no observation; it must be {wanted}")


def _values(array: np.ndarray) -> str:
    if array.size > 8:
        return f"an array with values from {array.min():g} to {array.max():g}"
    return str(array.tolist())


def _spell(space: Any) -> str:
    return f"a Box of {space.dtype}" if isinstance(space, gym.spaces.Box) else shortened(space)
