"""Refusing numbers that nothing can be learned from: NaN, infinity, and what float32 cannot hold.

One of them is enough to turn every weight into NaN, and running statistics before that. So they are
looked for before an observation is shown to anything, at every step, in a way that costs what two
dot products of a few numbers cost.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from rl_lightning.core.errors import RunError, shortened

INF = float("inf")
LARGEST = float(np.finfo(np.float32).max)

# A weighted sum stays finite only if all its terms are. Zero times NaN or infinity is NaN, and a
# double times this overflows if float32 could not hold it. (A sum of large numbers may overflow as
# well: whatever looks suspicious is looked at one by one.)
_WEIGHTS = {"f": 0.0, "e": 0.0, "d": float(np.finfo(np.float64).max) / LARGEST}

# Numbers of another type or shape; or somebody's own `seterr`, or filter of warnings.
DOT_FAILS = (AttributeError, ValueError, TypeError, FloatingPointError, RuntimeWarning)

# NumPy's remark on such a sum; what comes next says it better.
warnings.filterwarnings(
    "ignore",
    "(invalid value|overflow) encountered in dot",
    RuntimeWarning,
    module=r"rl_lightning\.data\.collect\.checks",
)


class FiniteCheck:
    """Looks at what a vector env returns.

    Args:
        env: The vector env, for its spaces and its name.
        during: What messages count the steps of.
    """

    def __init__(self, env: VectorEnv, during: str = "this run") -> None:
        self.during = during
        self.name = repr(env.spec.id) if env.spec else "the environment"
        self.num_envs = env.num_envs
        self.steps = 0
        self._space = env.single_observation_space
        self._action_space = env.single_action_space
        self._floats = _float_entries(self._space)
        self._entries: list[tuple[tuple[Any, ...], Any]] | None = None  # with their weights
        self._reward_weights: Any = np.full(env.num_envs, _WEIGHTS["d"])

    def ignore(self, paths: Iterable[tuple[Any, ...]]) -> None:
        """Leave out entries of a Dict or Tuple observation that nobody reads."""
        left_out = set(paths)
        self._floats = [
            path
            for path in _float_entries(self._space)
            if not any(path[: n + 1] in left_out for n in range(len(path)))
        ]
        self._entries = None

    def reset(self, obs: Any) -> None:
        """Look at the observations `[B, ...]` of a reset, from which steps are counted.

        Raises:
            RunError: See `observation`; also if their shape is not that of the space.
        """
        self.steps = 0
        self._check_shape(self._space, obs, ())
        self.observation(obs)

    def observation(self, obs: Any) -> None:
        """Look at observations `[B, ...]`.

        Raises:
            RunError: If one of them is not finite; names the environment, the step and the entry.
        """
        if self._entries is None:
            self._entries = [(path, _weights(_entry(obs, path))) for path in self._floats]
        for path, weights in self._entries:
            column = obs
            for key in path:
                column = column[key]
            if not _surely_finite(column, weights):
                self._refuse(column, f"observation{_spell(path)}")

    def step(self, obs: Any, reward: np.ndarray, resetting: np.ndarray | None = None) -> np.ndarray:
        """Look at what a step returned.

        Args:
            obs: Observations `[B, ...]`.
            reward: `[B]`.
            resetting: Where a NEXT_STEP env's step was a reset, `[B]`, whose pay means nothing.

        Returns:
            The rewards, 0 where the step was a reset.

        Raises:
            RunError: If a number is not finite, or if there is not one reward for each environment.
        """
        self.steps += 1
        if self.steps == 1:
            self._check_shape(self._space, obs, ())
        if resetting is not None and isinstance(reward, np.ndarray):
            numbers = reward.dtype.kind in "iuf" and reward.shape == resetting.shape
            reward = np.where(resetting, reward.dtype.type(0), reward) if numbers else reward
        # Like `_surely_finite`, without its call: this runs at every step.
        try:
            total = reward.dot(self._reward_weights)
        except DOT_FAILS:
            total = INF
        if not -INF < total < INF:
            if np.shape(reward) != (self.num_envs,):
                raise RunError(
                    f"{self.name}: rewards must have the shape [{self.num_envs}], one for each "
                    f"environment, not {list(np.shape(reward))}"
                )
            self._refuse(np.asarray(reward), "reward")
        if self._floats:
            self.observation(obs)
        return reward

    def action(self, action: Tensor) -> None:
        """Where a step went wrong, look at the actions `[B, ...]` that it was taken with.

        Raises:
            RunError: If one is NaN: nothing that an environment makes of that is its own fault.
        """
        if action.is_floating_point() and bool(action.isnan().any()):
            raise RunError(
                f"{self.name}: the policy's action is nan, at step {self.steps} of {self.during}: "
                "the agent has lost its numbers, most likely by too high a learning rate; "
                "checkpoints written before are good"
            )

    def final(self, obs: Any, which: np.ndarray) -> None:
        """Look at the final observations `[F, ...]` of some environments `[F]`.

        Raises:
            RunError: See `observation`.
        """
        for path in self._floats:
            self._refuse(_entry(obs, path), f"final observation{_spell(path)}", which)

    def explain(self, obs: Any, error: Exception) -> None:
        """An agent could not read observations `[B, ...]`: perhaps because of what they are.

        Raises:
            RunError: If a Discrete or MultiDiscrete entry is none of its space's.
        """
        for path, space in _discrete_entries(self._space):
            column = np.asarray(_entry(obs, path))
            count = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
            bad = (column < space.start) | (column >= space.start + count)
            if bad.any():
                row, *place = (int(n) for n in np.argwhere(bad)[0])
                raise RunError(
                    f"{self.name}: observation{_spell(path)}{_spell(tuple(place))} is "
                    f"{column[(row, *place)]}, at step {self.steps} of {self.during}, in "
                    f"environment {row} of {self.num_envs} (counted from 0), and its space is "
                    f"{shortened(space)}"
                ) from error

    def mask(self, mask: Any, over: np.ndarray | None = None) -> None:
        """Look at action masks `[B, A]`, bool.

        Args:
            mask: A tensor, or None if there is none.
            over: Where no action will be chosen, `[B]`.

        Raises:
            RunError: If one allows no action, or none for a part of a MultiDiscrete action.
        """
        space = self._action_space
        if mask is None or not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            return
        allowed = mask.cpu().numpy()
        if isinstance(space, gym.spaces.MultiDiscrete):
            starts = np.concatenate([[0], np.cumsum(space.nvec.reshape(-1))[:-1]])
            allowed = np.logical_or.reduceat(allowed, starts, axis=1).all(1)
        else:
            allowed = allowed.any(1)
        if over is not None:
            allowed = allowed | over
        if not allowed.all():
            raise RunError(
                f"{self.name}: info['action_mask'] allows no action after step {self.steps} of "
                f"{self.during}, in environment {int(np.argmin(allowed))} of {self.num_envs} "
                "(counted from 0); allow at least one, or end the episode"
            )

    def _check_shape(self, space: gym.Space, obs: Any, path: tuple[Any, ...]) -> None:
        """Whether a vector env of somebody else batches as its spaces say."""
        s = gym.spaces
        if isinstance(space, s.Dict | s.Tuple):
            parts = space.items() if isinstance(space, s.Dict) else enumerate(space)
            for key, part in parts:
                if isinstance(space, s.Dict) and key not in obs:
                    raise RunError(
                        f"{self.name}: observation{_spell((*path, key))} is missing; there are "
                        f"{list(obs)}"
                    )
                self._check_shape(part, obs[key], (*path, key))
        elif isinstance(space, s.Box | s.Discrete | s.MultiDiscrete | s.MultiBinary):
            wanted = [self.num_envs, *(space.shape or ())]
            if list(np.shape(obs)) != wanted:
                raise RunError(
                    f"{self.name}: observation{_spell(path)} of {self.num_envs} environments has "
                    f"the shape {list(np.shape(obs))}, but its space declares {wanted}"
                )

    def _refuse(self, column: Any, entry: str, which: np.ndarray | None = None) -> None:
        """Raise, unless all is well."""
        column = np.asarray(column)
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                bad = ~(np.abs(column.astype(np.float64)) <= LARGEST)
        except (TypeError, ValueError):
            raise RunError(f"{self.name}: {entry} is no array of numbers: {column!r}") from None
        if not bad.any():
            return
        row, *place = (int(n) for n in np.argwhere(bad)[0])
        value = column[(row, *place)]
        b = row if which is None else int(which[row])
        more = ", more than float32 holds" if np.isfinite(value) else ""
        hint = "mend the environment"
        if entry != "reward":
            nan = ", nan: 0" if np.isnan(value) else ""
            hint += (
                f", or, if {'NaN' if nan else 'infinity'} is meant, wrap it: data.wrappers: "
                f"[{{ClipObservation: {{low: -1000, high: 1000{nan}}}}}]"
            )
        elif not np.isnan(value):
            hint += (
                ", or, if infinity is meant, wrap it: data.wrappers: "
                "[{ClipReward: {min_reward: -1000, max_reward: 1000}}]"
            )
        raise RunError(
            f"{self.name}: {entry}{''.join(f'[{n}]' for n in place)} is {value:g}{more}, at step "
            f"{self.steps} of {self.during}, in environment {b} of {self.num_envs} (counted from "
            "0); "
            f"nothing is learned from it, and checkpoints written before are good: {hint}"
        )


def _surely_finite(column: Any, weights: Any) -> bool:
    """Whether a weighted sum says so; False calls for a closer look."""
    if weights is None:
        return True
    try:
        total = column.ravel().dot(weights)
    except DOT_FAILS:
        return False
    return -INF < total < INF


def _weights(column: Any) -> Any:
    """What `_surely_finite` weighs numbers like these by; None where there is nothing to find."""
    column = np.asarray(column)
    if column.dtype.kind != "f":
        return None
    return np.full(column.size, _WEIGHTS.get(column.dtype.char, _WEIGHTS["d"]), column.dtype)


def _float_entries(space: gym.Space, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in an observation floating-point numbers lie."""
    if isinstance(space, gym.spaces.Dict):
        return [p for key, part in space.items() for p in _float_entries(part, (*path, key))]
    if isinstance(space, gym.spaces.Tuple):
        return [p for i, part in enumerate(space) for p in _float_entries(part, (*path, i))]
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return [path]
    return []


def _discrete_entries(space: gym.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Where whole numbers lie that are counted, with their spaces."""
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        parts = space.items() if isinstance(space, gym.spaces.Dict) else enumerate(space)
        for key, part in parts:
            yield from _discrete_entries(part, (*path, key))
    elif isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        yield path, space


def _entry(obs: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def _spell(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in path)
