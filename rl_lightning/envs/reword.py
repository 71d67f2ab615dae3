"""The same observations in other words."""

import math
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.spaces import is_text
from rl_lightning.envs.text import is_printable, text_space


class Reword(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Says words of text observations otherwise, to see whether an agent has learned what they mean
    or how they are spelt: validate it with `{wall: barrier, near: close to}`.

    All words are replaced at once, so that two can be exchanged; of phrases that overlap, the
    longest; only whole words, whatever their case. One that begins with a capital still does.

    Args:
        env: Environment that observes text, or a Dict with texts in it.
        words: What is said instead of a word or a phrase, by that.
        key: Entry of a Dict whose text is reworded. None: every text in it.

    Raises:
        ConfigurationError: If nothing is to be replaced, if a word is empty or not printable ASCII,
            twice in whatever case, or if there is no such text.
    """

    def __init__(self, env: gym.Env, words: Mapping[str, str], key: str | None = None) -> None:
        RecordConstructorArgs.__init__(self, words=words, key=key)
        gym.ObservationWrapper.__init__(self, env)
        if not isinstance(words, Mapping) or not words:
            raise ConfigurationError(
                f"words={words!r}: expected what is said instead, by what was said, such as "
                "{wall: barrier}"
            )
        for old, new in words.items():
            if not (isinstance(old, str) and isinstance(new, str) and old.strip()):
                raise ConfigurationError(f"words: {old!r}: {new!r} is not a text for a text")
            if not is_printable(new):
                raise ConfigurationError(f"words: {new!r} is not printable ASCII")
        self._new = {old.lower(): new for old, new in words.items()}
        if len(self._new) < len(words):
            raise ConfigurationError(f"words={dict(words)}: a word stands there twice")
        longest_first = sorted(self._new, key=len, reverse=True)
        either = "|".join(re.escape(old) for old in longest_first)
        self._old = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
        self._growth = max(1.0, *(len(new) / len(old) for old, new in words.items()))
        space = env.observation_space
        if isinstance(space, gym.spaces.Dict):
            self._keys = [k for k, part in space.items() if is_text(part) and key in (None, k)]
            self.observation_space = gym.spaces.Dict(
                {k: self._longer(p) if k in self._keys else p for k, p in space.items()}
            )
            found = bool(self._keys)
        else:
            found = is_text(space) and key is None
            self.observation_space = self._longer(space) if found else space
        if not found:
            asked = "" if key is None else f" under key={key!r}"
            raise ConfigurationError(f"Reword finds no text{asked} in {shortened(space)}")

    def _longer(self, space: Any) -> gym.spaces.Text:
        return text_space(math.ceil(space.max_length * self._growth))

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, Mapping):
            return {k: self._reworded(v) if k in self._keys else v for k, v in observation.items()}
        return self._reworded(observation)

    def _reworded(self, text: Any) -> str:
        return self._old.sub(self._instead, str(text))

    def _instead(self, match: re.Match[str]) -> str:
        new = self._new[match[0].lower()]
        return new[:1].upper() + new[1:] if match[0][:1].isupper() else new
