"""Observations of several parts."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.sharing import sharing
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder


class DictEncoder(Encoder):
    """One encoder per entry of a `Dict` or `Tuple` space; their features are concatenated.

    Args:
        spec: Its observation space is Dict, or Tuple (whose entries are named "0", "1", …).
        encoders: Entry name → encoder. Entries not named here are read by `default`.
        default: Encoder of the other entries.
        ignore: Entries to leave out; they may be of any space.

    Raises:
        ConfigurationError: If the space is neither Dict nor Tuple, if a name is not one of its
            entries, or if an entry cannot be read by its encoder.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoders: dict[str, Callable[[EnvSpec], Encoder]] | None = None,
        default: Callable[[EnvSpec], Encoder] = MLPEncoder,
        ignore: list[str] | None = None,
    ) -> None:
        super().__init__()
        space = spec.observation_space
        if isinstance(space, gym.spaces.Dict):
            entries = dict(space.spaces)
        elif isinstance(space, gym.spaces.Tuple):
            entries = {str(i): entry for i, entry in enumerate(space.spaces)}
        else:
            raise ConfigurationError(
                f"DictEncoder cannot read {shortened(space)}: it needs a Dict or Tuple space"
            )
        encoders, ignore = encoders or {}, ignore or []
        for name in [*encoders, *ignore]:
            if name not in entries:
                raise ConfigurationError(
                    f"DictEncoder: no entry {name!r} in the observation space; it has "
                    f"{', '.join(map(repr, entries))}"
                )
        self.is_tuple = isinstance(space, gym.spaces.Tuple)
        self.ignored = tuple(ignore)
        self.names = [name for name in entries if name not in ignore]
        if not self.names:
            raise ConfigurationError("DictEncoder: every entry of the observation space is ignored")
        # Not by name in a ModuleDict, which takes no "type", "keys" or "a.b".
        with sharing():
            self.parts = nn.ModuleList(
                _part(name, encoders.get(name, default), spec.with_observation_space(entries[name]))
                for name in self.names
            )
        self.out_dim = sum(part.out_dim for _, part in self._named())

    def preprocess(self, obs: Any) -> Stored:
        return {name: part.preprocess(self._entry(obs, name)) for name, part in self._named()}

    def preprocess_raw(self, obs: Any) -> Stored:
        return {name: part.preprocess_raw(self._entry(obs, name)) for name, part in self._named()}

    def standardized(self, x: Any) -> Any:
        return {name: part.standardized(x[name]) for name, part in self._named()}

    def repeats(self) -> dict[str, Any]:
        return {name: part.repeats() for name, part in self._named()}

    def unread(self) -> set[tuple[Any, ...]]:
        below = {(self._key(n), *path) for n, part in self._named() for path in part.unread()}
        return below | {(self._key(name),) for name in self.ignored}

    def forward(self, x: Any) -> Tensor:
        return torch.cat([part(x[name]) for name, part in self._named()], dim=-1)

    def observe(self, obs: Any) -> None:
        for name, part in self._named():
            part.observe(self._entry(obs, name))

    def begin_rollout(self) -> None:
        for _, part in self._named():
            part.begin_rollout()

    def anneal(self, progress: float) -> None:
        for _, part in self._named():
            part.anneal(progress)

    def synchronize(self) -> None:
        for _, part in self._named():
            part.synchronize()

    def metrics(self) -> dict[str, float]:
        """Of all entries; a name that several report gets the entry's: `llm/goal/cache_size`."""
        reports = [(name, part.metrics()) for name, part in self._named()]
        times = Counter(key for _, report in reports for key in report)
        return {
            key if times[key] == 1 else _of_entry(key, name): value
            for name, report in reports
            for key, value in report.items()
        }

    def collection_state(self) -> dict[str, Any]:
        return {name: part.collection_state() for name, part in self._named()}

    def load_collection_state(self, state: dict[str, Any]) -> None:
        for name, part in self._named():
            part.load_collection_state(state.get(name, {}))

    def _named(self) -> Iterable[tuple[str, Encoder]]:
        parts: Any = self.parts
        return zip(self.names, parts, strict=True)

    def _entry(self, obs: Any, name: str) -> Any:
        return obs[self._key(name)]

    def _key(self, name: str) -> Any:
        return int(name) if self.is_tuple else name


def _of_entry(key: str, name: str) -> str:
    group, slash, rest = key.partition("/")
    return f"{group}/{name}/{rest}" if slash else f"{name}/{key}"


def _part(name: str, encoder: Callable[[EnvSpec], Encoder], spec: EnvSpec) -> Encoder:
    try:
        return encoder(spec)
    except ValueError as error:
        raise ConfigurationError(
            f"DictEncoder: the entry {name!r} cannot be read: {error}; name another encoder for it "
            f"in encoders, or leave it out with ignore: [{name}]"
        ) from error
