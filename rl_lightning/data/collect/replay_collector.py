"""Stepping environments with an agent, straight into a replay buffer."""

from typing import Any

import numpy as np
import torch

from rl_lightning.core.protocols import Actor
from rl_lightning.core.tree import rows
from rl_lightning.data.collect.stepper import Outcome, Stepper
from rl_lightning.data.replay.buffer import ReplayBuffer


class ReplayCollector(Stepper):
    """Writes what happens into a replay buffer, step by step."""

    @torch.no_grad()
    def collect(self, agent: Actor, buffer: ReplayBuffer, steps: int, uniformly: bool) -> int:
        """Play some steps in every environment.

        Args:
            agent: Anything with `observe`, `preprocess`, `act`, `act_uniformly` and
                `initial_state`; the caller has put it into eval mode and the right precision
                context.
            buffer: Where to.
            steps: Steps of each environment.
            uniformly: Draw actions uniformly, without asking the policy.

        Returns:
            Frames: steps that were none of an episode's do not count.
        """
        if self.x is None:
            self.reset(agent)
            assert self.x is not None
            buffer.begin(self.x, mask=self.mask)
        frames = 0
        for _ in range(steps):
            mask, state = self.mask, self.state
            if uniformly:
                action = agent.act_uniformly(self.env.num_envs, mask)
            else:
                assert self.x is not None
                out = agent.act(self.x, explore=True, state=state, mask=mask)
                action, state = out["action"], out.get("next_state", state)
            step = self.step(agent, action, state, "all")
            if step.valid is None and step.final_index is None:  # nearly always
                buffer.act(action, step.reward, step.terminated, step.truncated)
                buffer.push(self.x, mask=self.mask)
                frames += self.env.num_envs
            else:
                frames += self._write(buffer, action, step)
        return frames

    def _write(self, buffer: ReplayBuffer, action: torch.Tensor, step: Outcome) -> int:
        """A step in which episodes end or begin."""
        x: Any = self.x
        mask = self.mask

        def pick(index: np.ndarray) -> Any:
            return None if mask is None else mask[torch.from_numpy(index)]

        played = np.flatnonzero(np.ones_like(step.done) if step.valid is None else step.valid)
        buffer.act(
            action[torch.from_numpy(played)],
            step.reward[played],
            step.terminated[played],
            step.truncated[played],
            played,
        )
        if step.valid is None:
            ended = step.final_index
            assert ended is not None
            assert step.final_x is not None
            going = np.flatnonzero(~step.done)
            if len(going):
                buffer.push(rows(x, going), going, pick(going))
            buffer.push(step.final_x, ended, step.final_mask)
            buffer.begin(rows(x, ended), ended, pick(ended))
            return len(played)
        if len(played):
            buffer.push(rows(x, played), played, pick(played))
        begun = np.flatnonzero(~step.valid)
        if len(begun):
            buffer.begin(rows(x, begun), begun, pick(begun))
        return len(played)
