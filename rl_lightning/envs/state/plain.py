"""Which objects are no more than their attributes and items."""

import hashlib
import marshal
import sys
import types
from functools import cache
from typing import Any

import numpy as np

FORMAT = "environment state, 1"
BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}
_HEAP_TYPE = 1 << 9  # of `type.__flags__`: made by a class statement
_CONTAINERS = (list, dict, set, tuple)
_OWN_COPYING = (
    *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__", "__del__"),
    *("__getnewargs__", "__getnewargs_ex__"),
)
_LARGE = 1024  # bytes of a constant that are worth a look whether it is one


class StateError(ValueError):
    """A state that cannot be saved, or cannot be put back; the message says why."""


def full_name(thing: Any) -> tuple[str, str]:
    """Module and qualified name of a class or function."""
    return getattr(thing, "__module__", None) or "builtins", thing.__qualname__


def is_named(thing: Any) -> bool:
    """Whether a class or function is what its module and name lead to."""
    module, name = full_name(thing)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is thing


@cache
def slots_of(cls: type) -> dict[str, Any]:
    """Names and descriptors of what instances keep outside of `__dict__`."""
    found = {}
    for owner in reversed(cls.__mro__):
        names = owner.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{owner.__name__.lstrip('_')}{name}"
            if isinstance(member := owner.__dict__.get(name), types.MemberDescriptorType):
                found[name] = member
    return found


def base_of(cls: type) -> Any:
    """The built-in container that a class extends, or `object`."""
    return next(base for base in (*_CONTAINERS, object) if issubclass(cls, base))


@cache
def is_plain(cls: type) -> bool:
    """Whether attributes, and items of a container, are all that an instance has.

    A class written in C keeps more: its instances are larger, or it has a base that is none of the
    known ones.
    """
    fixed = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    # Beside what the base needs: __dict__, __weakref__ and the slots.
    room = fixed.__basicsize__ + 8 * (2 + len(slots_of(cls)))
    return fixed in (*_CONTAINERS, object) and cls.__basicsize__ <= room


@cache
def can_be_made(cls: type) -> bool:
    """Whether an empty instance can stand for one: the class has no say of its own in copying."""
    if not is_plain(cls):
        return False
    if issubclass(cls, tuple):  # a NamedTuple brings `__new__`, which its items make up for
        return "_fields" in cls.__dict__ and cls.__bases__ == (tuple,)
    return all(
        getattr(cls, name, None) in (getattr(base_of(cls), name, None), getattr(object, name, None))
        for name in _OWN_COPYING
    )


def attributes_of(x: Any) -> dict[str, Any]:
    """What an object keeps in `__dict__` and in slots."""
    found = dict(getattr(x, "__dict__", {}))
    for name, member in slots_of(type(x)).items():
        try:
            found[name] = member.__get__(x)
        except AttributeError:  # never set
            continue
    return found


def constant_bytes(x: Any) -> bytes | None:
    """A large container of nothing but Python's own plain values, as bytes; None for all else.

    Equal bytes mean equal values of equal types. A table of transitions is such a container: it
    takes a hundred times longer to write down node by node.
    """
    if type(x) not in (dict, list, tuple) or not x:
        return None
    try:
        data = marshal.dumps(x, 2)  # this version knows no references, so equal means equal
    except ValueError:
        return None
    return data if len(data) >= _LARGE else None


def digest(data: bytes) -> str:
    """What tells one constant from another."""
    return hashlib.sha256(data).hexdigest()
