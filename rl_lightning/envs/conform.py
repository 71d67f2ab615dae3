"""Whether what an environment hands over is what its space declares.

NumPy broadcasts an observation of one number over a row of three, cuts floats to integers, and
takes None for NaN, all without a word. So every entry is looked at when it is put into its row.
"""

import copy
import numbers
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array

_FLOATS = frozenset({float, np.float64, np.float32})


class MisfitError(Exception):
    """What an environment returned is not what it should be; the message says in which way."""


def number(reward: Any) -> Any:
    """A reward as one number; an array of one is taken as that.

    Raises:
        MisfitError: If it is none.
    """
    if type(reward) in _FLOATS:  # nearly always
        return reward
    if isinstance(reward, numbers.Real | np.bool_):
        try:
            return float(reward)
        except OverflowError:
            raise MisfitError("the reward is an integer beyond every float") from None
    array = _array(reward, "the reward")
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise MisfitError(f"the reward must be one number, not {_spell(reward, array)}")
    return array.reshape(()).item()


def flag(value: Any, name: str) -> bool:
    """`terminated` or `truncated` as one flag; an array of one is taken as that."""
    array = _array(value, name)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise MisfitError(f"{name} must be True or False, not {_spell(value, array)}")
    return bool(array.reshape(()))


def five(result: Any) -> tuple[Any, ...]:
    """What `step` returned, if that is observation, reward, terminated, truncated, info."""
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise MisfitError(
            "step must return observation, reward, terminated, truncated and info, not "
            f"{len(result) if isinstance(result, tuple | list) else type(result).__name__}"
            " (Gymnasium's API since 0.26)"
        )
    return tuple(result)


def two(result: Any) -> tuple[Any, ...]:
    """What `reset` returned, if that is observation and info."""
    if isinstance(result, tuple) and len(result) == 2:
        return result
    if not isinstance(result, list) or len(result) != 2:
        raise MisfitError(
            f"reset must return observation and info, not {type(result).__name__} "
            "(Gymnasium's API since 0.26)"
        )
    return tuple(result)


def explained(error: BaseException) -> str:
    """What a MisfitError or a SystemExit says, for a message."""
    if not isinstance(error, SystemExit):
        return str(error)
    return f"SystemExit: {error.code}, which would have ended the program without a word"


class ArrayRows:
    """Rows `[B, ...]` of a space of numbers.

    Args:
        space: Of one row.
        count: B.
        where: What messages call it.
    """

    def __init__(self, space: gym.Space, count: int, where: str) -> None:
        array: Any = create_empty_array(space, n=count, fn=np.zeros)
        self.array: np.ndarray = array
        self.shape, self.dtype = self.array.shape[1:], self.array.dtype
        self.numbers = (int, np.int64) if not self.shape and self.dtype == np.int64 else ()
        self.where = where

    def put(self, i: int, value: Any) -> None:
        fits = type(value) in self.numbers or (
            type(value) is np.ndarray and value.shape == self.shape and value.dtype is self.dtype
        )
        self.array[i] = value if fits else self.fitted(value)

    def copy_of(self, value: Any) -> Any:
        if type(value) is np.ndarray and value.dtype is self.dtype and value.shape == self.shape:
            return value.copy()
        # [()] makes a number of an array without axes.
        return np.array(self.fitted(value), self.dtype)[()]

    def all(self) -> np.ndarray:
        return self.array

    def fitted(self, value: Any) -> np.ndarray:
        """A value in the shape and dtype of a row."""
        array = _array(value, self.where)
        if array.shape == self.shape and array.dtype == self.dtype:
            return array
        if array.shape != self.shape:
            if _axes(array.shape) != _axes(self.shape) or array.dtype == object:
                raise MisfitError(
                    f"{self.where} is {_spell(value, array)}, but its space declares the shape "
                    f"{list(self.shape)}"
                )
            array = array.reshape(self.shape)
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            with np.errstate(invalid="ignore"):
                try:
                    cast = array.astype(self.dtype)
                    same = bool((cast == array).all())
                except (TypeError, ValueError):
                    cast, same = array, False
            if not same:
                raise MisfitError(
                    f"{self.where} is of dtype {array.dtype}, and its space declares {self.dtype}, "
                    "which does not hold its values"
                )
            array = cast
        return array


class TextRows:
    """B strings."""

    def __init__(self, count: int, where: str) -> None:
        self.items: list[Any] = [""] * count
        self.where = where

    def put(self, i: int, value: Any) -> None:
        self.items[i] = self.copy_of(value)

    def copy_of(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise MisfitError(f"{self.where} must be text, not {type(value).__name__}")
        return value

    def all(self) -> tuple[str, ...]:
        return tuple(self.items)


class OtherRows:
    """Rows of a space that the library does not know, batched as Gymnasium does."""

    def __init__(self, space: gym.Space, count: int) -> None:
        self.space = space
        self.items: list[Any] = [None] * count
        self.batch: Any = create_empty_array(space, n=count, fn=np.zeros)

    def put(self, i: int, value: Any) -> None:
        self.items[i] = value

    def copy_of(self, value: Any) -> Any:
        return copy.deepcopy(value)

    def all(self) -> Any:
        self.batch = concatenate(self.space, self.items, self.batch)
        return self.batch


class NestedRows:
    """Rows of a Dict or Tuple space.

    Args:
        parts: Entry → its rows.
        together: Makes the nest of a list of its entries.
        where: What messages call it.
    """

    def __init__(
        self, parts: dict[Any, Any], together: Callable[[list[Any]], Any], where: str
    ) -> None:
        self.parts = parts
        self.together = together
        self.where = where

    def put(self, i: int, value: Any) -> None:
        for key, part in self.parts.items():
            part.put(i, self._entry(value, key))

    def copy_of(self, value: Any) -> Any:
        copies = [part.copy_of(self._entry(value, key)) for key, part in self.parts.items()]
        return self.together(copies)

    def all(self) -> Any:
        return self.together([part.all() for part in self.parts.values()])

    def _entry(self, value: Any, key: Any) -> Any:
        try:
            return value[key]
        except (KeyError, IndexError, TypeError):
            what = (
                f"has the keys {list(value)}"
                if isinstance(value, dict)
                else (f"is {type(value).__name__}")
            )
            raise MisfitError(f"{self.where}[{key!r}] is missing: {self.where} {what}") from None


Rows = ArrayRows | TextRows | OtherRows | NestedRows


def make_rows(space: gym.Space, count: int, where: str = "observation") -> Rows:
    """Where the observations of `count` environments are put together, one by one.

    All kinds have `put(i, value)`, which checks a value and copies it into row i, `copy_of(value)`,
    which does the same without a row, and `all()`, the batch as Gymnasium's vector environments
    return it; the next `put` changes its arrays.

    Raises:
        MisfitError: By `put` and `copy_of`, if a value is none of the space's.
    """
    s = gym.spaces
    if isinstance(space, s.Box | s.Discrete | s.MultiDiscrete | s.MultiBinary):
        return ArrayRows(space, count, where)
    if isinstance(space, s.Text):
        return TextRows(count, where)
    if isinstance(space, s.Dict):
        parts = {key: make_rows(part, count, f"{where}[{key!r}]") for key, part in space.items()}
        return NestedRows(parts, lambda entries: dict(zip(parts, entries, strict=True)), where)
    if isinstance(space, s.Tuple):
        parts = {i: make_rows(part, count, f"{where}[{i}]") for i, part in enumerate(space)}
        return NestedRows(parts, tuple, where)
    return OtherRows(space, count)


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors with gradients
        raise MisfitError(f"{name} is no array of numbers: {error}") from None


def _axes(shape: tuple[int, ...]) -> list[int]:
    """Axes that hold more than one number: others may be added and left out."""
    return [n for n in shape if n != 1]


def _spell(value: Any, array: np.ndarray) -> str:
    if array.dtype.kind in "biufc":
        return f"an array of shape {list(array.shape)}"
    return repr(value) if value is None or isinstance(value, str) else type(value).__name__
