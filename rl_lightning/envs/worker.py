"""What runs in an environment's own process: it answers the main one's commands."""

import contextlib
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import write_to_shared_memory

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.failures import failed
from rl_lightning.envs.guard import Guard
from rl_lightning.envs.state import StatefulEnv


def _leave_it(*_: Any) -> None:
    """A signal that reaches every process of a group is for the main one to decide on.

    A function and not SIG_IGN, which processes that an environment starts would inherit.
    """


def serve(
    index: int,
    make: Callable[[], gym.Env],
    pipe: Connection,
    parent_pipe: Connection,
    shared_memory: Any,
    error_queue: Any,
    autoreset_mode: AutoresetMode,
    semaphore: Any,
) -> None:
    """Answer the main process's commands until its end of the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent_pipe.close()
    env: Any = None
    doing = "make"
    try:
        env = Guard(StatefulEnv(make()))
        while (command := _next(pipe)) is not None:
            doing, data = command
            if not _tell(pipe, (_answer(env, doing, data, shared_memory, index), True)):
                break
    except BaseException as error:
        failure = failed("of this process" if env is None else env, error, doing)
        told = isinstance(failure, ConfigurationError), str(failure), traceback.format_exc()
        _tell(pipe, (told, False))
    finally:
        if env is not None:
            with contextlib.suppress(Exception):
                env.close()


def _tell(pipe: Connection, message: Any) -> bool:
    """Whether the main process is still there to be told."""
    data = ForkingPickler.dumps(message)  # what cannot be pickled is the environment's failure
    try:
        pipe.send_bytes(data)
    except OSError:
        return False
    return True


def _next(pipe: Connection) -> tuple[str, Any] | None:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _answer(env: Any, command: str, data: Any, shared_memory: Any, index: int) -> Any:
    """What Gymnasium's own worker answers in autoreset mode SAME_STEP."""
    if command == "step":
        obs, reward, terminated, truncated, info = env.step(data)
        if terminated or truncated:
            info = {"final_info": info, "final_obs": obs}
            obs, fresh = env.reset()
            info |= fresh
        if shared_memory:
            write_to_shared_memory(env.observation_space, index, obs, shared_memory)
            obs = None
        return obs, reward, terminated, truncated, info
    if command == "reset":
        obs, info = env.reset(**data)
        if shared_memory:
            write_to_shared_memory(env.observation_space, index, obs, shared_memory)
            obs = None
        return obs, info
    if command == "_call":
        name, args, kwargs = data
        attribute = env.get_wrapper_attr(name)
        return attribute(*args, **kwargs) if callable(attribute) else attribute
    if command == "_setattr":
        name, value = data
        env.set_wrapper_attr(name, value)
        return None
    if command == "_check_spaces":
        _, observation_space, action_space = data
        return observation_space == env.observation_space, action_space == env.action_space
    raise ValueError(f"unknown command {command!r}")
