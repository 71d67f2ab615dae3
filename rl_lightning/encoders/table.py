"""Observations as rows of a table."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.core.ranks import world_size
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder


class TableEncoder(Encoder):
    """Numbers observations, for agents that keep a row of a table for each.

    Discrete, MultiDiscrete and MultiBinary spaces, and Dict and Tuple of them, are numbered by
    arithmetic. What has more than `capacity` elements but repeats exactly (Text, Box of integers,
    large spaces of the kinds above) is numbered in the order in which it comes up in training, and
    the list is part of the checkpoint.

    Only `observe` adds to that list, so evaluating changes nothing. What is not on it, in
    evaluation or as the final observation of a truncated episode, gets the number `capacity`: a row
    of its own in which nobody ever acts while training, and whose values stay what they were
    initialised with.

    Features, for agents with weights, are one-hot.

    Args:
        spec: Its observation space is of one of these kinds.
        capacity: Largest number of different observations.

    Raises:
        ConfigurationError: If observations are floating-point numbers, or of another kind.
    """

    def __init__(self, spec: EnvSpec, capacity: int = 100_000) -> None:
        super().__init__()
        capacity = whole("capacity", capacity, 1)
        self.space, self.id = spec.observation_space, spec.id
        self.capacity = capacity
        entries = [_entries(leaf) for leaf in _leaves(self.space)]
        finite = [entry for entry in entries if entry is not None]
        counts = [int(n) for _, counts in finite for n in counts]
        size = math.prod(counts)
        self.strides: list[np.ndarray] | None = None
        if len(finite) == len(entries) and size <= capacity:
            self.starts = [starts for starts, _ in finite]
            strides = np.array([math.prod(counts[i + 1 :]) for i in range(len(counts))], np.int64)
            self.strides = np.split(strides, np.cumsum([len(s) for s in self.starts])[:-1])
        self._numbers: dict[tuple[str, ...], int] = {}
        self.out_dim = capacity + 1 if self.strides is None else size

    def preprocess(self, obs: Any) -> Tensor:
        """Observations of B environments → their rows, int64 `[B]`."""
        parts = _parts(self.space, obs)
        if self.strides is not None:
            index = 0
            for (_, part), start, stride in zip(parts, self.starts, self.strides, strict=True):
                column = np.asarray(part).astype(np.int64)
                index = index + (column.reshape(len(column), -1) - start) @ stride
            return torch.as_tensor(index)
        numbers, unseen = self._numbers, self.capacity
        return torch.tensor([numbers.get(key, unseen) for key in _keys(parts)])

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x, self.out_dim).float()

    def observe(self, obs: Any) -> None:
        if self.strides is not None:
            return
        numbers = self._numbers
        for key in _keys(_parts(self.space, obs)):
            if key not in numbers:
                self._check_room()
                numbers[key] = len(numbers)

    def _check_room(self) -> None:
        if len(self._numbers) == self.capacity:
            raise ConfigurationError(
                f"model.encoder's capacity: {self.id} has shown more than {self.capacity} "
                "different observations; raise it, leave out of the observation what does not "
                "matter, or use an agent with a network (DQN)"
            )
        if world_size() > 1:
            raise ConfigurationError(
                f"TableEncoder numbers observations of {self.id} as they come up, which ranks "
                "would each do in another order; set trainer.devices: 1"
            )

    def metrics(self) -> dict[str, float]:
        return {} if self.strides is not None else {"table/observations": len(self._numbers)}

    # What is needed to act, so in the state_dict.
    def get_extra_state(self) -> list[list[str]]:
        return [list(key) for key in self._numbers]

    def set_extra_state(self, state: list[list[str]]) -> None:
        self._numbers = {tuple(key): number for number, key in enumerate(state)}


def _leaves(space: gym.Space) -> list[gym.Space]:
    if isinstance(space, gym.spaces.Dict):
        return [leaf for part in space.values() for leaf in _leaves(part)]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for part in space for leaf in _leaves(part)]
    return [space]


def _parts(space: gym.Space, obs: Any) -> list[tuple[gym.Space, Any]]:
    """The leaves of a space, each with its column `[B, ...]` of a vector env's observation."""
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key, part in space.items() for leaf in _parts(part, obs[key])]
    if isinstance(space, gym.spaces.Tuple):
        parts = zip(space, obs, strict=True)
        return [leaf for part, column in parts for leaf in _parts(part, column)]
    return [(space, obs)]


def _entries(space: gym.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Smallest value and number of values of each entry; None where there are too many."""
    s = gym.spaces
    if isinstance(space, s.Discrete):
        return np.array([space.start]), np.array([space.n])
    if isinstance(space, s.MultiDiscrete):
        return space.start.reshape(-1), space.nvec.reshape(-1)
    if isinstance(space, s.MultiBinary):
        size = int(np.prod(space.shape))
        return np.zeros(size, np.int64), np.full(size, 2)
    if is_text(space) or (isinstance(space, s.Box) and not np.issubdtype(space.dtype, np.floating)):
        return None
    raise ConfigurationError(
        f"TableEncoder cannot number {shortened(space)}: numbers that hardly ever repeat need a "
        "network (DQN with MLPEncoder), or a wrapper that rounds them to a Box of integers or "
        "MultiDiscrete"
    )


def _keys(parts: list[tuple[gym.Space, Any]]) -> list[tuple[str, ...]]:
    """What tells the observations of B environments apart, as plain data."""
    columns = []
    for space, column in parts:
        if not is_text(space):
            column = [row.tobytes().hex() for row in np.asarray(column, dtype=space.dtype)]
        columns.append(column)
    return list(zip(*columns, strict=True))
