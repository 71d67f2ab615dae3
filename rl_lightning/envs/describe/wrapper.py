"""The wrapper that replaces observations by sentences, and the table of known describers."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.trust import import_named
from rl_lightning.envs.failures import told
from rl_lightning.envs.text import is_printable, text_space

Describer = Callable[[Any, gym.Env], str]

TEXT = "text"
"""The entry of the text, where what it describes is kept."""
# Dotted paths, so that a describer is imported when it is needed: minigrid's takes a second.
_HERE = "rl_lightning.envs.describe."
_DESCRIBERS: dict[str, str | Describer] = {
    "CartPole-": _HERE + "classic_control.describe_cart_pole",
    "MountainCar": _HERE + "classic_control.describe_mountain_car",
    "Acrobot-": _HERE + "classic_control.describe_acrobot",
    "Pendulum-": _HERE + "classic_control.describe_pendulum",
    "FrozenLake": _HERE + "toy_text.describe_frozen_lake",
    "CliffWalking": _HERE + "toy_text.describe_cliff_walking",
    "Taxi-": _HERE + "toy_text.describe_taxi",
    "Blackjack-": _HERE + "toy_text.describe_blackjack",
    "MiniGrid-": _HERE + "minigrid.describe",
    "BabyAI-": _HERE + "minigrid.describe",
}


def register_describer(id_or_prefix: str, describer: str | Describer) -> None:
    """Let `Describe` find a describer by itself.

    A process started by spawning does not see what another one registered: there, give `Describe`
    the describer itself.

    Args:
        id_or_prefix: Gymnasium id, or how ids begin. The longest match wins, the latest
            registration replaces an equal one.
        describer: A function `describe(obs, env) -> str`, or its dotted path.

    Raises:
        ValueError: If `id_or_prefix` is empty or not a text.
        TypeError: If `describer` is neither callable nor a text.
    """
    if not isinstance(id_or_prefix, str) or not id_or_prefix:
        raise ValueError(f"id_or_prefix={id_or_prefix!r}: expected an environment id or its start")
    if not isinstance(describer, str) and not callable(describer):
        raise TypeError(
            f"describer={describer!r}: expected a function describe(obs, env) -> str or its path"
        )
    _DESCRIBERS[id_or_prefix] = describer


class Describe(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Observations as texts of printable ASCII characters and newlines, alone or beside what they
    describe.

    Args:
        env: Environment to describe.
        describer: A function `describe(obs, env) -> str` that gets the wrapped environment, the
            dotted path of one ("package.module.function"), or None to look up the id of `env`.
        max_length: Longest text in characters. A longer one is an error: cut off, different
            observations would read the same.
        keep: Keep what is described: the text becomes the entry `text` of a Dict, beside the
            entries of a Dict, or beside any other observation as the entry `observation`.

    Raises:
        ValueError: If no describer is known or the path leads nowhere; on reset and step if a text
            is too long or not printable.
        ConfigurationError: If a describer of ours would read what a wrapper has made of the
            environment's own observations, or if there is an entry `text` already; on reset and
            step if a describer raises an error.
        TypeError: If `describer` or what it returns has the wrong type.
    """

    def __init__(
        self,
        env: gym.Env,
        describer: str | Describer | None = None,
        max_length: int = 2048,
        keep: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(self, describer=describer, max_length=max_length, keep=keep)
        gym.ObservationWrapper.__init__(self, env)
        if not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"max_length={max_length!r}: expected a positive integer")
        self.max_length = max_length
        self.describer = _resolve(_look_up(env) if describer is None else describer)
        self.keep = keep
        self.observation_space = (
            self._space(env.observation_space) if keep else text_space(max_length)
        )
        ours = getattr(self.describer, "__module__", "").startswith(_HERE)
        if ours and not _alike(env.observation_space, env.unwrapped.observation_space):
            raise ConfigurationError(
                f"Describe: {_name(self.describer)} reads {_short(env.unwrapped)}, not "
                f"{_short(env)}; {_way_out(env)}"
            )

    def _space(self, space: gym.Space) -> gym.spaces.Dict:
        beside = {"observation": space}
        if isinstance(space, gym.spaces.Dict):
            beside = dict(space.spaces)
        if TEXT in beside:
            raise ConfigurationError(
                f"Describe: {shortened(space)} has an entry {TEXT!r} already; set keep: false"
            )
        return gym.spaces.Dict({**beside, TEXT: text_space(self.max_length)})

    def observation(self, observation: Any) -> Any:
        """The text of one observation, or that beside it."""
        text = self._text(observation)
        if not self.keep:
            return text
        is_dict = isinstance(self.env.observation_space, gym.spaces.Dict)
        beside = observation if is_dict else {"observation": observation}
        return {**beside, TEXT: text}

    def _text(self, observation: Any) -> str:
        try:
            text = self.describer(observation, self.env)
        except Exception as error:
            raise ConfigurationError(
                f"Describe: {_name(self.describer)} raised {told(error)}; {_way_out(self.env)}"
            ) from error
        if not isinstance(text, str):
            raise TypeError(f"{_name(self.describer)} returned {type(text).__name__}, expected str")
        if len(text) > self.max_length:
            raise ValueError(
                f"{_name(self.describer)} wrote {len(text)} characters, max_length is "
                f"{self.max_length}: raise max_length or write less ({text[:60]!r}...)"
            )
        if not is_printable(text):
            strange = sorted({c for c in text if not is_printable(c)})
            raise ValueError(
                f"{_name(self.describer)} wrote {strange}: expected printable ASCII and newlines"
            )
        return text


def _look_up(env: gym.Env) -> str | Describer:
    env_id = env.spec.id if env.spec is not None else None
    known = [key for key in _DESCRIBERS if env_id is not None and env_id.startswith(key)]
    if not known:
        raise ValueError(
            f"no describer for {env_id or repr(env)}; known are {', '.join(sorted(_DESCRIBERS))}. "
            "Write a function describe(obs, env) -> str and pass it or its dotted path as "
            "`describer`, or give it to register_describer."
        )
    return _DESCRIBERS[max(known, key=len)]


def _resolve(describer: str | Describer) -> Describer:
    if isinstance(describer, str):
        path, (module, _, name) = describer, describer.rpartition(".")
        try:
            describer = getattr(import_named(module, f"the describer {path}"), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"describer={path!r} is not the dotted path of a function, such as "
                f"'package.module.function': {error}"
            ) from error
    if not callable(describer):
        raise TypeError(
            f"describer={describer!r}: expected a function describe(obs, env) -> str, its dotted "
            "path, or None"
        )
    return describer


def _alike(given: gym.Space, own: gym.Space) -> bool:
    """Whether observations are numbered and scaled alike; of a Dict, entries may differ."""
    if isinstance(given, gym.spaces.Box) and isinstance(own, gym.spaces.Box):
        bounds = ((given.low, own.low), (given.high, own.high))
        return given.shape == own.shape and all(np.allclose(a, b) for a, b in bounds)
    return given == own or isinstance(own, gym.spaces.Dict)


def _short(env: gym.Env) -> str:
    """Its observation space in one line: NumPy breaks long bounds into many."""
    return shortened(env.observation_space)


def _way_out(env: gym.Env) -> str:
    between = []
    while isinstance(env, gym.Wrapper):
        anew = env.observation_space is not env.env.observation_space
        if anew or isinstance(env, gym.ObservationWrapper):
            between.append(type(env).__name__)
        env = env.env
    if not between:
        return "give Describe another describer"
    return f"put Describe before {' and '.join(reversed(between))}"


def _name(describer: Describer) -> str:
    return f"describer {getattr(describer, '__qualname__', repr(describer))}"
