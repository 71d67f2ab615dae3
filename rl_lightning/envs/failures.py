"""What an environment raised, told in one sentence: it is not ours, and its author must find it."""

import traceback
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.envs.conform import explained

LONGEST = 300  # characters of a stranger's message


def told(error: BaseException) -> str:
    """Kind, message and place of an exception, in one line: "KeyError: 'x' (my_env.py:12)"."""
    if isinstance(error, SystemExit):
        return explained(error)
    message = shortened(error, LONGEST)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"


def failed(
    env: gym.Env | VectorEnv | str, error: BaseException, doing: str
) -> ConfigurationError | RunError:
    """What to raise, from `error`, where an environment raised it.

    Args:
        env: The environment, or what to call it.
        error: What it raised; an error of this library explains itself and comes back as it is.
        doing: `import`, `make`, `reset`, `step` … An environment that does not even come to its
            first step is a mistake in the configuration; one that fails later ends the run.
    """
    if isinstance(error, ConfigurationError | RunError):
        return error
    kind: Any = ConfigurationError if doing in ("import", "make", "reset") else RunError
    who = env if isinstance(env, str) else name(env)
    return kind(f"environment {who} raised in {doing}: {told(error)}")


def name(env: gym.Env | VectorEnv) -> str:
    """The environment's id, or the name of its class, quoted."""
    return repr(type(own_object(env)).__name__ if env.spec is None else env.spec.id)


def own_object(env: gym.Env | VectorEnv) -> Any:
    """What its author wrote: the environment without wrappers, or what that only stands for."""
    return getattr(env.unwrapped, "stands_for", env.unwrapped)
