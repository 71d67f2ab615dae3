"""From commands as texts to the number of a command."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.envs.text import is_printable, text_space


class AdmissibleActions(gym.Wrapper, RecordConstructorArgs):
    """Makes the commands that an environment admits a part of what is observed, and numbers them.

    The environment inside takes a text in `step` and says in `info["admissible_actions"]` of every
    reset and step which ones it admits now, a list of texts. From outside, the action is the index
    of one, and an observation is a Dict: what the environment observes (under `observation_key`, or
    entry by entry, where that is a Dict), the goal, and the admitted texts, one a line, in the
    order of their indices. `info["action_mask"]`, bool `[max_actions]`, allows as many as there
    are. At the end of an episode there may be none: then it allows the first, so that nobody
    computes the probabilities of nothing.

    Args:
        env: Environment.
        max_actions: Most texts that are admitted at once; the number of actions.
        goal: What the episode is about; None takes `info["goal"]` of its reset, or "" without one.
        otherwise: The text that stands for an index beyond the admitted ones; None makes such an
            index an error. Text games answer texts that they do not understand, such as "", with
            nothing but a lost turn.
        observation_key: Entry of what is observed.
        goal_key: Entry of the goal; None leaves it out.
        actions_key: Entry of the admitted texts.
        max_action_length: Longest of those, in characters.
        max_goal_length: Longest goal.

    Raises:
        ConfigurationError: If an argument is out of its range or an entry exists already; on reset
            and step if there is no such list, if it is too long or empty, or if a text is too long
            or has characters other than printable ASCII.
    """

    def __init__(
        self,
        env: gym.Env,
        max_actions: int = 32,
        goal: str | None = None,
        otherwise: str | None = None,
        observation_key: str = "observation",
        goal_key: str | None = "goal",
        actions_key: str = "actions",
        max_action_length: int = 100,
        max_goal_length: int = 2000,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            max_actions=max_actions,
            goal=goal,
            otherwise=otherwise,
            observation_key=observation_key,
            goal_key=goal_key,
            actions_key=actions_key,
            max_action_length=max_action_length,
            max_goal_length=max_goal_length,
        )
        gym.Wrapper.__init__(self, env)
        self.max_actions = whole("max_actions", max_actions, 1)
        self.max_action_length = whole("max_action_length", max_action_length, 1)
        self.max_goal_length = whole("max_goal_length", max_goal_length, 0)
        if not isinstance(env.action_space, gym.spaces.Text):
            raise ConfigurationError(
                f"AdmissibleActions: the environment takes {shortened(env.action_space)}, not a "
                "text; one with numbered actions needs no such wrapper"
            )
        self.goal, self.otherwise = goal, otherwise
        self.observation_key, self.goal_key = observation_key, goal_key
        self.actions_key = actions_key
        own = env.observation_space
        spaces = dict(own.spaces) if isinstance(own, gym.spaces.Dict) else {observation_key: own}
        keys = [*spaces, actions_key, *([] if goal_key is None else [goal_key])]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"AdmissibleActions: there would be two entries {twice!r}; give another name as "
                "observation_key, goal_key or actions_key"
            )
        spaces[actions_key] = text_space(self.max_actions * (self.max_action_length + 1))
        if goal_key is not None:
            spaces[goal_key] = text_space(self.max_goal_length)
        self.observation_space = gym.spaces.Dict(spaces)
        self.action_space = gym.spaces.Discrete(self.max_actions)
        self._admitted: list[str] = []
        self._goal = ""

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        goal = info.get("goal", "") if self.goal is None else self.goal
        self._goal = self._checked("goal", goal, self.max_goal_length)
        return self._told(observation, info, over=False)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Send the admitted text of that index.

        Raises:
            ConfigurationError: If there is none, and `otherwise` is None.
        """
        index = int(action)
        if 0 <= index < len(self._admitted):
            text = self._admitted[index]
        elif self.otherwise is not None:
            text = self.otherwise
        else:
            raise ConfigurationError(
                f"action {index} of {len(self._admitted)} that are admitted: keep to "
                "info['action_mask'], or say with otherwise= what such an action sends"
            )
        observation, reward, terminated, truncated, info = self.env.step(text)
        told = self._told(observation, info, over=bool(terminated or truncated))
        return told[0], reward, terminated, truncated, told[1]

    def _told(self, observation: Any, info: Any, over: bool) -> tuple[dict, dict]:
        self._admitted = self._read(info, over)
        inner = self.env.observation_space
        is_dict = isinstance(inner, gym.spaces.Dict)
        told = dict(observation) if is_dict else {self.observation_key: observation}
        told[self.actions_key] = "\n".join(self._admitted)
        if self.goal_key is not None:
            told[self.goal_key] = self._goal
        mask = np.zeros(self.max_actions, bool)
        mask[: max(len(self._admitted), 1)] = True
        return told, {**info, "action_mask": mask}

    def _read(self, info: Mapping[str, Any], over: bool) -> list[str]:
        given = info.get("admissible_actions")
        if given is None and over:
            return []
        if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
            raise ConfigurationError(
                "AdmissibleActions needs info['admissible_actions'] of every reset and step, a "
                f"list of texts, not {shortened(given)}"
            )
        if not len(given) and not over:
            raise ConfigurationError(
                "info['admissible_actions'] is empty: admit something, or end the episode"
            )
        if len(given) > self.max_actions:
            raise ConfigurationError(
                f"max_actions={self.max_actions}: the environment admits {len(given)} actions; "
                "give at least as many"
            )
        texts = [self._checked("action", text, self.max_action_length) for text in given]
        broken = [text for text in texts if "\n" in text]
        if broken:
            raise ConfigurationError(f"an action must be one line, not {shortened(broken[0])}")
        return texts

    def _checked(self, what: str, text: Any, most: int) -> str:
        if not isinstance(text, str):
            raise ConfigurationError(f"{what} must be a text, not {type(text).__name__}")
        if len(text) > most:
            raise ConfigurationError(
                f"max_{what}_length={most}: {shortened(text, 60)!r} has {len(text)} characters; "
                "give at least as many"
            )
        if not is_printable(text):
            raise ConfigurationError(
                f"{what} {shortened(text, 60)!r} has characters other than printable ASCII"
            )
        return str(text)
