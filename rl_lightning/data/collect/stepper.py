"""Stepping vector environments, whatever for."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.protocols import Actor
from rl_lightning.core.spaces import action_writer
from rl_lightning.core.tree import clone, rows, to_device
from rl_lightning.core.types import Stored
from rl_lightning.data.collect.checks import FiniteCheck
from rl_lightning.data.collect.raw import final_info, with_rows
from rl_lightning.data.collect.reward_stage import RewardStage
from rl_lightning.data.collect.statistics import EpisodeStatistics, Finished
from rl_lightning.envs.failures import failed


class Taken(NamedTuple):
    """A step as the environments tell it, each `[B]`.

    `reset` is where a NEXT_STEP env spent the step on a reset, which pays nothing; `finished` are
    the episodes that ended with it.
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    reset: np.ndarray
    finished: Sequence[Finished]


class Outcome(NamedTuple):
    """What a step led to, each `[B]`; where it leads to next, the stepper knows.

    `reward` is what is learned from: of a stepper with a `stage`, what that makes of the step.

    `valid` is False where a NEXT_STEP env spent the step on a reset, None if there is no such.
    Final observations of the environments `final_index` `[F]` come preprocessed, with masks and
    recurrent states; all of them None if there is none.
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    valid: np.ndarray | None
    final_index: np.ndarray | None
    final_x: Stored | None
    final_mask: Tensor | None
    final_state: Tensor | None


class Stepper:
    """Steps a vector env, and knows where the next step starts from.

    It knows vector environments and nothing of learning or storing. Both ways in which Gymnasium
    restarts episodes come out the same, as `Outcome`. Nothing that is not finite gets past it.
    Training, evaluation, recordings and videos all step by it.

    Args:
        env: Vector env with autoreset mode SAME_STEP or NEXT_STEP.
        seed: Seed of the first reset; environment i gets `seed + i`.
        success_threshold: Return from which an episode counts as a success where the environment's
            `info` does not say; None if only `info` may say.
        observed: Whether observations count for the agent's running statistics.
        during: What messages count the steps of.
        keeps_action: Whether `action` is still asked for when the environments have had it.

    Attributes:
        obs: What the last reset or step returned, and the environments may overwrite.
        info: Likewise.
        stage: What judges the steps of `step` (never those of `advance`); None: the environments
            alone do.
        action: What the environments were given last, `[B, ...]`.
    """

    obs: Any
    info: dict[str, Any]
    action: np.ndarray

    def __init__(
        self,
        env: VectorEnv,
        seed: int,
        success_threshold: float | None = None,
        observed: bool = True,
        during: str = "this run",
        keeps_action: bool = False,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ConfigurationError(
                "the vector environment's autoreset mode must be SAME_STEP or NEXT_STEP, "
                f"not {mode}"
            )
        self.env = env
        self.to_env = action_writer(env.single_action_space)
        self.stage: RewardStage | None = None
        self.check = FiniteCheck(env, during)
        self.observed, self.keeps_action = observed, keeps_action
        self.seed = seed
        self.success_threshold = success_threshold
        self.episodes = EpisodeStatistics(env.num_envs)
        self.next_step_reset = mode == AutoresetMode.NEXT_STEP
        # Where the next step starts from.
        self.x: Stored | None = None
        self.mask: Tensor | None = None
        self.state: Tensor | None = None
        self.resetting = np.zeros(env.num_envs, bool)

    def reset(self, agent: Actor) -> None:
        """Begin all episodes anew, and look at them."""
        self.restart(agent)
        self.x, self.mask = self._look(agent, None)

    def restart(self, agent: Actor) -> None:
        """Begin all episodes anew."""
        try:
            self.obs, self.info = self.env.reset(seed=self.seed)
        except (Exception, SystemExit) as error:
            raise failed(self.env, error, "reset") from error
        self.check.reset(self.obs)
        if self.stage is not None:
            self.stage.begin(self.obs)
        self.state = agent.initial_state(self.env.num_envs)
        self.resetting = np.zeros(self.env.num_envs, bool)

    def look(self, agent: Actor) -> None:
        """Read what the last step has left, for whoever does not `step` but `advance`."""
        self.x, self.mask = self._look(agent, self.resetting if self.next_step_reset else None)

    def advance(self, action: Tensor) -> Taken:
        """Take one step in every environment, and look at nothing but whether it is in order.

        Args:
            action: As the agent chose them, `[B, ...]`; the environments get them as elements of
                their action space.

        Raises:
            RunError: If an observation or a reward is not finite, or the environment ends the
                program.
        """
        before = self.resetting
        try:
            self.action = given = self.to_env(action)
            # Of an action that somebody will still ask for, the environments get a copy.
            kept = self.keeps_action or self.stage is not None
            step = self.env.step(given.copy() if kept else given)
            self.obs, reward, terminated, truncated, self.info = step
            reward = self.check.step(self.obs, reward, before if self.next_step_reset else None)
        except (Exception, SystemExit) as error:
            self.check.action(action)
            raise failed(self.env, error, "step") from error
        self.episodes.step(reward, ~before if self.next_step_reset else None)
        done = terminated | truncated
        finished: Sequence[Finished] = ()
        if done.any():
            finished = self.episodes.finish(done, self.info, self.success_threshold)
        if self.next_step_reset:
            self.resetting = done
        return Taken(reward, terminated, truncated, done, before, finished)

    def carry(self, state: Tensor | None, took: Taken) -> None:
        """Remember the recurrent state after acting, `[B, H]`, zero where an episode begins."""
        if state is not None:
            fresh = took.reset if self.next_step_reset else took.done
            if fresh.any():
                state = state * torch.from_numpy(~fresh).to(state)[:, None]
        self.state = state

    def step(self, agent: Actor, action: Tensor, state: Tensor | None, wanted: str) -> Outcome:
        """Take one step in every environment, and look at what it led to.

        Args:
            agent: Reads what the environments say.
            action: See `advance`.
            state: Recurrent state after acting, `[B, H]`; where an episode begins it becomes zero.
            wanted: Which final observations to preprocess: of `truncated` episodes, which the
                bootstrap needs, or of `all`.

        Raises:
            RunError: See `advance`.
        """
        took = self.advance(action)
        reward = took.reward if self.stage is None else self._judged(self.stage, took)
        done, had_mask = took.done, self.mask is not None
        x, mask = self._look(agent, done if self.next_step_reset else None)
        if (mask is not None) != had_mask:
            raise ConfigurationError(
                "info['action_mask'] must come with every reset and every step of every "
                "environment, or never"
            )
        final_index = final_x = final_mask = final_state = None
        if took.finished:
            which = np.flatnonzero(done if wanted == "all" else took.truncated & ~took.terminated)
            if len(which):
                final_index = which
                if self.next_step_reset:
                    final_x = clone(rows(x, which))
                    final_mask = None if mask is None else mask[torch.from_numpy(which)]
                else:
                    final_obs = _pick(self.info["final_obs"], which, self.env)
                    self.check.final(final_obs, which)
                    final_x = clone(agent.preprocess(final_obs))
                    if mask is not None:
                        final_mask = _final_mask(agent, self.info, which, mask)
                final_state = None if state is None else state[torch.from_numpy(which)]
        self.carry(state, took)
        self.x, self.mask = x, mask
        return Outcome(
            reward,
            took.terminated,
            took.truncated,
            done,
            ~took.reset if self.next_step_reset else None,
            final_index,
            final_x,
            final_mask,
            final_state,
        )

    def _judged(self, stage: RewardStage, took: Taken) -> np.ndarray:
        """What is learned from a step that has just been taken, `[B]`."""
        obs, info = self.obs, self.info
        if took.finished and not self.next_step_reset:
            ended = np.flatnonzero(took.done)
            final = _pick(info["final_obs"], ended, self.env)
            self.check.final(final, ended)
            obs = with_rows(self.env.single_observation_space, obs, ended, final)
            info = final_info(info, took.done)
        return stage(self.action, took, (obs, info), self.obs, not self.next_step_reset)

    def _look(self, agent: Actor, resetting: np.ndarray | None) -> tuple[Stored, Tensor | None]:
        """What an agent makes of the last observations, and which actions are allowed."""
        x, mask = self._read(agent, self.obs), agent.read_mask(self.info)
        self.check.mask(mask, resetting)
        return x, mask

    def _read(self, agent: Actor, obs: Any) -> Stored:
        """Show observations to an agent's statistics; what it stores of them."""
        try:
            if self.observed:
                agent.observe(obs)
            return agent.preprocess(obs)
        except Exception as error:
            self.check.explain(obs, error)
            raise

    def state_dict(self) -> dict[str, Any]:
        """Where collecting stands, without the environments' own state."""
        return {
            "x": None if self.x is None else clone(self.x),
            "mask": self.mask,
            "state": self.state,
            "resetting": torch.from_numpy(self.resetting.copy()),
            "episodes": self.episodes.state_dict(),
            **({} if self.stage is None else {"stage": self.stage.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state_dict`; the environments must have been put back too."""
        if self.stage is not None:
            if "stage" not in state:
                warnings.warn(
                    "the checkpoint does not hold the observations that data.rewards go on from: "
                    "training goes on with fresh episodes",
                    stacklevel=2,
                )
                return
            self.stage.load_state_dict(state["stage"])
        here: dict[str, Any] = {
            key: None if state[key] is None else to_device(state[key], device)
            for key in ("x", "mask", "state")
        }
        self.x, self.mask, self.state = here["x"], here["mask"], here["state"]
        self.resetting = state["resetting"].numpy().copy()
        self.episodes.load_state_dict(state["episodes"])


def _pick(final_obs: Any, index: np.ndarray, env: VectorEnv) -> Any:
    """The final observations of some environments, batched as the vector env batches."""
    from gymnasium.vector.utils import concatenate as stack
    from gymnasium.vector.utils import create_empty_array

    space = env.single_observation_space
    picked = [final_obs[i] for i in index]
    return stack(space, picked, create_empty_array(space, n=len(picked), fn=np.zeros))


def _final_mask(agent: Actor, info: Any, index: np.ndarray, mask: Tensor) -> Tensor:
    """Masks of final observations; where they were not reported, everything is allowed."""
    final = info.get("final_info")
    reported = agent.read_mask(final) if isinstance(final, dict) else None
    if reported is None:
        return torch.ones_like(mask[: len(index)])
    return reported[torch.from_numpy(index)]
