"""A reward that was learned from labels, paid by a frozen model out of a checkpoint."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.errors import ConfigurationError, check_range, shortened, whole
from rl_lightning.core.names import present_path
from rl_lightning.core.ranks import gather
from rl_lightning.core.trust import find_named, loading_stranger
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards.observations import same_kind, select
from rl_lightning.rewards.places import Place, exact_places, pack, unpack
from rl_lightning.rewards.reward import Shaping, StateReward, Step
from rl_lightning.rewards.statistics import quantile as quantile_of

Counting = Literal["episode", "lifetime"]


class LearnedReward(StateReward):
    """What a `RewardModel` has learned, as Motif pays it (Klissarov et al. 2023):

        r = 1[rφ ≥ q] · (rφ − μ) / σ · 1 / N(s′)^p

    with μ, σ and the quantile q of rφ over its training observations, which stand in its
    checkpoint, and N(s′) how often this observation has been reached, this time included. The model
    is frozen, and an observation that comes again is not read again.

    Args:
        spec: The environment's spaces.
        ckpt_path: A checkpoint of a `RewardModel`, read as plain data: no code of the file's runs.
        normalize: Subtract μ and divide by σ; otherwise rφ is paid as it is.
        quantile: Share of the training observations below which nothing is paid; None pays all.
        count_power: p; 0 pays the same however often an observation is reached.
        count: Whether N begins anew with each `episode`, or goes on for a `lifetime`, over all
            environments.
        remember: Most observations whose reward is remembered; 0 remembers none.
        trusted: Packages outside this library whose classes the checkpoint may name.
        weight: See `Reward`, as for
        name: this.
        shaping: `potential` takes the sum above for Φ, see `StateReward`. It needs a function of
            the state: neither a model of transitions nor a `count_power`.
        offset: See `StateReward`.

    Raises:
        ConfigurationError: If the file is no such checkpoint, if it judges observations of another
            environment, if an argument is wrong, or if they do not go together.
    """

    def __init__(
        self,
        spec: EnvSpec,
        ckpt_path: str,
        normalize: bool = True,
        quantile: float | None = 0.5,
        count_power: float = 0.0,
        count: Counting = "episode",
        remember: int = 100_000,
        trusted: Sequence[str] = (),
        weight: float = 1.0,
        name: str | None = None,
        shaping: Shaping = "none",
        offset: float = 0.0,
    ) -> None:
        super().__init__(spec, weight, name, shaping, offset)
        check_range("data.rewards: quantile", quantile, 0.0, 1.0)
        check_range("data.rewards: count_power", count_power, 0.0)
        if count not in get_args(Counting):
            raise ConfigurationError(
                f"data.rewards: count must be 'episode' or 'lifetime', not {count!r}"
            )
        self.ckpt_path = ckpt_path
        _tell_of_newer(Path(ckpt_path))
        self.model = load_reward_model(ckpt_path, spec, trusted)
        if shaping == "potential" and (count_power or self.model.inputs == "transition"):
            wrong = "count_power" if count_power else "a model of inputs: transition"
            raise ConfigurationError(
                f"data.rewards: shaping: potential needs a function of the state, which {wrong} is "
                "not; leave out one of them"
            )
        self.normalize, self.quantile = normalize, quantile
        self.count_power, self.count = float(count_power), count
        self.remember = whole("data.rewards: remember", remember, 0)
        statistics = self.model.statistics
        if statistics is None and (normalize or quantile is not None):
            raise ConfigurationError(
                f"ckpt_path: {ckpt_path} holds no statistics of its reward, because it was never "
                "trained; give normalize: false and quantile: null to pay it as it is"
            )
        self._mean, self._std, self._least = 0.0, 1.0, -np.inf
        if normalize and statistics is not None:
            # A model that says the same of everything has no spread to divide by.
            self._mean, self._std = statistics["mean"], statistics["std"] or 1.0
        if quantile is not None and statistics is not None:
            self._least = quantile_of(statistics, quantile)
        self._digest = hashlib.blake2b(Path(ckpt_path).read_bytes(), digest_size=16).hexdigest()
        self._known: dict[Place, float] = {}
        self._common: Counter[Place] = Counter()  # visits that all ranks know of
        self._own: Counter[Place] = Counter()  # and those since, of this one
        self._episodes: list[Counter[Place]] = []
        self._hits = self._seen = self._paid = self._steps = 0

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        super().setup(num_envs, gamma, device)
        self.model.to(device)
        self._episodes = [Counter() for _ in range(num_envs)]

    def value(self, obs: Any) -> np.ndarray:
        places = exact_places(self.spec.observation_space, obs, range(self.num_envs))
        return self._paid_for(self._judge(places, np.ones(len(places), bool), obs))

    def __call__(self, step: Step) -> np.ndarray:
        reward = super().__call__(step) if self.shaping == "potential" else self._once(step)
        self._paid += int((reward != 0)[step.valid].sum())
        self._steps += int(step.valid.sum())
        return reward

    def _once(self, step: Step) -> np.ndarray:
        """Without shaping, `[B]`."""
        rows = range(len(step.valid))
        after = exact_places(self.spec.observation_space, step.next_obs, rows)  # [B]
        if self.model.inputs == "transition":
            before = exact_places(self.spec.observation_space, step.obs, rows)
            action = exact_places(self.spec.action_space, step.action, rows)
            keys = [_both(*parts) for parts in zip(before, action, after, strict=True)]
            raw = self._judge(keys, step.valid, step.next_obs, step.obs, step.action)
        else:
            raw = self._judge(after, step.valid, step.next_obs)
        reward = self._paid_for(raw)
        if self.count_power:
            reward = reward / self._visits(step, after) ** self.count_power
        return reward

    def _paid_for(self, raw: np.ndarray) -> np.ndarray:
        """rφ as it is paid, before counts."""
        return np.where(raw >= self._least, (raw - self._mean) / self._std, 0.0)

    def _judge(
        self,
        keys: Sequence[Place],
        valid: np.ndarray,
        after: Any,
        before: Any = None,
        did: Any = None,
    ) -> np.ndarray:
        """rφ, float64 `[B]`, of where steps led to, or of steps; the model reads what is new, each
        once."""
        known: dict[Place, float] = {}
        new: dict[Place, int] = {}
        for b, key in enumerate(keys):
            if not valid[b]:
                continue  # nothing happened there
            self._seen += 1
            if key in self._known:
                known[key] = self._known[key]
                self._hits += 1
            else:
                self._hits += key in new
                new.setdefault(key, b)
        if new:
            rows = np.fromiter(new.values(), np.int64)
            space = self.spec.observation_space
            more = () if did is None else (select(space, before, rows), np.asarray(did)[rows])
            values = self.model.score(select(space, after, rows), *more).double().cpu().tolist()
            for key, value in zip(new, values, strict=True):
                known[key] = value
                if len(self._known) < self.remember:
                    self._known[key] = value
        return np.array([known.get(key, 0.0) for key in keys])

    def _visits(self, step: Step, places: Sequence[Place]) -> np.ndarray:
        """N of where each step led to, float64 `[B]`."""
        out = np.ones(len(places))
        for b, place in enumerate(places):
            if self.count == "episode" and step.started[b]:
                self._episodes[b].clear()
            if not step.valid[b]:
                continue
            counter = self._own if self.count == "lifetime" else self._episodes[b]
            counter[place] += 1
            out[b] = counter[place] + (self._common[place] if self.count == "lifetime" else 0)
        return out

    def synchronize(self) -> None:
        for own in gather(self._own):
            self._common.update(own)
        self._own = Counter()

    def metrics(self) -> dict[str, float]:
        """Since the last call: share of what was judged that needed no model, and of steps that
        were paid for."""
        seen, hits, paid, steps = self._seen, self._hits, self._paid, self._steps
        self._seen = self._hits = self._paid = self._steps = 0
        return {"remembered": hits / seen, "paid": paid / steps} if seen and steps else {}

    # --- resuming -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Which file it was, how often was reached what, and what the model has said: with that a
        resumed run is the same."""
        return {
            "checkpoint": self._digest,
            "places": pack(list(self._known)),
            "rewards": torch.tensor(list(self._known.values()), dtype=torch.float64),
            "visits": _saved(self._common),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._common = _loaded(state["visits"])
        if state["checkpoint"] != self._digest:
            rank_zero_warn(
                f"data.rewards: {self.ckpt_path} is another file than the one that this run was "
                "rewarded by: it goes on with what is there now"
            )
            return
        self._known = dict(zip(unpack(state["places"]), state["rewards"].tolist(), strict=True))

    def episode_state(self) -> dict[str, Any]:
        visits = {"own": _saved(self._own), "episodes": [_saved(one) for one in self._episodes]}
        return {**super().episode_state(), **visits}

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        super().load_episode_state({"before": None, **state})  # earlier versions had none
        self._own = _loaded(state["own"])
        self._episodes = [_loaded(one) for one in state["episodes"]]


def load_reward_model(path: str, spec: EnvSpec, trusted: Sequence[str] = ()) -> Any:
    """The model of a checkpoint, frozen and in eval mode, if it judges this environment.

    Args:
        path: A checkpoint file.
        spec: Of the environment.
        trusted: Packages that it may name.

    Raises:
        ConfigurationError: If it holds something else.
    """
    hyper = read_checkpoint(path).get("hyper_parameters") or {}
    named = hyper.get("_class_path") if isinstance(hyper, Mapping) else None
    if not isinstance(named, str):
        raise ConfigurationError(f"ckpt_path: {path} does not say what model it holds")
    named = present_path(named)
    with loading_stranger(trusted):
        made = find_named(named, f"the reward model {named}")
    is_model = isinstance(made, type) and issubclass(made, L.LightningModule)
    if not is_model or not callable(getattr(made, "score", None)):
        raise ConfigurationError(
            f"ckpt_path: {path} holds a {named}, which learns no reward: give a checkpoint of a "
            "RewardModel"
        )
    model: Any = made.load_from_checkpoint(path, trusted=trusted)
    judged, there = model.spec.observation_space, spec.observation_space
    if not same_kind(judged, there):
        raise ConfigurationError(
            f"ckpt_path: {path} judges observations of {shortened(judged)}, and {spec.id} has "
            f"{shortened(there)}"
        )
    model.requires_grad_(False)
    return model.eval()


def _both(*parts: bytes) -> Place:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def _saved(counts: Counter[Place]) -> dict[str, torch.Tensor]:
    visits = torch.tensor(list(counts.values()), dtype=torch.int64)
    return {"places": pack(list(counts)), "visits": visits}


def _loaded(state: Mapping[str, torch.Tensor]) -> Counter[Place]:
    return Counter(dict(zip(unpack(state["places"]), state["visits"].tolist(), strict=True)))


def _tell_of_newer(path: Path) -> None:
    """A later run into a folder in use writes below it, so that a path may be an old one."""
    try:
        later = max(path.parent.glob(f"version_*/{path.name}"), key=lambda p: p.stat().st_mtime)
        is_newer = later.stat().st_mtime > path.stat().st_mtime
    except (OSError, ValueError):  # there is none, or it cannot be read: loading it will tell
        return
    if is_newer:
        rank_zero_warn(
            f"ckpt_path: a later run has written {later}, and {path} is the earlier one's: name "
            "the other if you mean that",
            stacklevel=5,
        )
