"""What two policies do in the same situations."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from rl_lightning.compress import Agreement, agreement
from rl_lightning.core.tree import clone
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.nn.modes import EvalMode

TOLERANCE = 0.05
"""Of actions of a Box: how far apart equal ones are, as a share of the range of each number."""
AT_A_STRETCH = 250
"""Steps of each environment: first steps of many episodes would say little of how episodes end."""


class Situation(NamedTuple):
    """What a policy was shown in one step of B environments, and what it did, as `act` has it.

    `obs` are the raw observations where another policy reads them in another way.
    """

    x: Any
    state: Tensor | None
    mask: Tensor | None
    action: Tensor
    obs: Any = None

    def shown(self, agent: Any) -> Any:
        """The observations as an agent's `act` has them."""
        return self.x if self.obs is None else agent.preprocess(self.obs)


def watch(agent: Any, data: Any, steps: int, keeps_raw: bool = False) -> list[Situation]:
    """What a greedy policy meets in at least so many steps of the environments it is judged in.

    As few environments are stepped as play `AT_A_STRETCH` each.

    Args:
        agent: In eval mode.
        data: Makes the environments.
        steps: Environment steps.
        keeps_raw: Whether situations have their raw observations, too.
    """
    num_envs = min(data.val_num_envs, data.val_episodes, -(-steps // AT_A_STRETCH))
    env = data.make_eval_env(num_envs)
    situations: list[Situation] = []
    bar = tqdm(total=steps, desc="watching", unit=" steps", delay=2.0, leave=False)
    try:
        with torch.no_grad(), EvalMode(agent), bar:
            stepper = Stepper(env, data.val_seed, observed=False, during="this comparison")
            agent.begin_rollout()
            stepper.reset(agent)
            while len(situations) * num_envs < steps:
                assert stepper.x is not None
                x, state, mask = clone(stepper.x), stepper.state, stepper.mask
                chosen = agent.act(x, explore=False, state=state, mask=mask)
                action, obs = chosen["action"].clone(), None
                if keeps_raw:
                    obs = copy.deepcopy(stepper.obs)
                situations.append(Situation(x, state, mask, action, obs))
                stepper.step(agent, chosen["action"], chosen.get("next_state"), "truncated")
                bar.update(num_envs)
    finally:
        env.close()
    return situations


def compare(agent: Any, seen: Sequence[Situation]) -> Agreement:
    """How often an agent does what was done."""
    with torch.no_grad(), EvalMode(agent):
        if seen[0].obs is not None:  # the agent may be another one
            agent.begin_rollout()
        now = [
            agent.act(one.shown(agent), explore=False, state=one.state, mask=one.mask)["action"]
            for one in seen
        ]
    return compare_actions(torch.cat([one.action for one in seen]), torch.cat(now))


def compare_actions(before: Tensor, after: Tensor) -> Agreement:
    """Of actions `[N, ...]` each, how many are the same; of a Box, in all numbers nearly the same.

    Numbers of different units count alike: what is near is a share, `TOLERANCE`, of the range in
    which each number of `before` lies.
    """
    before, after = (one.flatten(1) if one.ndim > 1 else one for one in (before, after))
    tolerance = None
    if before.is_floating_point():
        spread = (before.amax(0) - before.amin(0)).clamp_min(1e-6)  # [A]
        before, after, tolerance = before / spread, after / spread, TOLERANCE
    return agreement(
        lambda at: before[at], lambda at: after[at], torch.arange(len(before)), tolerance
    )
