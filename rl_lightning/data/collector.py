"""Stepping environments with an agent, and writing down what happened."""

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.data.episodes import EpisodeStatistics
from rl_lightning.data.storage import Buffers
from rl_lightning.errors import ConfigurationError
from rl_lightning.tree import clone, concatenate, rows, to_device
from rl_lightning.types import Rollout, Stored


class Collector:
    """Collects rollouts of T steps from B environments.

    It knows vector environments and nothing of learning. Both ways in which Gymnasium restarts
    episodes come out the same: final observations of truncated episodes are set aside for the
    bootstrap, and the step that a NEXT_STEP environment spends on a reset is marked not `valid`.

    Args:
        env: Vector env with autoreset mode SAME_STEP or NEXT_STEP.
        steps: T.
        seed: Seed of the first reset; environment i gets `seed + i`.
        success_threshold: Return from which an episode counts as a success where the environment's
            `info` does not say; None if only `info` may say.
    """

    def __init__(
        self, env: VectorEnv, steps: int, seed: int, success_threshold: float | None = None
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ConfigurationError(
                "the vector environment's autoreset mode must be SAME_STEP or NEXT_STEP, "
                f"not {mode}"
            )
        self.env = env
        self.steps = steps
        self.seed = seed
        self.success_threshold = success_threshold
        self.episodes = EpisodeStatistics(env.num_envs)
        self._next_step_reset = mode == AutoresetMode.NEXT_STEP
        self._buffers = Buffers(steps)
        shape = (steps, env.num_envs)
        self._reward = np.zeros(shape, np.float32)
        self._terminated = np.zeros(shape, bool)
        self._truncated = np.zeros(shape, bool)
        self._valid = np.ones(shape, bool)
        # Where the next rollout starts from.
        self._x: Stored | None = None
        self._mask: Tensor | None = None
        self._state: Tensor | None = None
        self._resetting = np.zeros(env.num_envs, bool)

    @torch.no_grad()
    def collect(self, agent: Any) -> Rollout:
        """Play T steps in every environment.

        Args:
            agent: Anything with `observe`, `preprocess`, `act` and `initial_state` (see `Agent`);
                the caller has put it into eval mode and the right precision context.

        Returns:
            The rollout, `[T, B]`. It reuses the storage of the rollout before it.
        """
        env, buffers = self.env, self._buffers
        if self._x is None:
            self._reset(agent)
        x: Any = self._x
        mask, state = self._mask, self._state
        final: list[tuple[int, np.ndarray, Stored, Tensor | None]] = []
        self._valid[:] = True
        for t in range(self.steps):
            out = agent.act(x, explore=True, state=state, mask=mask)
            buffers.write("obs", t, x)
            if mask is not None:
                buffers.write("action_mask", t, mask)
            if state is not None:
                buffers.write("state", t, state)
                state = out.pop("next_state")
            for key, value in out.items():
                buffers.write(key, t, value)

            obs, reward, terminated, truncated, info = env.step(to_env(out["action"]))
            self._reward[t], self._terminated[t], self._truncated[t] = (
                reward,
                terminated,
                truncated,
            )
            resetting = self._resetting
            if self._next_step_reset:
                self._valid[t] = ~resetting
            self.episodes.step(reward, ~resetting if self._next_step_reset else None)
            done = terminated | truncated
            any_done = bool(done.any())

            agent.observe(obs)
            x = agent.preprocess(obs)
            mask = agent.read_mask(info)
            if (mask is None) != (self._mask is None):
                raise ConfigurationError(
                    "info['action_mask'] must come with every reset and every step of every "
                    "environment, or never"
                )
            if any_done:
                cut = np.flatnonzero(truncated & ~terminated)
                if len(cut):
                    if self._next_step_reset:
                        last = rows(x, cut)
                    else:
                        last = agent.preprocess(_pick(info["final_obs"], cut, env))
                    last_state = None if state is None else state[torch.from_numpy(cut)]
                    final.append((t, cut, clone(last), last_state))
                self.episodes.finish(done, info, self.success_threshold)
            if state is not None:
                fresh = resetting if self._next_step_reset else done
                if fresh.any():
                    state = state * torch.from_numpy(~fresh).to(state)[:, None]
            if self._next_step_reset:
                self._resetting = done

        start = None
        if self._state is not None:
            ended = ~self._valid if self._next_step_reset else self._terminated | self._truncated
            start = np.concatenate([np.zeros((1, env.num_envs), bool), ended[:-1]])
        self._x, self._mask, self._state = x, mask, state
        return self._rollout(final, start, agent.device)

    def state_dict(self) -> dict[str, Any]:
        """Where collecting stands, without the environments' own state."""
        return {
            "x": None if self._x is None else clone(self._x),
            "mask": self._mask,
            "state": self._state,
            "resetting": torch.from_numpy(self._resetting.copy()),
            "episodes": self.episodes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state_dict`; the environments must have been put back too."""
        here: dict[str, Any] = {
            key: None if state[key] is None else to_device(state[key], device)
            for key in ("x", "mask", "state")
        }
        self._x, self._mask, self._state = here["x"], here["mask"], here["state"]
        self._resetting = state["resetting"].numpy().copy()
        self.episodes.load_state_dict(state["episodes"])

    def _reset(self, agent: Any) -> None:
        obs, info = self.env.reset(seed=self.seed)
        agent.observe(obs)
        self._x = agent.preprocess(obs)
        self._mask = agent.read_mask(info)
        self._state = agent.initial_state(self.env.num_envs)
        self._resetting = np.zeros(self.env.num_envs, bool)

    def _rollout(self, final: list[Any], start: np.ndarray | None, device: torch.device) -> Rollout:
        shape = (self.steps, self.env.num_envs)
        entries = self._buffers.tensors(shape)
        entries["reward"] = torch.from_numpy(self._reward).to(device)
        entries["terminated"] = torch.from_numpy(self._terminated).to(device)
        entries["truncated"] = torch.from_numpy(self._truncated).to(device)
        if self._next_step_reset:
            entries["valid"] = torch.from_numpy(self._valid).to(device)
        if start is not None:
            entries["start"] = torch.from_numpy(start).to(device)
        assert self._x is not None
        rollout = Rollout(steps=TensorDict(entries, batch_size=shape), last_obs=clone(self._x))
        rollout.last_state = self._state
        if final:
            t = np.concatenate([np.full(len(cut), t) for t, cut, _, _ in final])
            b = np.concatenate([cut for _, cut, _, _ in final])
            rollout.final_index = (torch.from_numpy(t).to(device), torch.from_numpy(b).to(device))
            rollout.final_obs = concatenate([obs for _, _, obs, _ in final])
            if self._state is not None:
                rollout.final_state = torch.cat([state for _, _, _, state in final])
        return rollout


def to_env(action: Tensor) -> np.ndarray:
    """Actions as the vector env takes them."""
    return action.cpu().numpy()


def _pick(final_obs: Any, index: np.ndarray, env: VectorEnv) -> Any:
    """The final observations of some environments, batched as the vector env batches."""
    from gymnasium.vector.utils import concatenate as stack
    from gymnasium.vector.utils import create_empty_array

    space = env.single_observation_space
    picked = [final_obs[i] for i in index]
    return stack(space, picked, create_empty_array(space, n=len(picked), fn=np.zeros))
