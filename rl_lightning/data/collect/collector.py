"""Rollouts: what an agent does in environments, written down."""

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.protocols import Actor
from rl_lightning.core.tree import clone, concatenate
from rl_lightning.core.types import Rollout, Stored
from rl_lightning.data.collect.rollout_storage import Buffers
from rl_lightning.data.collect.stepper import Stepper


class Collector(Stepper):
    """Collects rollouts of T steps from B environments.

    Final observations of truncated episodes are set aside for the bootstrap, and the step that a
    NEXT_STEP environment spends on a reset is marked not `valid`.

    Args:
        env: Vector env with autoreset mode SAME_STEP or NEXT_STEP.
        steps: T.
        seed: Seed of the first reset; environment i gets `seed + i`.
        success_threshold: See `Stepper`.
    """

    def __init__(
        self, env: VectorEnv, steps: int, seed: int, success_threshold: float | None = None
    ) -> None:
        super().__init__(env, seed, success_threshold)
        self.steps = steps
        self._buffers = Buffers(steps)
        shape = (steps, env.num_envs)
        self._reward = np.zeros(shape, np.float32)
        self._terminated = np.zeros(shape, bool)
        self._truncated = np.zeros(shape, bool)
        self._valid = np.ones(shape, bool)

    @torch.no_grad()
    def collect(self, agent: Actor) -> Rollout:
        """Play T steps in every environment.

        Args:
            agent: Anything with `observe`, `preprocess`, `act` and `initial_state` (see `Agent`);
                the caller has put it into eval mode and the right precision context.

        Returns:
            The rollout, `[T, B]`. It reuses the storage of the rollout before it.
        """
        buffers = self._buffers
        if self.x is None:
            self.reset(agent)
        recurrent = self.state is not None
        final: list[tuple[int, np.ndarray, Stored, Tensor | None, Tensor | None]] = []
        self._valid[:] = True
        for t in range(self.steps):
            x: Any = self.x
            mask, state = self.mask, self.state
            out = agent.act(x, explore=True, state=state, mask=mask)
            buffers.write("obs", t, x)
            if mask is not None:
                buffers.write("action_mask", t, mask)
            if state is not None:
                buffers.write("state", t, state)
                if "next_state" not in out:
                    raise ConfigurationError(
                        "a policy whose state_dim is not 0 remembers: its act must return the "
                        "`next_state` that it is given at the step after"
                    )
                state = out.pop("next_state")
            elif "next_state" in out:
                raise ConfigurationError(
                    "act returned a `next_state`, but nobody keeps it: set the policy's state_dim "
                    "to its width"
                )
            for key, value in out.items():
                buffers.write(key, t, value)
            step = self.step(agent, out["action"], state, "truncated")
            self._reward[t] = step.reward
            self._terminated[t], self._truncated[t] = step.terminated, step.truncated
            if step.valid is not None:
                self._valid[t] = step.valid
            if step.final_index is not None:
                assert step.final_x is not None
                final.append((t, step.final_index, step.final_x, step.final_state, step.final_mask))

        start = None
        if recurrent:
            ended = ~self._valid if self.next_step_reset else self._terminated | self._truncated
            start = np.concatenate([np.zeros((1, self.env.num_envs), bool), ended[:-1]])
        return self._rollout(final, start, agent.device)

    def _rollout(self, final: list[Any], start: np.ndarray | None, device: torch.device) -> Rollout:
        shape = (self.steps, self.env.num_envs)
        entries = self._buffers.tensors(shape)
        entries["reward"] = torch.from_numpy(self._reward).to(device)
        entries["terminated"] = torch.from_numpy(self._terminated).to(device)
        entries["truncated"] = torch.from_numpy(self._truncated).to(device)
        if self.next_step_reset:
            entries["valid"] = torch.from_numpy(self._valid).to(device)
        if start is not None:
            entries["start"] = torch.from_numpy(start).to(device)
        assert self.x is not None
        rollout = Rollout(steps=TensorDict(entries, batch_size=shape), last_obs=clone(self.x))
        rollout.last_state, rollout.last_mask = self.state, self.mask
        if final:
            t = np.concatenate([np.full(len(cut), t) for t, cut, *_ in final])
            b = np.concatenate([cut for _, cut, *_ in final])
            rollout.final_index = (torch.from_numpy(t).to(device), torch.from_numpy(b).to(device))
            rollout.final_obs = concatenate([obs for _, _, obs, _, _ in final])
            if self.state is not None:
                rollout.final_state = torch.cat([state for _, _, _, state, _ in final])
            if self.mask is not None:
                rollout.final_mask = torch.cat([mask for *_, mask in final])
        return rollout
