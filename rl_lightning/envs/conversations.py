"""What others call an environment that is spoken with, as a Gymnasium environment of texts.

Each adapter is thin: it hands texts on, and keeps to what an object offers by itself.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.trust import import_named
from rl_lightning.envs.conform import MisfitError, number
from rl_lightning.envs.failures import told
from rl_lightning.envs.make import WrapperSpec, make_env, wrap_env
from rl_lightning.envs.text import text_space

_LONGEST = 1_000_000
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def make_text_env(
    env: str,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[WrapperSpec] = (),
) -> gym.Env:
    """One environment that is spoken with.

    Args:
        env: Gymnasium id, see `make_env`; or `module:function`, which returns an environment, or
            anything that `as_text_env` takes.
        env_kwargs: Keyword arguments of either.
        wrappers: See `make_env`.

    Raises:
        ConfigurationError: If there is no such environment, or it cannot be made.
    """
    module, colon, name = env.rpartition(":")
    if not (colon and name.isidentifier()) or name in gym.registry:
        return make_env(env, env_kwargs, wrappers)
    kwargs = dict(env_kwargs or {})
    try:
        found = import_named(module, f"the environment {env}")
        make = getattr(found, name, None)
        if make is None and name in gym.registry:  # as which the module has registered it
            return make_env(env, env_kwargs, wrappers)
        if not callable(make):
            raise ConfigurationError(f"environment {env!r}: {module} has no function {name}")
        made = as_text_env(make(**kwargs))
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's may raise anything
        raise ConfigurationError(f"environment {env!r} with {kwargs}: {told(error)}") from error
    for wrapper in wrappers:
        made = wrap_env(made, wrapper)
    return made


def as_text_env(
    made: Any,
    say: Callable[[str], Any] | None = None,
    read: Callable[[Any], str] | None = None,
) -> gym.Env:
    """An object that is spoken with as a Gymnasium environment; one of those stays as it is.

    - With `reset` and `step`, as OpenEnv's and many others: `SteppedEnv`.
    - With `reset`, `step` and `get_observation`, as TextArena's games of one player: `ArenaEnv`.
    - With `reset` and tools, as TRL's `environment_factory` makes them: `ToolEnv`.

    Args:
        made: The object.
        say: What a text is in `step`, such as `lambda text: Guess(word=text)`; None: itself.
        read: The text of an observation, such as `lambda found: found.board`; None: itself.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if isinstance(made, gym.Env):
        return made
    has = {name for name in ("reset", "step", "get_observation") if callable(_get(made, name))}
    if "reset" in has and "step" in has:
        return ArenaEnv(made) if "get_observation" in has else SteppedEnv(made, say, read)
    if "reset" in has and tools_of(made):
        return ToolEnv(made)
    raise ConfigurationError(
        f"{type(made).__name__} is no environment to speak with: it needs reset and step, or reset "
        "and methods that are tools"
    )


class TextEnv(gym.Env[str, str]):
    """Texts in, texts out."""

    def __init__(self, made: Any) -> None:
        self.made = self.stands_for = made
        self.observation_space = text_space(_LONGEST)
        self.action_space = text_space(_LONGEST)

    @property
    def takes_seed(self) -> bool:
        """Whether an episode depends on the seed of `reset`."""
        return _takes_seed(self.made.reset)

    def close(self) -> None:
        """Close what is inside, if it can be closed."""
        close = _get(self.made, "close")
        if callable(close):
            close()


class SteppedEnv(TextEnv):
    """An object with `reset` and `step`.

    `reset` returns an observation, or a pair of that and a dict; it is given `seed` if it takes
    one. `step` returns a tuple as Gymnasium's, of five or four entries. Both may return an object
    instead that has `observation`, and `reward` and `done` (or `terminated`), as OpenEnv's do.

    Args:
        made: The object.
        say: See `as_text_env`, as for
        read: this.
    """

    def __init__(
        self,
        made: Any,
        say: Callable[[str], Any] | None = None,
        read: Callable[[Any], str] | None = None,
    ) -> None:
        super().__init__(made)
        self.say, self.read = say or _itself, read or _itself

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        found = _with_seed(self.made.reset, seed)
        info: Any = {}
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping | None):
            found, info = found
        return self.read(_get(found, "observation", found)), dict(info or {})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        found = self.made.step(self.say(action))
        fits = isinstance(found, tuple) and len(found) in (4, 5)
        if not (fits or (hasattr(found, "observation") and hasattr(found, "reward"))):
            raise MisfitError(
                "step must return observation, reward, terminated, truncated and info, or "
                "observation, reward, done and info, or an object with observation, reward and "
                f"done, not {_spelled(found)}"
            )
        if fits:
            observation, reward, *over, info = found
            terminated, truncated = (*over, False)[:2]
        else:
            observation, reward = _get(found, "observation"), _get(found, "reward")
            terminated = _get(found, "terminated", _get(found, "done", False))
            truncated = _get(found, "truncated", False)
            info = _get(found, "info", _get(found, "metadata", None))
        if not isinstance(info, Mapping | None):
            raise MisfitError(f"the info that step returns must be a dict, not {_spelled(info)}")
        return (
            self.read(observation),
            0.0 if reward is None else float(number(reward)),  # None: OpenEnv's, of nothing paid
            bool(terminated),
            bool(truncated),
            dict(info or {}),
        )


class ArenaEnv(TextEnv):
    """A game of TextArena's for one player: `reset(num_players, seed)`, `get_observation`, `step`
    and, of an episode that is over, `close`, which says what it was worth.

    Give the game without wrappers (`textarena.make("Sokoban-v0-raw")`): it tells what is new, and
    they would tell all again. What the player has said itself is left out.
    """

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.made.reset(num_players=1, seed=seed)
        return self._told(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        done, info = self.made.step(action=action)
        if not done:
            return self._told(), 0.0, False, False, dict(info)
        text = self._told()
        rewards, _ = self.made.close()
        return text, float((rewards or {}).get(0, 0.0)), True, False, dict(info)

    def close(self) -> None:
        """Nothing is open: `close` of a game says who has won."""

    def _told(self) -> str:
        player, found = self.made.get_observation()
        if isinstance(found, str):
            return found
        return "\n".join(str(said) for who, said, *_ in found if who != player)


class ToolEnv(TextEnv):
    """An object whose public methods are tools, as TRL's `environment_factory` makes them.

    A turn calls a tool by `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, once or several
    times, and what it returns is answered; a turn without a call is the last one. What goes wrong
    in a call is answered, too. The reward is what `get_reward()` returns, or else the attribute
    `reward`: each turn is paid by how much it has grown. An attribute `done` that is true ends the
    episode.

    Args:
        made: The object. Its `reset` returns a text, or nothing, and is given `seed` if it takes
            one.
    """

    def __init__(self, made: Any) -> None:
        super().__init__(made)
        self.tools = tools_of(made)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        found = _with_seed(self.made.reset, seed)
        self._paid = self._worth()
        parts = [*map(_described, self.tools.values()), *([found] if found else [])]
        return "\n".join(parts), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        answers = [self._answer(call) for call in _CALL.findall(action)]
        worth = self._worth()
        reward, self._paid = worth - self._paid, worth
        done = not answers or bool(_get(self.made, "done", False))
        return "\n".join(answers), reward, done, False, {}

    def _answer(self, call: str) -> str:
        try:
            asked = json.loads(call)
            name, arguments = asked["name"], asked.get("arguments") or {}
            if name not in self.tools:
                return f"error: there is no tool {name!r}, but {', '.join(self.tools)}"
            return str(self.tools[name](**arguments))
        except Exception as error:  # the model's to make good
            return f"error: {type(error).__name__}: {shortened(error)}"

    def _worth(self) -> float:
        ask = _get(self.made, "get_reward")
        worth: Any = ask() if callable(ask) else _get(self.made, "reward", 0.0)
        return 0.0 if worth is None else float(number(worth))


def tools_of(made: Any) -> dict[str, Callable[..., Any]]:
    """Public methods by name, but for those that are no tools."""
    own = inspect.getmembers(made, inspect.ismethod)
    others = ("reset", "get_reward", "close")
    return {name: tool for name, tool in own if name[0] != "_" and name not in others}


def _described(tool: Callable[..., Any]) -> str:
    told = inspect.getdoc(tool) or ""
    return f"{tool.__name__}{inspect.signature(tool)}: {told}".rstrip(": ")


def _with_seed(reset: Callable[..., Any], seed: int | None) -> Any:
    return reset(seed=seed) if _takes_seed(reset) else reset()


def _takes_seed(reset: Callable[..., Any]) -> bool:
    try:
        known = inspect.signature(reset).parameters
    except (ValueError, TypeError):  # nobody can say
        return False
    return "seed" in known or any(one.kind is one.VAR_KEYWORD for one in known.values())


def _get(made: Any, name: str, otherwise: Any = None) -> Any:
    return getattr(made, name, otherwise)


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"{type(value).__name__} {shortened(repr(value), 60)}"


def _itself(x: Any) -> Any:
    return x
