"""Making vector environments from plain data: an id, keyword arguments and wrapper names."""

import copy
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.core.trust import import_named
from rl_lightning.envs.async_env import ProcessVectorEnv
from rl_lightning.envs.failures import failed, told
from rl_lightning.envs.statistics import check_wrapper, check_wrappers
from rl_lightning.envs.sync import LeanSyncVectorEnv

Vectorization = Literal["sync", "async", "native"]
WrapperSpec = str | dict[str, dict[str, Any] | None]

# Packages that bring environments, by what their ids start with.
_PROVIDERS = {
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "ALE/": "ale_py",
    "MinAtar/": "minatar",
}


def make_env(
    env: str,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[WrapperSpec] = (),
    render_mode: str | None = None,
) -> gym.Env:
    """One environment with its wrappers, innermost first.

    Args:
        env: Gymnasium id; `module:id` imports the module first.
        env_kwargs: Keyword arguments of the environment.
        wrappers: Names, or one-entry mappings from a name to keyword arguments. A name is looked up
            in `rl_lightning.envs`, then in `gymnasium.wrappers`; a dotted path is imported.
        render_mode: Gymnasium render mode.

    Raises:
        ConfigurationError: If the id, a wrapper or one of their arguments is wrong, if anything is
            raised on the way, or if a wrapper normalises by running statistics.
    """
    with _surviving(env):
        return _make_env(env, env_kwargs, wrappers, render_mode)


def _make_env(
    env: str,
    env_kwargs: Mapping[str, Any] | None,
    wrappers: Sequence[WrapperSpec],
    render_mode: str | None,
) -> gym.Env:
    _check_id(env)
    kwargs = dict(env_kwargs or {})
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    # Two wrappers that only guard against misuse would cost a tenth of a simple environment's step.
    spec = copy.deepcopy(gym.spec(env.rpartition(":")[2]))
    spec.order_enforce = False
    try:
        made = gym.make(spec, disable_env_checker=True, **kwargs)
    except ConfigurationError:
        raise
    except Exception as error:  # a stranger's constructor may raise anything
        raise ConfigurationError(f"environment {env!r} with {kwargs}: {told(error)}") from error
    for wrapper in wrappers:
        made = wrap_env(made, wrapper)
    return check_wrappers(made)


def make_vector_env(
    env: str,
    num_envs: int,
    vectorization: Vectorization = "sync",
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[WrapperSpec] = (),
    render_mode: str | None = None,
) -> VectorEnv:
    """`num_envs` copies of an environment behind Gymnasium's vector interface.

    Args:
        env: Gymnasium id.
        num_envs: B.
        vectorization: `sync` steps them in turn; `async` gives each a process, which pays for
            environments slower than about a millisecond a step; `native` uses the environment's own
            vectorised implementation.
        env_kwargs: Keyword arguments of each environment.
        wrappers: See `make_env`; not with `native`.
        render_mode: Gymnasium render mode.

    Returns:
        A vector env whose `metadata["autoreset_mode"]` says when finished episodes restart:
        SAME_STEP for sync and async, of native ones what they say. Observations may live in a
        buffer that the next step overwrites.

    Raises:
        ConfigurationError: If anything about the description is wrong.
    """
    num_envs = whole("num_envs", num_envs, 1)
    if vectorization == "native":
        with _surviving(env):
            return _make_native(env, num_envs, env_kwargs, wrappers, render_mode)
    make = _EnvFactory(env, dict(env_kwargs or {}), list(wrappers), render_mode)
    if vectorization == "sync":
        made: VectorEnv = LeanSyncVectorEnv([make] * num_envs)
    elif vectorization == "async":
        spare = make()  # a wrong configuration is reported here, not from another process
        # Gymnasium reads text from shared memory once and returns those blanks for ever.
        shared_memory = not _holds_text(spare.observation_space)
        spare.close()
        made = ProcessVectorEnv(make, num_envs, env, shared_memory)
    else:
        raise ConfigurationError(
            f"vectorization must be sync, async or native, not {vectorization!r}"
        )
    made.spec = gym.spec(env.rpartition(":")[2])
    return made


class _EnvFactory:
    """`make_env` with its arguments, as something a process can be started with."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __call__(self) -> gym.Env:
        import rl_lightning.envs  # noqa: F401  (registers our environments in a fresh process)

        return make_env(*self.args)


@contextmanager
def _surviving(env: str) -> Iterator[None]:
    """An environment that ends the program while it is made must not look like a success."""
    try:
        yield
    except SystemExit as error:
        raise failed(repr(env), error, "make") from error


def _make_native(
    env: str,
    num_envs: int,
    env_kwargs: Mapping[str, Any] | None,
    wrappers: Sequence[WrapperSpec],
    render_mode: str | None,
) -> VectorEnv:
    _check_id(env)
    if wrappers:
        raise ConfigurationError(
            "vectorization: native has no single environments to wrap; leave out wrappers, or use "
            "vectorization: sync"
        )
    if gym.spec(env.rpartition(":")[2]).vector_entry_point is None:
        raise ConfigurationError(
            f"environment {env!r} has no vectorised implementation of its own (no "
            "vector_entry_point); use vectorization: sync or async"
        )
    kwargs = dict(env_kwargs or {})
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        made = gym.make_vec(env, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    except Exception as error:
        raise ConfigurationError(f"environment {env!r} with {kwargs}: {told(error)}") from error
    mode = made.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        says = "says nothing of" if mode is None else f"says {mode!r} of"
        raise ConfigurationError(
            f"environment {env!r} {says} when its vectorised implementation restarts an episode: "
            'its metadata["autoreset_mode"] must be AutoresetMode.NEXT_STEP or SAME_STEP; or use '
            "vectorization: sync"
        )
    return made


def _holds_text(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(_holds_text(part) for part in space.spaces.values())
    if isinstance(space, gym.spaces.Tuple):
        return any(_holds_text(part) for part in space.spaces)
    return not isinstance(space, gym.spaces.Box | gym.spaces.Discrete) and space.shape is None


def _check_id(env: str) -> None:
    for prefix, package in _PROVIDERS.items():
        if env.startswith(prefix) and env not in gym.registry:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ConfigurationError(
                    f"environment {env!r} needs the package {package}: pip install {package}"
                ) from error
            if package == "ale_py":
                gym.register_envs(importlib.import_module(package))
            if package == "minatar" and "MinAtar/Breakout-v1" not in gym.registry:
                importlib.import_module("minatar.gym").register_envs()
    module, _, name = env.rpartition(":")
    if module:
        try:
            import_named(module, f"the environment {env}")
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:  # a script that was meant to be run may exit
            raise ConfigurationError(
                f"environment {env!r}: importing {module} raised {told(error)}"
            ) from error
    try:
        gym.spec(name)
    except gym.error.Error as error:
        raise ConfigurationError(
            f"unknown environment {env!r}: {error} "
            "(an environment of your own is named module:Id-v0, and importing module registers it)"
        ) from error


def wrap_env(env: gym.Env, wrapper: WrapperSpec) -> gym.Env:
    """An environment in a wrapper, which is described as in `make_env`.

    Raises:
        ConfigurationError: If there is no such wrapper, or it cannot be made.
    """
    if isinstance(wrapper, str):
        name, kwargs = wrapper, {}
    elif isinstance(wrapper, Mapping) and len(wrapper) == 1:
        name, kwargs = next(iter(wrapper.items()))
        kwargs = {} if kwargs is None else kwargs
    else:
        name = kwargs = None
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        raise ConfigurationError(
            f"wrappers: {wrapper!r} must be a name or a mapping from one name to its arguments"
        )
    cls = _find_wrapper(name)
    check_wrapper(cls)
    if isinstance(cls, type) and issubclass(cls, VectorEnv):
        raise ConfigurationError(
            f"wrapper {name} wraps vector environments, and data.wrappers wrap single ones; use "
            "what gymnasium.wrappers has of that kind"
        )
    try:
        inspect.signature(cls).bind(env, **kwargs)
    except TypeError as error:
        raise ConfigurationError(
            f"wrapper {name}: {error}; it takes {inspect.signature(cls)}"
        ) from error
    try:
        made = cls(env, **kwargs)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"wrapper {name} with {kwargs}: {told(error)}") from error
    if not isinstance(made, gym.Env):
        raise ConfigurationError(
            f"wrapper {name} with {kwargs} returned a {type(made).__name__}, and no environment"
        )
    return made


def _find_wrapper(name: str) -> Callable[..., gym.Env]:
    import rl_lightning.envs as own

    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(import_named(module, f"the wrapper {name}"), attribute)
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"wrapper {name!r} cannot be imported: {told(error)}"
            ) from error
    for place in (own, gym.wrappers):
        if hasattr(place, name):
            return getattr(place, name)
    raise ConfigurationError(
        f"unknown wrapper {name!r}: neither rl_lightning.envs nor gymnasium.wrappers has it; "
        "name your own by its dotted path, package.module.Class"
    )
