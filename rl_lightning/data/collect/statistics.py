"""What is known of finished episodes."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from rl_lightning.core.errors import RunError


class Finished(NamedTuple):
    """An episode that has ended: in which environment, and how; NaN where nobody says."""

    env: int
    total: float
    length: int
    success: float


class EpisodeStatistics:
    """Return, length and success of the last episodes, however rewards are rescaled for learning.

    Args:
        num_envs: B.
        window: Number of episodes that averages run over.
    """

    def __init__(self, num_envs: int, window: int = 100) -> None:
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[int] = deque(maxlen=window)
        self.successes: deque[float] = deque(maxlen=window)
        self.count = 0
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)

    def step(self, reward: np.ndarray, valid: np.ndarray | None) -> None:
        """Add one step of every environment; `valid` leaves out the steps that were resets."""
        if valid is None:
            self._return += reward
            self._length += 1
        else:
            self._return += reward * valid
            self._length += valid

    def finish(
        self, done: np.ndarray, info: dict[str, Any], success_threshold: float | None
    ) -> list[Finished]:
        """Close the episodes that ended with this step, and tell of them."""
        success = read_success(info, done, self._return, success_threshold)
        finished = []
        for b in np.flatnonzero(done).tolist():
            said = float("nan") if success is None else float(success[b])
            episode = Finished(b, float(self._return[b]), int(self._length[b]), said)
            finished.append(episode)
            self.returns.append(episode.total)
            self.lengths.append(episode.length)
            self.successes.append(said)
        self.count += len(finished)
        self._return[done] = 0.0
        self._length[done] = 0
        return finished

    def metrics(self, prefix: str) -> dict[str, float]:
        """Averages over the window; empty before the first episode has ended."""
        if not self.returns:
            return {}
        out = {
            f"{prefix}/return": float(np.mean(self.returns)),
            f"{prefix}/length": float(np.mean(self.lengths)),
        }
        success = np.array(self.successes)
        if not np.isnan(success).all():
            # Some environments speak of success only where there is one.
            out[f"{prefix}/success"] = float(np.nan_to_num(success).mean())
        return out

    def state_dict(self) -> dict[str, Any]:
        return {
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "successes": list(self.successes),
            "count": self.count,
            "return": torch.from_numpy(self._return.copy()),
            "length": torch.from_numpy(self._length.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("returns", "lengths", "successes"):
            values = getattr(self, name)
            values.clear()
            values.extend(state[name])
        self.count = state["count"]
        self._return = state["return"].numpy().copy()
        self._length = state["length"].numpy().copy()


def read_success(
    info: dict[str, Any], done: np.ndarray, returns: np.ndarray, threshold: float | None
) -> np.ndarray | None:
    """Whether the finished episodes succeeded, `[B]`; None where nothing says so.

    Taken from `info["success"]` or `info["is_success"]` of the episodes' last steps, else from the
    return by `threshold`. A number, a flag, or an array of one says something; a text, a dict or
    None does not (NaN where others do).

    Raises:
        RunError: If it is an array of several numbers, which could mean anything.
    """
    final = info.get("final_info", info)
    for key in ("success", "is_success"):
        if isinstance(final, Mapping) and key in final:
            said = _flags(final[key], len(done))
            if not np.isnan(said[done]).all():
                return said
    return None if threshold is None else (returns >= threshold).astype(float)


def _flags(values: Any, count: int) -> np.ndarray:
    """What B environments said, as numbers `[B]`; NaN is nothing."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.size == count:
        return values.reshape(count).astype(float)
    if not isinstance(values, np.ndarray) or len(values) != count:
        return np.full(count, np.nan)
    return np.array([_flag(value) for value in values])


def _check_one(value: np.ndarray) -> None:
    if value.size != 1:
        raise RunError(
            f"info['success'] (or is_success) must be one flag or number, not an array of shape "
            f"{list(value.shape)}; leave it out, or reduce it in the environment"
        )


def _flag(value: Any) -> float:
    if isinstance(value, np.ndarray):
        _check_one(value)
        value = value.reshape(()).item()
    return float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else np.nan
