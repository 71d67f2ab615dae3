"""Gymnasium's `SyncVectorEnv` without what a collector does not need."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lightning.core.errors import RunError
from rl_lightning.envs.conform import (
    ArrayRows,
    MisfitError,
    explained,
    five,
    flag,
    make_rows,
    number,
    two,
)
from rl_lightning.envs.infos import add_info, kept


class LeanSyncVectorEnv(SyncVectorEnv):
    """Steps environments in turn, with autoreset mode SAME_STEP, a quarter faster.

    The same results as `SyncVectorEnv(copy=False, autoreset_mode=SAME_STEP)`, but the arrays it
    returns are its own: the next step overwrites observations, rewards and flags. What it is given
    it copies at once, so an environment may reuse its arrays; and what does not fit the space is
    refused instead of being broadcast or cut to size.

    Args:
        env_fns: What makes each environment.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]) -> None:
        super().__init__(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self._rows = make_rows(self.single_observation_space, self.num_envs)
        self._observations: Any = self._rows.all()
        rows = self._rows if isinstance(self._rows, ArrayRows) else None
        # What most observations are written to without a call: an array of arrays, not of numbers.
        self._array: Any = rows.array if rows and rows.shape else None
        self._size = 0 if self._array is None else self._array[0].nbytes
        self._steps = 0

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment; environment i is seeded `seed + i`.

        Raises:
            RunError: If an environment returns what its space does not hold, or ends the program.
        """
        infos: dict[str, Any] = {}
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        i = 0
        try:
            for i, env in enumerate(self.envs):
                own = None if seeds is None else seeds[i]
                obs, info = two(env.reset(seed=own, options=options))
                self._rows.put(i, obs)
                if info:
                    self._add_info(infos, info, i)
        except (MisfitError, SystemExit) as error:
            raise self._failed(i, "reset", error) from error
        self._observations = self._rows.all()
        return self._observations, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment; those whose episode ends begin another.

        Raises:
            RunError: If an environment returns what its space does not hold, or ends the program.
        """
        rows: Any = self._rows
        array, size = self._array, self._size
        dtype = None if array is None else array.dtype
        rewards, terminations, truncations = self._rewards, self._terminations, self._truncations
        infos: dict[str, Any] = {}
        self._steps += 1
        i, over = 0, None
        final_obs: Any = None
        final_info: dict[str, Any] = {}
        try:
            for i, env in enumerate(self.envs):
                result = env.step(actions[i])
                try:
                    obs, reward, terminated, truncated, info = result
                    terminations[i], truncations[i] = terminated, truncated
                except (TypeError, ValueError):
                    obs, reward, terminated, truncated, info = five(result)
                    terminated = terminations[i] = flag(terminated, "terminated")
                    truncated = truncations[i] = flag(truncated, "truncated")
                rewards[i] = reward if type(reward) is float else number(reward)
                if terminated or truncated:
                    # Copies: the environment may reset its own arrays in place.
                    if over is None:
                        over = np.zeros(self.num_envs, bool)
                        final_obs = np.full(self.num_envs, None, object)
                    over[i], final_obs[i] = True, rows.copy_of(obs)
                    if info:
                        add_info(final_info, kept(info), i, self.num_envs)
                    obs, info = two(env.reset())
                if array is None:
                    rows.put(i, obs)
                else:
                    try:  # nearly always as it should be, and then without a call
                        fits = obs.dtype is dtype and obs.nbytes == size
                        array[i] = obs if fits else rows.fitted(obs)
                    except (AttributeError, ValueError):  # no array, or one of other axes
                        rows.put(i, obs)
                if info:
                    self._add_info(infos, info, i)
        except (MisfitError, SystemExit) as error:
            raise self._failed(i, f"step {self._steps}", error) from error
        if over is not None:
            infos |= {"final_obs": final_obs, "final_info": final_info}
            infos |= {"_final_obs": over, "_final_info": over.copy()}
        self._observations = rows.all()
        return self._observations, rewards, terminations, truncations, infos

    def _add_info(
        self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int
    ) -> dict[str, Any]:
        return add_info(vector_infos, env_info, env_num, self.num_envs)

    def _failed(self, i: int, when: str, error: BaseException) -> RunError:
        name = repr(self.spec.id) if self.spec else "environment"
        where = f"at {when}, in environment {i} of {self.num_envs} (counted from 0)"
        return RunError(f"{name}, {where}: {explained(error)}")
