"""Arguments of the wrong type, refused by name: Python itself lets them through.

On the command line jsonargparse does this; here is what a script or a notebook calls.
"""

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rl_lightning.core.errors import ConfigurationError, nearest, shortened
from rl_lightning.core.signatures import hints_of, signature_of


def check_arguments(cls: type, arguments: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse constructor arguments that are not of their annotation's kind.

    Only what is certainly wrong is refused: numbers, flags, texts, choices, callables, lists,
    dicts and classes are told apart; any other annotation takes everything.

    Args:
        cls: Whose `__init__` they are for.
        arguments: By name.
        prefix: Of their names on the command line, `data.` for instance.

    Raises:
        ConfigurationError: That names the argument, its kind and its value.
    """
    hints = hints_of(cls)
    for name, value in arguments.items():
        hint = hints.get(name)
        if hint is not None and not _fits(value, hint):
            raise ConfigurationError(
                f"{prefix}{name} must be {_words(hint)}, not {shortened(repr(value), 80)}"
            )


def check_names(cls: type, names: Iterable[str]) -> None:
    """Refuse keyword arguments that a constructor does not have.

    Args:
        cls: Whose `__init__` they are for.
        names: Of the keyword arguments that it is called with.

    Raises:
        ConfigurationError: That names the nearest argument that there is.
    """
    known = signature_of(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in names:
        if name not in known:
            near = nearest(name, list(known))[:3]
            raise ConfigurationError(
                f"{cls.__name__} has no argument {name!r}; nearest are {', '.join(near)}"
            )


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is typing.Any:
        return True
    if hint in (None, type(None)):
        return value is None
    if origin is Literal:
        return type(value) in {type(one) for one in inner}  # which of them, says who reads it
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):  # which whole numbers, says who counts with them
        return isinstance(value, int | float | np.integer | np.floating) and type(value) is not bool
    if hint is str:
        return isinstance(value, str | os.PathLike)
    if origin is Callable or hint is Callable:
        return callable(value)
    if origin is tuple or hint is tuple:
        if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
            return False
        if not inner or inner[-1] is ...:
            return True
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in (list, Sequence) or hint in (list, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, str)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(hint) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint)
    return True


_WORDS = {
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a text",
    Callable: "a class or another callable",
    tuple: "a tuple",
    list: "a list",
    Sequence: "a list",
    dict: "a dict",
    Mapping: "a dict",
    type(None): "None",
}


def _words(hint: Any) -> str:
    """An annotation as a reader says it: `a number or None`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner))
    if origin is Literal:
        return " or ".join(repr(one) for one in inner)
    if origin is tuple and inner and inner[-1] is not ...:
        return (
            f"a pair: {', '.join(map(_words, inner))}"
            if len(inner) == 2
            else f"{len(inner)} entries"
        )
    return _WORDS.get(origin or hint) or f"of class {getattr(hint, '__name__', hint)}"
