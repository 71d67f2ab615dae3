"""Making equal things once while something larger is built."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_made: ContextVar[dict[Hashable, Any] | None] = ContextVar("made", default=None)


@contextmanager
def sharing(made: Mapping[Hashable, Any] | None = None) -> Iterator[None]:
    """What is built inside makes equal, unchanging parts once: a frozen language model, its cache.

    A policy builds its encoders in such a block. Nothing is shared across blocks, so two agents
    never have a part in common, and moving one to another device leaves the other alone. A block
    inside another joins it.

    Args:
        made: What there is already, by `key` of `shared`: whoever says so answers for it that what
            is built inside goes where that goes.
    """
    if _made.get() is not None:
        yield
        return
    token = _made.set(dict(made or {}))
    try:
        yield
    finally:
        _made.reset(token)


def shared(key: Hashable, make: Callable[[], T], twin: Callable[[T], T] | None = None) -> T:
    """`make()`, or inside `sharing` what it returned before for an equal `key`.

    Args:
        key: All that `make` depends on.
        make: Makes the part.
        twin: What each caller inside `sharing` gets in place of the part itself.
    """
    made = _made.get()
    if made is None:
        return make()
    if key not in made:
        made[key] = make()
    return made[key] if twin is None else twin(made[key])
