"""Which observations count as the same place: exactly equal ones, or texts that say about the same.

A place is known by 16 bytes, so that counts of many are a small part of a checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.spaces import is_text

Place = bytes
SIZE = 16


def check_countable(space: gym.Space, where: str) -> None:
    """Refuse observations of which hardly two are equal, or that are no plain data.

    Raises:
        ConfigurationError: That says what to do instead.
    """
    s = gym.spaces
    for part in _leaves(space):
        if is_text(part) or isinstance(part, s.Discrete | s.MultiDiscrete | s.MultiBinary):
            continue
        if isinstance(part, s.Box) and not np.issubdtype(part.dtype, np.floating):
            continue
        raise ConfigurationError(
            f"data.rewards: CountBonus cannot count {shortened(part)} of {where}, which hardly "
            "ever repeats; name an entry that does, round it by a wrapper, put it into words "
            "(Describe), or use RNDBonus"
        )


def exact_places(space: gym.Space, obs: Any, rows: Sequence[int]) -> list[Place]:
    """Places of some rows of observations `[B, ...]`."""
    columns = list(_columns(space, obs))
    return [_digest([_bytes(part, column[b]) for part, column in columns]) for b in rows]


def _leaves(space: gym.Space) -> Iterator[gym.Space]:
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        for part in space.values() if isinstance(space, gym.spaces.Dict) else space:
            yield from _leaves(part)
    else:
        yield space


def _columns(space: gym.Space, obs: Any) -> Iterator[tuple[gym.Space, Any]]:
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.items():
            yield from _columns(part, obs[key])
    elif isinstance(space, gym.spaces.Tuple):
        for part, column in zip(space, obs, strict=True):
            yield from _columns(part, column)
    else:
        yield space, obs


def _bytes(space: gym.Space, value: Any) -> bytes:
    if is_text(space):
        return value.encode("utf-8", "surrogatepass")
    return np.asarray(value, dtype=space.dtype).tobytes()


def _digest(parts: Sequence[bytes]) -> Place:
    hasher = blake2b(digest_size=SIZE)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


class Clusters:
    """Places that stand for all texts whose vector has a cosine of `threshold` with theirs.

    A text belongs to the nearest one; if none is near enough, it founds one. When there are `most`,
    the nearest it is.

    Args:
        dim: D of the vectors, which are of length 1.
        threshold: Least cosine.
        most: Most clusters.
    """

    def __init__(self, dim: int, threshold: float, most: int) -> None:
        self.threshold, self.most = threshold, most
        self.places: list[Place] = []
        self._known: set[Place] = set()
        self._vectors = torch.zeros(0, dim)
        self._common = 0  # so many of them all ranks have

    def find(self, texts: Sequence[str], vectors: Tensor) -> list[Place]:
        """Places of texts with vectors `[N, D]`, in their order."""
        found = []
        for text, vector in zip(texts, vectors, strict=True):
            place = _digest([text.encode("utf-8", "surrogatepass")])
            found.append(self._settled(place, vector))
        return found

    def _settled(self, place: Place, vector: Tensor) -> Place:
        """Where a text belongs, founded if need be; those that have founded one, to that."""
        if place in self._known:
            return place
        near = self._near(vector)
        return self._found(place, vector) if near is None else near

    def _near(self, vector: Tensor) -> Place | None:
        if not self.places:
            return None
        like, index = (self._vectors[: len(self.places)] @ vector).max(0)
        full = len(self.places) >= self.most
        return self.places[int(index)] if full or float(like) >= self.threshold else None

    def _found(self, place: Place, vector: Tensor) -> Place:
        count = len(self.places)
        if count == len(self._vectors):
            more = torch.zeros(max(count, 64), self._vectors.shape[1])
            self._vectors = torch.cat([self._vectors, more])
        self._vectors[count] = vector
        self.places.append(place)
        self._known.add(place)
        return place

    def news(self) -> tuple[list[Place], Tensor]:
        """Clusters that only this rank has."""
        vectors = self._vectors[self._common : len(self.places)].clone()
        return self.places[self._common :], vectors

    def agree(self, news: Sequence[tuple[list[Place], Tensor]]) -> dict[Place, Place]:
        """Take over what all ranks have founded, in their order.

        Returns:
            What became of clusters that another rank had founded nearly the same of.
        """
        self._known.difference_update(self.places[self._common :])
        del self.places[self._common :]
        became = {}
        for places, vectors in news:
            for place, vector in zip(places, vectors, strict=True):
                became[place] = self._settled(place, vector)
        self._common = len(self.places)
        return {old: new for old, new in became.items() if old != new}

    def state_dict(self) -> dict[str, Any]:
        count = len(self.places)
        return {
            "places": pack(self.places),
            "vectors": self._vectors[:count].clone(),
            "common": self._common,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.places = unpack(state["places"])
        self._known = set(self.places)
        self._vectors = state["vectors"].clone()
        self._common = state["common"]


def pack(places: Sequence[Place]) -> Tensor:
    """uint8 `[N, 16]`."""
    joined = np.frombuffer(b"".join(places), np.uint8).reshape(-1, SIZE)
    return torch.from_numpy(joined.copy())


def unpack(packed: Tensor) -> list[Place]:
    """What `pack` was given."""
    return [row.tobytes() for row in packed.numpy()]
