"""Recorded episodes as items: each step, and the text that is asked about it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.order import split
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.preferences.questions import Questions, draw
from rl_lightning.data.recordings.dataset import Dataset, read_dataset
from rl_lightning.data.recordings.rows import batched, cut, joined


def opened(path: str) -> tuple[Dataset, EnvSpec]:
    """Recorded episodes, and the spaces of their environment.

    Raises:
        ConfigurationError: If there are no such episodes, or if the file does not say its spaces.
    """
    dataset = read_dataset(path)
    if dataset.spec is None:
        raise ConfigurationError(
            f"data.dataset: {path} does not say the spaces of its environment; record it again "
            "with data.record"
        )
    return dataset, dataset.spec


class RecordedSteps:
    """The steps of recorded episodes, in their order, as a `Source`.

    Texts are held in memory, each different one once; observations are read when they are asked
    for.

    Args:
        path: HDF5 file, or the folder of a Minari data set.
        inputs: `next_obs`: an item is what a step led to. `transition`: it is the step.
        describe: Text of an observation, or of `(obs, action, next_obs)` of a transition; None:
            the texts that observations hold.

    Raises:
        ConfigurationError: If there are no such episodes, if the file does not say its spaces, or
            if observations hold no text and there is no `describe`.
    """

    def __init__(self, path: str, inputs: str, describe: Callable[..., str] | None) -> None:
        self.path, self.inputs, self.describe = path, inputs, describe
        self.dataset, self.spec = opened(path)
        if describe is None and not _has_text(self.spec.observation_space):
            raise ConfigurationError(
                f"data.dataset: observations of {self.spec.id} hold no text "
                f"({shortened(self.spec.observation_space)}); give data.describe, a function that "
                "puts one into words"
            )
        numbers: dict[str, int] = {}
        keys = [
            numbers.setdefault(text, len(numbers))
            for episode in self.dataset.episodes()
            for text in self._texts(episode)
        ]
        self._texts_by_key = list(numbers)
        self._keys = np.array(keys, np.int64)

    def _texts(self, episode: Any) -> Iterator[str]:
        for t in range(len(episode)):
            after = _row(self.spec.observation_space, episode.observations, t + 1)
            if self.inputs == "next_obs":
                yield self._checked(self.describe(after) if self.describe else _text(after))
                continue
            before = _row(self.spec.observation_space, episode.observations, t)
            action = _row(self.spec.action_space, episode.actions, t)
            if self.describe:
                yield self._checked(self.describe(before, action, after))
            else:
                yield f"{_text(before)}\nAction: {action}\n{_text(after)}"

    def _checked(self, text: Any) -> str:
        if not isinstance(text, str):
            raise ConfigurationError(
                f"data.describe returned {shortened(repr(text), 80)}, which is no text"
            )
        return text

    def questions(self, count: int, val_share: float, size: int, seed: int) -> Sequence[Questions]:
        rng = np.random.default_rng([seed, 0])
        validates = split(self._keys, val_share, rng)
        held_out = round(val_share * count)
        out = []
        for which, number in ((~validates, count - held_out), (validates, held_out)):
            items = draw(np.flatnonzero(which), self._keys, number, size, rng)
            out.append(Questions(items, np.full(number, np.nan)))
        return out

    def text(self, item: int) -> str:
        return self._texts_by_key[self._keys[item]]

    def observations(self, items: np.ndarray, size: int) -> Iterator[tuple[Any, Any, Any]]:
        wanted, begin, waiting, count = set(items.tolist()), 0, [], 0
        for episode in self.dataset.episodes():
            here = [t for t in range(len(episode)) if begin + t in wanted]
            begin += len(episode)
            for t in here:
                obs, action = episode.observations, episode.actions
                before = cut(obs, t, t + 1), cut(action, t, t + 1)
                waiting.append((*before, cut(obs, t + 1, t + 2)))
                count += 1
                if count == size:
                    yield self._batch(waiting)
                    waiting, count = [], 0
        if waiting:
            yield self._batch(waiting)

    def _batch(self, rows: list[Any]) -> tuple[Any, Any, Any]:
        obs, action, after = joined(rows)
        if self.inputs == "next_obs":
            return None, None, batched(after)
        return batched(obs), np.asarray(action), batched(after)


def _has_text(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(_has_text(part) for part in space.values())
    if isinstance(space, gym.spaces.Tuple):
        return any(map(_has_text, space))
    return is_text(space)


def _row(space: gym.Space, rows: Any, t: int) -> Any:
    """One observation or action out of an episode's."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _row(part, rows[key], t) for key, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_row(part, entry, t) for part, entry in zip(space, rows, strict=True))
    return rows[t]


def _text(obs: Any) -> str:
    """The texts in an observation, a line each."""
    return "\n".join(_texts_in(obs))


def _texts_in(obs: Any) -> Iterator[str]:
    if isinstance(obs, str):
        yield obs
    elif isinstance(obs, dict):
        for part in obs.values():
            yield from _texts_in(part)
    elif isinstance(obs, tuple):
        for part in obs:
            yield from _texts_in(part)
