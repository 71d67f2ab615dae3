"""Nodes → objects."""

import base64
import collections
import json
import random
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.random import Generator, RandomState, SeedSequence

from rl_lightning.envs.state.plain import (
    BIT_GENERATORS,
    FORMAT,
    StateError,
    attributes_of,
    base_of,
    can_be_made,
    full_name,
    slots_of,
)
from rl_lightning.envs.state.vocabulary import Vocabulary


def load_state(env: Any, data: bytes, vocabulary: Vocabulary) -> None:
    """Put back what `save_state` returned; on an error the environment is as it was.

    Args:
        env: One like that which was saved.
        data: Its state.
        vocabulary: Classes, functions and constants that may occur in it.

    Raises:
        StateError: If the bytes are something else, or hold anything outside the vocabulary.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise StateError(f"it is not written as {FORMAT!r}")
    try:
        commit = _Reader(tree["nodes"], vocabulary).read(env)
        commit()
    except StateError:
        raise
    except Exception as error:  # a forged list of nodes can go wrong anywhere
        raise StateError(f"it is damaged: {error!r}") from error


class _Reader:
    """Nothing that is alive changes before `read` has returned.

    Args:
        nodes: As `Writer` made them, or as somebody forged them.
        vocabulary: What they may name.
    """

    def __init__(self, nodes: list[Any], vocabulary: Vocabulary) -> None:
        self.nodes = nodes
        self.vocabulary = vocabulary
        self._alive: dict[int, Any] = {}
        self._made: dict[int, Any] = {}
        self._empty: list[tuple[int, Any]] = []  # made, and waiting for what is in them
        self._hashed: list[tuple[Any, list[Any]]] = []  # whose items need their attributes first
        self._changes: list[tuple[Any, dict[str, Any], Any]] = []

    def read(self, root: Any) -> Callable[[], None]:
        """What changes the living environment when it is called."""
        self._pair(root)
        if self._value([0]) is not root:
            raise StateError(f"it is not that of a {type(root).__qualname__}")
        while self._empty:
            self._fill(*self._empty.pop())
        return self._commit

    def _commit(self) -> None:
        before = [(x, attributes_of(x), _items(x)) for x, _, _ in self._changes]
        try:
            for change in self._changes:
                _put(*change)
            for container, items in self._hashed:
                if isinstance(container, set):
                    container.update(items)
                else:
                    for key, value in items:
                        container[key] = value
        except Exception:
            for change in before:
                _put(*change)
            raise

    def _pair(self, root: Any) -> None:
        """Find the living object that stands where each saved one stood."""
        used: set[int] = set()
        places: list[tuple[Any, Any]] = [([0], root)]
        while places:
            value, here = places.pop()
            if type(value) is not list or value[0] in self._alive:
                continue
            node, pairs, items = self.nodes[value[0]], (), ()
            match node[0]:
                case "object" if [*full_name(type(here))] == node[1:3] and id(here) not in used:
                    inside = attributes_of(here)
                    places += [(v, inside[k]) for k, v in node[3] if k in inside]
                    if isinstance(here, dict):
                        pairs = node[4]
                    elif isinstance(here, list | tuple):
                        items = node[4]
                case "dict" | "OrderedDict" | "defaultdict" if isinstance(here, dict):
                    pairs = node[1]
                case "list" | "tuple" | "deque" if type(here).__name__ == node[0]:
                    items = node[1]
                case "same":
                    pass
                case _:
                    continue
            self._alive[value[0]] = here
            used.add(id(here))
            places += [(v, here[k]) for k, v in pairs if type(k) is not list and k in here]
            places += zip(items, here if items else (), strict=False)

    def _value(self, value: Any) -> Any:
        if type(value) is not list:
            return value
        (index,) = value
        if index not in self._made:
            if type(index) is not int or not 0 <= index < len(self.nodes):
                raise StateError(f"it has no node {index!r}")
            self._made[index] = self._node(index, *self.nodes[index])
        return self._made[index]

    def _values(self, values: Iterable[Any]) -> list[Any]:
        return [self._value(value) for value in values]

    def _later(self, index: int, made: Any) -> Any:
        self._empty.append((index, made))
        return made

    def _node(self, index: int, kind: str, *rest: Any) -> Any:
        match kind:
            case "list" | "dict" | "OrderedDict" | "Counter" | "set":
                return self._later(index, _CONTAINERS[kind]())
            case "defaultdict":
                return self._later(index, collections.defaultdict(self._value(rest[1])))
            case "deque":
                return self._later(index, collections.deque(maxlen=rest[1]))
            case "objects":
                return self._later(index, np.empty(rest[0], object))
            case "object":
                return self._object(index, *rest)
            case "tuple":
                return tuple(self._values(rest[0]))
            case "frozenset":
                return frozenset(self._values(rest[0]))
            case "constant":
                if rest[0] not in self.vocabulary.constants:
                    raise StateError("it was saved with a constant that is another one here")
                return self.vocabulary.constant(rest[0])
            case "array":
                return _array(*rest)
            case "scalar":
                return np.frombuffer(base64.b64decode(rest[1]), np.dtype(rest[0]))[0]
            case "dtype":
                return np.dtype(rest[0])
            case "enum":
                return self._class(*rest[:2]).__members__[rest[2]]  # type: ignore[attr-defined]
            case "name":
                return self._function(*rest)
            case "method":
                return _method(self._function(*rest[:2]), self._value(rest[2]))
            case "same":
                if index not in self._alive:
                    raise StateError("a space, or an environment's description, is not there")
                return self._alive[index]
            case "bytes" | "bytearray":
                raw = base64.b64decode(rest[0])
                return raw if kind == "bytes" else bytearray(raw)
            case "complex":
                return complex(*rest)
            case "range":
                return range(*rest)
            case "slice":
                return slice(*self._values(rest))
            case _:
                return self._random(kind, rest)

    def _random(self, kind: str, rest: Any) -> Any:
        """Generators of random numbers."""
        whole = [self._whole(part) for part in rest]
        match kind:
            case "Generator":
                return Generator(whole[0])
            case "RandomState":
                made: Any = RandomState()
                made.set_state(whole[0])
            case "SeedSequence":
                entropy, spawn_key, pool_size, children = whole
                made = SeedSequence(
                    entropy, spawn_key=spawn_key, pool_size=pool_size, n_children_spawned=children
                )
            case "Random":
                made = random.Random()
                made.setstate(whole[0])
            case _ if kind in BIT_GENERATORS:
                state, seed = whole
                made = BIT_GENERATORS[kind](0 if seed is None else seed)
                made.state = state
            case _:
                raise StateError(f"there is no kind of node {kind!r}")
        return made

    def _whole(self, value: Any) -> Any:
        """A value with all that is in it, at once."""
        if type(value) is list:
            kind, *rest = self.nodes[value[0]]
            if kind == "dict":
                return {self._whole(k): self._whole(v) for k, v in rest[0]}
            if kind in ("list", "tuple"):
                items = [self._whole(item) for item in rest[0]]
                return items if kind == "list" else tuple(items)
        return self._value(value)

    def _class(self, module: str, name: str) -> type:
        found = self.vocabulary.classes.get((module, name))
        if found is None:
            raise StateError(f"{module}.{name} is no class that this environment consists of")
        return found

    def _function(self, module: str, name: str) -> Any:
        found = self.vocabulary.functions.get((module, name))
        if found is None:
            raise StateError(f"{module}.{name} is no function that this environment has")
        return found

    def _object(self, index: int, module: str, name: str, attributes: Any, content: Any) -> Any:
        cls = self._class(module, name)
        if issubclass(cls, tuple) and can_be_made(cls):
            return tuple.__new__(cls, self._values(content))
        if index in self._alive:
            return self._later(index, self._alive[index])
        if not can_be_made(cls):
            raise StateError(f"{module}.{name} has its own way of being copied, and is not there")
        return self._later(index, base_of(cls).__new__(cls))

    def _fill(self, index: int, made: Any) -> None:
        kind, *rest = self.nodes[index]
        match kind:
            case "list" | "deque":
                made.extend(self._values(rest[0]))
            case "objects":
                flat = made.reshape(-1)
                for place, item in enumerate(self._values(rest[1])):
                    flat[place] = item  # a slice would take lists apart
            case "set":
                self._hashed.append((made, self._values(rest[0])))
            case "object":
                attributes = {key: self._value(value) for key, value in rest[2]}
                items = None
                if isinstance(made, dict):
                    items = [self._values(pair) for pair in rest[3]]
                elif isinstance(made, list | set):
                    items = self._values(rest[3])
                self._changes.append((made, attributes, items))
            case _:
                self._hashed.append((made, [self._values(pair) for pair in rest[0]]))


_CONTAINERS: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
    "set": set,
}


def _method(function: Any, owner: Any) -> Any:
    name = function.__name__
    if all(base.__dict__.get(name) is not function for base in type(owner).__mro__):
        raise StateError(f"{function.__qualname__} is no method of a {type(owner).__qualname__}")
    return types.MethodType(function, owner)


def _items(x: Any) -> Any:
    if isinstance(x, dict):
        return [list(pair) for pair in dict.items(x)]
    return list(base_of(type(x)).__iter__(x)) if isinstance(x, list | set) else None


def _put(x: Any, attributes: dict[str, Any], items: Any) -> None:
    """Give an object attributes and items in the place of those it has."""
    slots = slots_of(type(x))
    if hasattr(x, "__dict__"):
        x.__dict__.clear()
        x.__dict__.update({k: v for k, v in attributes.items() if k not in slots})
    for name, member in slots.items():
        if name in attributes:
            member.__set__(x, attributes[name])
    if isinstance(x, dict | set):
        base: Any = base_of(type(x))
        base.clear(x)
        base.update(x, items)
    elif isinstance(x, list):
        list.__setitem__(x, slice(None), items)


def _array(dtype: str, shape: list[int], data: str, fortran: bool, writeable: bool) -> np.ndarray:
    order = "F" if fortran else "C"
    made = np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape, order=order)
    made = made.copy(order=order)
    made.flags.writeable = writeable
    return made
