"""The arguments of constructors that hand some of theirs on to the class they inherit from."""

import ast
import functools
import inspect
import textwrap
import typing
from typing import Any


@functools.lru_cache(maxsize=1024)
def signature_of(cls: type) -> inspect.Signature:
    """A class's arguments, with those that `**keywords` hand on to the class above, as one list.

    A constructor that ends in `super().__init__(spec, gamma=0.5, **shared)` takes its own arguments
    and all that the constructor above takes but for what it gives there itself. So the arguments
    that all agents share stand in one place, and are known by name all the same: to `--help`, to a
    notebook, to checkpoints, and to whoever misspells one.

    Where the source is not at hand, or the keywords go elsewhere as well, or positions are handed
    on too, they stay what they are.
    """
    return _merged(cls.__mro__)


def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a class's arguments, likewise."""
    hints: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        if "__init__" in vars(one) and one is not object:
            for name in inspect.signature(one.__init__).parameters:
                hints.pop(name, None)  # the same name may mean something else here
            try:
                hints.update(typing.get_type_hints(one.__init__))
            except (NameError, TypeError, AttributeError):  # of a class elsewhere, TYPE_CHECKING
                continue
    known = signature_of(cls).parameters.values()
    named = {one.name for one in known if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    return {name: hint for name, hint in hints.items() if name in named}


class Signature:
    """`__signature__` of classes whose constructors hand arguments on."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # an instance's is that of its call
        return signature_of(owner)


def _merged(order: tuple[type, ...]) -> inspect.Signature:
    """Of the first class of these that has a constructor."""
    index = next(i for i, one in enumerate(order) if "__init__" in vars(one) or one is object)
    init: Any = vars(order[index])["__init__"]
    signature = inspect.signature(init)
    own = list(signature.parameters.values())[1:]
    gathers = next((one for one in own if one.kind is one.VAR_KEYWORD), None)
    given = None if gathers is None else _given_above(init, gathers.name)
    if given is None:
        return signature.replace(parameters=own)
    positions, names = given
    above = list(_merged(order[index + 1 :]).parameters.values())[positions:]
    own = own[:-1]
    taken = names | {one.name for one in own}
    handed = [one for one in above if one.name not in taken and one.kind is not one.VAR_POSITIONAL]
    keyword = [
        one.replace(kind=one.KEYWORD_ONLY) if one.kind is one.POSITIONAL_OR_KEYWORD else one
        for one in handed
    ]
    return signature.replace(parameters=[*own, *keyword])


def _given_above(init: Any, gathered: str) -> tuple[int, set[str]] | None:
    """What a constructor gives the one above besides its gathered keywords: how many by position,
    and which by name; None if its keywords go to nobody, elsewhere, or there in several ways."""
    if hasattr(init, "__wrapped__"):  # who wraps it may take some for himself
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return None
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == gathered]
    if len(used) != 1:
        return None
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            spread = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
            if spread == [gathered] and not any(isinstance(a, ast.Starred) for a in call.args):
                return len(call.args), {word.arg for word in call.keywords if word.arg is not None}
    return None
