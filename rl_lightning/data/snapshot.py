"""Copying the state of environments into a checkpoint and back.

An environment whose state is plain Python (TextMaze, classic control, toy_text, MiniGrid …) can be
pickled; one that holds a simulator's memory cannot, or, worse, pickles only its constructor's
arguments (`gymnasium.utils.EzPickle`). So copying is tried out on a spare environment first.

A checkpoint is otherwise loaded with `weights_only=True`. These bytes are unpickled only when
training is resumed. Only what the packages of the running environments define, NumPy's arrays and
generators, and the standard containers are let in; of the former only classes are ever called, so a
function can be part of a state but not run by loading it. That narrows what a forged checkpoint can
do; it is no sandbox.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

_SAFE = {
    "builtins": {"set", "frozenset", "range", "slice", "complex", "bytearray", "object"},
    "collections": {"OrderedDict", "deque", "defaultdict", "Counter"},
    "copyreg": {"_reconstructor", "__newobj__"},
    "random": {"Random"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.random._pickle": {
        "__generator_ctor",
        "__bit_generator_ctor",
        "__randomstate_ctor",
    },
    "numpy.random._pcg64": {"PCG64"},
    "numpy.random._mt19937": {"MT19937"},
    "numpy.random.bit_generator": {"SeedSequence", "__pyx_unpickle_SeedSequence"},
}


class _Unpickler(pickle._Unpickler):  # the one in Python: what it calls can be looked at
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, data: bytes, packages: frozenset[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.packages = packages
        self._safe: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        if name in _SAFE.get(module, ()):
            self._safe.append(super().find_class(module, name))
            return self._safe[-1]
        # Defined there, not only imported: else `from os import system` would open the door.
        root = name.partition(".")[0]
        inside = module.partition(".")[0] in self.packages
        home = getattr(super().find_class(module, root), "__module__", "") if inside else ""
        if home.partition(".")[0] not in self.packages:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong to the environment")
        return super().find_class(module, name)

    def load_reduce(self) -> None:
        self._check_callable(self.stack[-2])  # type: ignore[attr-defined]
        super().load_reduce()  # type: ignore[misc]

    def _instantiate(self, klass: Any, args: Any) -> None:
        self._check_callable(klass)
        super()._instantiate(klass, args)  # type: ignore[misc]

    def _check_callable(self, made: Any) -> None:
        if not isinstance(made, type) and not any(made is safe for safe in self._safe):
            raise pickle.UnpicklingError(f"{made!r} is no class: loading will not call it")

    dispatch[pickle.REDUCE[0]] = load_reduce  # type: ignore[index]


class Snapshots:
    """Takes and restores the state of a vector env's environments.

    Args:
        spare: An environment (or native vector env) like the ones to copy; it is stepped a little
            to find out whether a copy goes on as the original does.

    Attributes:
        supported: Whether these environments can be copied.
    """

    def __init__(self, spare: gym.Env | VectorEnv) -> None:
        self.packages = _packages(spare)
        self.supported = self._try(spare)

    def take(self, env: VectorEnv) -> list[bytes]:
        """The state of every environment."""
        if isinstance(env, SyncVectorEnv | AsyncVectorEnv):
            return [pickle.dumps(state) for state in env.get_attr("__dict__")]
        return [pickle.dumps(env.__dict__)]

    def put(self, env: VectorEnv, states: Sequence[bytes]) -> None:
        """Restore what `take` returned.

        Raises:
            pickle.UnpicklingError: If the bytes hold anything the environments are not made of.
        """
        loaded = [self._load(state) for state in states]
        if isinstance(env, SyncVectorEnv | AsyncVectorEnv):
            env.set_attr("__dict__", loaded)
        else:
            env.__dict__.update(loaded[0])

    def _load(self, state: bytes) -> Any:
        return _Unpickler(state, self.packages).load()

    def _try(self, env: gym.Env | VectorEnv) -> bool:
        try:
            env.reset(seed=0)
            env.action_space.seed(0)
            actions = [env.action_space.sample() for _ in range(4)]
            env.step(actions[0])
            state = pickle.dumps(env.__dict__)
            first = _play(env, actions)
            env.__dict__.update(self._load(state))
            second = _play(env, actions)
        except Exception:
            # Anything at all may go wrong inside a stranger's __reduce__; the answer is the same.
            return False
        return first == second


def _play(env: gym.Env | VectorEnv, actions: Sequence[Any]) -> list[bytes]:
    trace = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        trace.append(pickle.dumps([_plain(obs), _plain(reward), _plain(terminated)]))
        if not isinstance(env, VectorEnv) and (terminated or truncated):
            env.reset()
    return trace


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return [_plain(v) for v in x]
    return x if isinstance(x, str) else np.asarray(x).tolist()


def _packages(env: gym.Env | VectorEnv) -> frozenset[str]:
    names = {type(env).__module__}
    while isinstance(env, gym.Wrapper):
        env = env.env
        names.add(type(env).__module__)
    roots = {name.partition(".")[0] for name in names} | {"gymnasium"}
    # A script's own classes live in __main__, beside everything else it imported.
    return frozenset(roots - {"builtins"})
