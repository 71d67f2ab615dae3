"""Hindsight: pretending that what was reached had been the goal."""

from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.goals import find_method, goal_function

Strategy = Literal["future", "final"]
KEYS = ("achieved_goal", "desired_goal")


class Hindsight:
    """Relabels transitions of goal environments (Andrychowicz et al. 2017).

    Of each batch, a share k/(k+1) gets the goal that was achieved later in the same episode;
    rewards are computed again, and so is termination where the environment can tell.

    Args:
        env: An environment with a Dict observation of `observation`, `achieved_goal` and
            `desired_goal`, and `compute_reward(achieved, desired, info)`, perhaps
            `compute_terminated` too: of batches of goals, or, which takes a Python call for each
            relabelled transition, of single ones.
        goals: k, relabelled transitions per one that is left as it was.
        strategy: Which achieved goal: `future`, of any later step of the episode, or `final`, of
            its last.

    Raises:
        ConfigurationError: If the environment is of another kind.
    """

    def __init__(self, env: gym.Env, goals: int, strategy: Strategy = "future") -> None:
        if strategy not in get_args(Strategy):
            raise ConfigurationError(
                f"data.her_strategy must be one of {', '.join(get_args(Strategy))}, "
                f"not {strategy!r}"
            )
        space = env.observation_space
        known = isinstance(space, gym.spaces.Dict) and all(k in space.spaces for k in KEYS)
        if not known or find_method(env, "compute_reward") is None:
            raise ConfigurationError(
                f"data.her_goals: {goals} needs an environment with achieved_goal and desired_goal "
                f"in its observations and a compute_reward method; {env.spec and env.spec.id} has "
                f"{shortened(space)}"
            )
        assert isinstance(space, gym.spaces.Dict)
        goal = space["desired_goal"]
        if goal != space["achieved_goal"] or not isinstance(
            goal, gym.spaces.Box | gym.spaces.MultiBinary
        ):
            raise ConfigurationError(
                "data.her_goals: achieved_goal and desired_goal must be the same Box or "
                f"MultiBinary space, not {shortened(space['achieved_goal'])} and {shortened(goal)}"
            )
        self.goal_space = goal
        compute = goal_function(env, "compute_reward", goal)
        assert compute is not None
        self.compute_reward = compute
        self.compute_terminated = goal_function(env, "compute_terminated", goal)
        self.share = goals / (goals + 1)
        self.strategy: Strategy = strategy

    def __call__(
        self, buffer: ReplayBuffer, index: Tensor, batch: dict[str, Any], gamma: float
    ) -> dict[str, Any]:
        """Relabel a batch that was read at `index` with one-step returns."""
        chosen = torch.nonzero(torch.rand(len(index)) < self.share).squeeze(1)
        if not len(chosen):
            return batch
        for key in KEYS:
            if key not in batch["obs"]:
                raise ConfigurationError(
                    f"data.her_goals: the encoder leaves out {key}, which relabelling needs; take "
                    "it out of DictEncoder's ignore"
                )
        rows = index[chosen]
        if self.strategy == "future":
            later = buffer.later(rows, torch.rand(len(rows)))
        else:
            later = buffer.last(rows)
        goal = self._goals(buffer, "achieved_goal", later)
        reached = batch["next_obs"]["achieved_goal"][chosen]
        for key in ("obs", "next_obs"):
            goals = batch[key]["desired_goal"].clone()
            goals[chosen] = goal
            batch[key] = {**batch[key], "desired_goal": goals}
        achieved, desired = self._to_env(reached), self._to_env(goal)
        reward = self.compute_reward(achieved, desired)
        if not np.isfinite(reward).all():
            bad = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise RunError(
                f"data.her_goals: compute_reward gave {reward[bad]:g} (in float32) for achieved "
                f"{achieved[bad].tolist()} and desired {desired[bad].tolist()}; mend the "
                "environment"
            )
        batch["reward"][chosen] = torch.from_numpy(reward)
        if self.compute_terminated is not None:
            over = self.compute_terminated(achieved, desired)
            batch["discount"][chosen] = gamma * torch.from_numpy(~over).float()
        return batch

    def _goals(self, buffer: ReplayBuffer, key: str, index: Tensor) -> Tensor:
        return buffer.columns["obs"].parts[key].read(index)

    def _to_env(self, goals: Tensor) -> np.ndarray:
        shape = self.goal_space.shape or ()
        if goals[0].numel() != int(np.prod(shape)):
            raise ConfigurationError(
                f"data.her_goals: a stored goal has {goals[0].numel()} numbers, the environment's "
                f"{list(shape)}; read goals with MLPEncoder, which keeps them as they are"
            )
        return goals.cpu().numpy().reshape(len(goals), *shape).astype(self.goal_space.dtype)
