"""What was seen and done before, as one text."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.core.spaces import is_text
from rl_lightning.envs.describe.actions import names_of
from rl_lightning.envs.text import text_space

SEEN, DONE = "Observation: ", "Action: "


class TextHistory(gym.Wrapper, RecordConstructorArgs):
    """Adds the last observations and actions of an episode to what is observed.

    They stand in the entry "history", the oldest first, as lines "Observation: …" and "Action: …";
    the present observation is not among them, and at an episode's beginning it is empty. A Dict
    observation gets one entry more, a text becomes a Dict of itself and its history.

    Actions are told by name: by `action_names`, or what they are known to be called (see
    `rl_lightning.envs.register_action_names`), where they are numbered once and for all; as the
    text they are, where the environment takes texts; or else by `info["admissible_actions"]` of the
    step before, as below `AdmissibleActions`.

    Args:
        env: Environment that observes text, or a Dict with a text.
        observations: How many earlier observations are kept.
        actions: How many actions are kept.
        action_names: Names of the actions, in order.
        observation_key: Entry of the text that is kept.
        history_key: Entry of the history.
        max_action_length: Longest name of an action, in characters.

    Raises:
        ConfigurationError: If an argument is out of its range or does not fit the spaces; on step
            if an action has no name, or one that is too long.
    """

    def __init__(
        self,
        env: gym.Env,
        observations: int = 2,
        actions: int = 4,
        action_names: Sequence[str] | None = None,
        observation_key: str = "observation",
        history_key: str = "history",
        max_action_length: int = 100,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            observations=observations,
            actions=actions,
            action_names=action_names,
            observation_key=observation_key,
            history_key=history_key,
            max_action_length=max_action_length,
        )
        gym.Wrapper.__init__(self, env)
        self.observations = whole("observations", observations, 0)
        self.actions = whole("actions", actions, 0)
        self.max_action_length = whole("max_action_length", max_action_length, 1)
        if not self.observations + self.actions:
            raise ConfigurationError("observations=0 and actions=0: there is no history; keep some")
        self.observation_key, self.history_key = observation_key, history_key
        own = env.observation_space
        spaces = dict(own.spaces) if isinstance(own, gym.spaces.Dict) else {observation_key: own}
        text: Any = spaces.get(observation_key)
        if text is None or not is_text(text):
            raise ConfigurationError(
                f"TextHistory keeps texts, and observation_key={observation_key!r} is none of "
                f"{shortened(own)}"
            )
        if history_key in spaces:
            raise ConfigurationError(
                f"history_key={history_key!r}: there is such an entry already; give another name"
            )
        self.action_names = self._names(action_names)
        most = self.observations * (len(SEEN) + getattr(text, "max_length", 1000) + 1)
        most += self.actions * (len(DONE) + self.max_action_length + 1)
        self.observation_space = gym.spaces.Dict({**spaces, history_key: text_space(most)})
        # Observation and action of each step, the last one at the end.
        self._past: deque[tuple[str, str]] = deque(maxlen=max(self.observations, self.actions))
        self._seen = ""
        self._admitted: list[str] | None = None

    def _names(self, names: Sequence[str] | None) -> list[str] | None:
        if names is None:
            names = names_of(self.env)
        if names is None:
            return None
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(f"action_names={names!r}: expected a list of texts")
        count = getattr(self.env.action_space, "n", None)
        if count != len(names):
            raise ConfigurationError(
                f"action_names has {len(names)} names, and the environment takes "
                f"{shortened(self.env.action_space)}"
            )
        return [self._fits(str(name)) for name in names]

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self._past.clear()
        observation, info = self.env.reset(**kwargs)
        return self._told(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        self._past.append((self._seen, self._name(action)))
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._told(observation, info), reward, terminated, truncated, info

    def _told(self, observation: Any, info: Any) -> dict[str, Any]:
        key = self.observation_key
        whole_one = isinstance(self.env.observation_space, gym.spaces.Dict)
        told = dict(observation) if whole_one else {key: observation}
        self._seen = str(told[key])
        admitted = info.get("admissible_actions")
        self._admitted = None if admitted is None else [str(text) for text in admitted]
        told[self.history_key] = self._history()
        return told

    def _history(self) -> str:
        lines = []
        for ago, (seen, done) in zip(range(len(self._past), 0, -1), self._past, strict=True):
            if ago <= self.observations:
                lines.append(SEEN + seen)
            if ago <= self.actions:
                lines.append(DONE + done)
        return "\n".join(lines)

    def _name(self, action: Any) -> str:
        if self.action_names is not None:
            start = getattr(self.env.action_space, "start", 0)
            return self.action_names[int(action) - int(start)]
        if isinstance(action, str):
            return self._fits(str(action))
        if self._admitted is None:
            raise ConfigurationError(
                f"TextHistory does not know what action {shortened(action)} is called: give "
                "action_names, or wrap an environment that has info['admissible_actions']"
            )
        index = int(action)
        return self._fits(self._admitted[index] if index < len(self._admitted) else "")

    def _fits(self, name: str) -> str:
        if len(name) > self.max_action_length:
            raise ConfigurationError(
                f"max_action_length={self.max_action_length}: the action {shortened(name, 60)!r} "
                f"has {len(name)} characters; give at least as many"
            )
        return name
