"""Objects → nodes."""

import base64
import collections
import enum
import json
import random
import types
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from numpy.random import BitGenerator, Generator, RandomState, SeedSequence

from rl_lightning.envs.state.plain import (
    BIT_GENERATORS,
    FORMAT,
    StateError,
    attributes_of,
    base_of,
    constant_bytes,
    digest,
    full_name,
    is_named,
    is_plain,
)


def save_state(env: Any, constants: Container[str] = ()) -> bytes:
    """The state of an environment, or of a native vector env.

    Args:
        env: The environment.
        constants: Digests of values that every such environment has when it is made, see
            `Vocabulary`; they are named, not written down.

    Raises:
        StateError: If it holds something that is no plain data; the message says where and what.
    """
    return Writer(env, constants).data()


class Writer:
    """Writes what can be reached from an environment.

    A value is a JSON number, text, bool or null, or `[index of a node]`; each object is one node,
    however many others hold it.

    Args:
        root: The environment.
        constants: See `save_state`.
        still_spaces: Whether to write down spaces, too, that nothing has changed.

    Attributes:
        classes: Classes of the objects met.
        functions: Functions, and classes as values, by module and name.
        constants: What may be one, with its bytes, by digest.

    Raises:
        StateError: As `save_state`.
    """

    def __init__(
        self, root: Any, constants: Container[str] = (), still_spaces: bool = False
    ) -> None:
        self.nodes: list[Any] = []
        self.classes: set[type] = set()
        self.functions: dict[tuple[str, str], Any] = {}
        self.constants: dict[str, tuple[Any, bytes]] = {}
        self._known = constants
        self._still_spaces = still_spaces
        self._index: dict[int, int] = {}
        self._keep: list[Any] = []  # an id means something only while its object lives
        self._memory: dict[int, list[np.ndarray]] = {}
        try:
            self._value(root)
        except RecursionError as error:
            raise StateError("env is nested too deeply") from error
        except _NotPlainError as error:
            raise StateError(f"{'.'.join(['env', *error.path])} is {error}") from error

    def data(self) -> bytes:
        """The nodes as bytes of JSON; equal states have equal bytes."""
        return json.dumps({"format": FORMAT, "nodes": self.nodes}, separators=(",", ":")).encode()

    def _value(self, x: Any) -> Any:
        kind = type(x)
        if kind in _PRIMITIVES:
            return x
        index = self._index.get(id(x))
        if index is None:
            index = self._index[id(x)] = len(self.nodes)
            self._keep.append(x)
            self.nodes.append(None)
            write = _WRITERS.get(kind)
            self.nodes[index] = self._other(x, kind) if write is None else write(self, x)
        return [index]

    def _values(self, items: Iterable[Any]) -> list[Any]:
        value = self._value
        return [x if type(x) in _PRIMITIVES else value(x) for x in items]

    def _pairs(self, mapping: Mapping[Any, Any]) -> list[Any]:
        value = self._value
        return [[value(key), value(entry)] for key, entry in mapping.items()]

    def _other(self, x: Any, kind: type) -> list[Any]:
        """A node of something whose exact type says nothing."""
        if isinstance(x, BitGenerator) and BIT_GENERATORS.get(kind.__name__) is kind:
            seed: Any = x.seed_seq
            known = seed if type(seed) is SeedSequence else None
            return [kind.__name__, self._value(x.state), self._value(known)]
        if isinstance(x, np.generic) and not x.dtype.hasobject:
            return ["scalar", x.dtype.str, _text(x.tobytes())]
        if isinstance(x, enum.Enum):
            if kind.__members__.get(x.name) is not x:
                raise _NotPlainError(f"{x!r}, a member without a name")
            self.classes.add(kind)
            return ["enum", *full_name(kind), x.name]
        if isinstance(x, type) or kind in (types.FunctionType, types.BuiltinFunctionType):
            return self._named(x)
        if kind is types.MethodType:
            bound: Any = x
            self.functions[full_name(bound.__func__)] = bound.__func__
            return ["method", *full_name(bound.__func__), self._value(bound.__self__)]
        if isinstance(x, np.dtype):
            return ["dtype", _dtype(x)]
        still = isinstance(x, gym.Space) and not self._still_spaces and _is_still(x)
        if still or isinstance(x, EnvSpec | WrapperSpec):
            return ["same"]
        return self._object(x, kind)

    def _named(self, x: Any) -> list[Any]:
        owner = getattr(x, "__self__", None)
        if not is_named(x) or not (owner is None or isinstance(owner, types.ModuleType)):
            raise _NotPlainError(f"{x!r}, a function that no name leads to")
        self.functions[full_name(x)] = x
        return ["name", *full_name(x)]

    def _object(self, x: Any, cls: type) -> list[Any]:
        if not is_plain(cls):
            raise _NotPlainError("a " + ".".join(full_name(cls)))
        self.classes.add(cls)
        attributes = []
        for name, value in attributes_of(x).items():
            try:
                attributes.append([name, self._attribute(value)])
            except _NotPlainError as error:
                error.path.insert(0, name)
                raise
        content = None
        if isinstance(x, dict):
            content = self._pairs(dict(dict.items(x)))
        elif isinstance(x, list | set | tuple):
            content = self._values(list(base_of(cls).__iter__(x)))
        return ["object", *full_name(cls), attributes, content]

    def _attribute(self, x: Any) -> Any:
        if id(x) not in self._index and (data := constant_bytes(x)) is not None:
            name = digest(data)
            self.constants[name] = (x, data)
            if name in self._known:
                self._index[id(x)] = len(self.nodes)
                self._keep.append(x)
                self.nodes.append(["constant", name])
        return self._value(x)

    def _array(self, x: np.ndarray) -> list[Any]:
        self._check_memory(x)
        if x.dtype == object:
            return ["objects", list(x.shape), self._values(x.ravel().tolist())]
        fortran = x.flags.f_contiguous and not x.flags.c_contiguous
        data = _text(x.tobytes("F" if fortran else "C"))
        return ["array", _dtype(x.dtype), list(x.shape), data, fortran, x.flags.writeable]

    def _check_memory(self, x: np.ndarray) -> None:
        """Two arrays over the same numbers would become two copies of them."""
        owner: Any = x
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        beside = self._memory.setdefault(id(owner), [])
        if x.flags.writeable and any(np.may_share_memory(x, other) for other in beside):
            raise _NotPlainError("an array that shares its memory with another one")
        beside.append(x)
        self._keep.append(owner)


class _NotPlainError(Exception):
    """What was met; `path` says where, from the inside out."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _dtype(dtype: np.dtype) -> str:
    if dtype.hasobject or dtype.fields is not None:
        raise _NotPlainError(f"of the dtype {dtype}")
    return dtype.str


def _is_still(space: gym.Space) -> bool:
    """Whether a space has nothing that changes: its random numbers have never been asked for."""
    inner: Any = getattr(space, "spaces", ())
    parts = inner.values() if isinstance(inner, Mapping) else inner
    return space._np_random is None and all(_is_still(part) for part in parts)


_PRIMITIVES = frozenset({type(None), bool, int, float, str})
_WRITERS: dict[type, Callable[[Any, Any], list[Any]]] = {
    list: lambda w, x: ["list", w._values(x)],
    tuple: lambda w, x: ["tuple", w._values(x)],
    set: lambda w, x: ["set", w._values(x)],
    frozenset: lambda w, x: ["frozenset", w._values(x)],
    dict: lambda w, x: ["dict", w._pairs(x)],
    collections.OrderedDict: lambda w, x: ["OrderedDict", w._pairs(x)],
    collections.Counter: lambda w, x: ["Counter", w._pairs(x)],
    collections.defaultdict: lambda w, x: ["defaultdict", w._pairs(x), w._value(x.default_factory)],
    collections.deque: lambda w, x: ["deque", w._values(x), x.maxlen],
    bytes: lambda w, x: ["bytes", _text(x)],
    bytearray: lambda w, x: ["bytearray", _text(bytes(x))],
    complex: lambda w, x: ["complex", x.real, x.imag],
    range: lambda w, x: ["range", x.start, x.stop, x.step],
    slice: lambda w, x: ["slice", *w._values((x.start, x.stop, x.step))],
    np.ndarray: Writer._array,
    Generator: lambda w, x: ["Generator", w._value(x.bit_generator)],
    RandomState: lambda w, x: ["RandomState", w._value(x.get_state(legacy=False))],
    SeedSequence: lambda w, x: [
        "SeedSequence",
        *w._values((x.entropy, tuple(x.spawn_key), x.pool_size, x.n_children_spawned)),
    ],
    random.Random: lambda w, x: ["Random", w._value(x.getstate())],
}
