"""An environment as one side of a conversation: it says texts, and takes others as actions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.core.spaces import is_text
from rl_lightning.data.collect.statistics import read_success
from rl_lightning.envs.conform import MisfitError, five, flag, number
from rl_lightning.envs.describe.actions import names_of
from rl_lightning.envs.failures import failed, name, own_object
from rl_lightning.policies.parsing import ActionParser

OnIllegal = Literal["penalize", "replace", "end"]
_LARGEST = float(torch.finfo(torch.float32).max)
ENTRY = "actions"
"""The entry of a Dict observation that holds what may be done, a line each."""


class Answer(NamedTuple):
    """What came of something that was said: the observation's texts by name, the action that was
    taken (None: none), whether what was said was none, what the environment paid, whether the
    episode is over, and of one that is whether it was a success (NaN: nobody says)."""

    values: dict[str, str]
    action: Any
    illegal: bool
    reward: float
    over: bool
    success: float = np.nan


class Conversation:
    """One environment, spoken with.

    Actions are texts, or Discrete ones with names. What names no action that there is, or (of
    texts) has no answer in it, is *illegal*.

    Args:
        env: With observations that are text, or a Dict with texts.
        actions: What Discrete actions are called; None: an entry `actions` of the observation says
            it, or the environment.
        answer: A regular expression whose first group is the answer, see `ActionParser`.
        on_illegal: What an illegal text does: a uniformly drawn action (of texts, an empty one)
            takes its place, or it ends the episode.
        success_threshold: Return from which an episode is a success where `info` does not say.

    Raises:
        ConfigurationError: If there is no text to read, or no action in words.
    """

    def __init__(
        self,
        env: gym.Env,
        actions: Sequence[str] | None = None,
        answer: str | None = None,
        on_illegal: OnIllegal = "penalize",
        success_threshold: float | None = None,
    ) -> None:
        self.env, self.on_illegal = env, on_illegal
        self.threshold = success_threshold
        self.parser = ActionParser(answer)
        space = env.observation_space
        self.is_dict = isinstance(space, gym.spaces.Dict)
        parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"observation": space}
        self.entries = [key for key, part in parts.items() if is_text(part)]
        if not [key for key in self.entries if key != ENTRY]:
            raise ConfigurationError(
                f"episodes are read as text, and observations of {name(env)} are "
                f"{shortened(space)}: wrap the environment in `Describe`, which puts observations "
                "into words"
            )
        self.names = self._names(actions)

    def _names(self, actions: Sequence[str] | None) -> list[str] | None:
        """What the actions are called; None where they are texts, or the observation says it."""
        space = self.env.action_space
        if is_text(space):
            if actions is not None:
                raise ConfigurationError(
                    f"data.actions: {name(self.env)} takes any text; leave them out"
                )
            return None
        if not isinstance(space, gym.spaces.Discrete):
            raise ConfigurationError(
                f"a text can name a Discrete action or be one, and {name(self.env)} takes "
                f"{shortened(space)}"
            )
        if actions is None and ENTRY in self.entries:
            return None
        given = names_of(self.env) if actions is None else actions
        if given is None or len(given) != space.n:
            said = "nobody says" if given is None else f"{len(given)} texts say"
            raise ConfigurationError(
                f"data.actions: {said} what the {space.n} actions of {name(self.env)} are called; "
                "give a text for each"
            )
        try:
            self.parser.said_by(given)
        except RunError as error:
            raise ConfigurationError(str(error)) from None
        return list(given)

    @property
    def fields(self) -> list[str]:
        """Names of what templates may tell: the observation's texts, and `actions`."""
        listed = is_text(self.env.action_space) or ENTRY in self.entries
        return [*self.entries, *([] if listed else [ENTRY])]

    def reset(self, seed: int) -> dict[str, str]:
        """Begin an episode; what is said first, by names of fields."""
        try:
            observation, info = self.env.reset(seed=seed)
        except Exception as error:
            raise failed(self.env, error, "reset") from error
        self._total, self._info = 0.0, info
        self._values = self._read(observation)
        return self._values

    def say(self, text: str) -> Answer:
        """Say something, and hear what comes of it."""
        action = self._action(text)
        illegal = action is None
        if illegal and self.on_illegal == "end":
            return Answer({}, None, True, 0.0, True, self._success({}))
        if illegal:
            action = self._any_action()
        try:
            observation, paid, terminated, truncated, info = five(self.env.step(action))
            reward = float(number(paid))
            over = flag(terminated, "terminated") or flag(truncated, "truncated")
        except MisfitError as error:
            raise RunError(f"environment {name(self.env)}: {error}") from None
        except Exception as error:
            raise failed(self.env, error, "step") from error
        self._total += reward
        for what, worth in (("the reward is", reward), ("rewards add up to", self._total)):
            if not abs(worth) <= _LARGEST:
                raise RunError(
                    f"environment {name(self.env)}: {what} {worth:g}, no finite number in float32; "
                    "mend the environment, or make rewards smaller by the wrapper TransformReward"
                )
        self._info = info
        self._values = self._read(observation)
        success = self._success(info) if over else np.nan
        return Answer(self._values, action, illegal, reward, over, success)

    def _read(self, observation: Any) -> dict[str, str]:
        told = observation if self.is_dict else {"observation": observation}
        values = {key: told[key] for key in self.entries}
        for key, text in values.items():
            if not isinstance(text, str):
                raise RunError(
                    f"environment {name(self.env)}: {key} must be a text, not "
                    f"{shortened(repr(text), 60)}"
                )
        if self.names is not None:
            values.setdefault(ENTRY, ", ".join(self.names))
        return values

    # --- actions ------------------------------------------------------------------------------

    def _allowed(self) -> list[str]:
        """Names of the Discrete actions, those that the observation lists or all."""
        return self._values[ENTRY].split("\n") if self.names is None else self.names

    def _masked(self, action: int) -> bool:
        mask = self._info.get("action_mask")
        return mask is not None and not bool(np.asarray(mask)[action])

    def _action(self, text: str) -> Any:
        """What a text says to do; None if that is nothing that there is."""
        space = self.env.action_space
        if not isinstance(space, gym.spaces.Discrete):
            return self.parser.answer(text)
        action = self.parser(text, self._allowed())
        return None if action is None or self._masked(action) else action + int(space.start)

    def _any_action(self) -> Any:
        space = self.env.action_space
        if not isinstance(space, gym.spaces.Discrete):
            return ""
        there = [k for k in range(len(self._allowed())) if not self._masked(k)]
        if not there:
            raise RunError(f"environment {name(self.env)} allows no action, and goes on")
        return there[int(torch.randint(len(there), ()))] + int(space.start)

    def _success(self, info: Any) -> float:
        told = {}
        for key in {"success", "is_success"} & set(info):
            told[key] = np.empty(1, object)
            told[key][0] = info[key]
        found = read_success(told, np.ones(1, bool), np.array([self._total]), self.threshold)
        return np.nan if found is None else float(found[0])


class Conversations:
    """Copies of one environment, each made when it is first needed.

    Args:
        make: Makes one.
    """

    def __init__(self, make: Callable[[], Conversation]) -> None:
        self.make = make
        self._made: list[Conversation] = []

    def take(self, count: int) -> list[Conversation]:
        """So many of them.

        Raises:
            ConfigurationError: If two of them are one object.
        """
        while len(self._made) < count:
            made = self.make()
            if any(own_object(made.env) is own_object(one.env) for one in self._made):
                raise ConfigurationError(
                    f"data.env: two copies of {name(made.env)} are one object, so that episodes "
                    "would play over each other; its function must make a new one each time"
                )
            self._made.append(made)
        return self._made[:count]

    def close(self) -> None:
        """Close them all."""
        for one in self._made:
            one.env.close()
        self._made = []
