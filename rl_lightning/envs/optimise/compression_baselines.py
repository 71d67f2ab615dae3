"""Ways to prune and quantise by rule or by search, as policies of the same environments.

See `rl_lightning.envs.optimise.baselines`. Their networks are judged as an agent's are, under the
same budget, which the environments enforce.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, whole, whole_seed
from rl_lightning.envs.optimise.prune_net import PruneNetEnv
from rl_lightning.envs.optimise.pruning import (
    largest,
    norm_shares,
    scaled,
    uniform_shares,
)
from rl_lightning.envs.optimise.quantize_net import QuantizeNetEnv


class Plan:
    """Acts out a list of actions; what they are is decided by `begin`."""

    _actions: Sequence[Any] = ()

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> Any:
        self._done += 1
        return self._actions[self._done - 1]

    def _follow(self, actions: Sequence[Any]) -> dict[str, Any]:
        self._actions, self._done = actions, 0
        return {}


class UniformPruning(Plan):
    """The same share stays of every group in `PruneNet-v0`, the largest within the budget."""

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        net = _pruning(env, "UniformPruning", task_seed)
        shares = largest(uniform_shares(net.prunable()), net.fits, net.lowest)
        return self._follow(net.actions_of(shares))


class GlobalMagnitude(Plan):
    """The nodes of least norm in the whole network go in `PruneNet-v0`, until it fits the budget.

    Args:
        normalised: Divide norms by the mean norm of their group, so that layers of small weights
            are not the first to go.
    """

    def __init__(self, normalised: bool = False) -> None:
        self.normalised = bool(normalised)

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        net = _pruning(env, "GlobalMagnitude", task_seed)
        shares = norm_shares(net.prunable(), self.normalised)
        return self._follow(net.actions_of(largest(shares, net.fits, net.lowest)))


class UniformBits(Plan):
    """All layers get the same bits in `QuantizeNet-v0`, the most within the budget."""

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        net = _quantising(env, "UniformBits", task_seed)
        bits = net.uniform_bits()
        return self._follow([net.action_of(bits)] * len(net.quantisable().names))


class GreedyBits(Plan):
    """Lowers in `QuantizeNet-v0`, layer by layer, what costs least loss for the bytes it saves.

    The validation loss is measured with one layer at a time at each width and all others as they
    are: (layers · widths + 1) evaluations, see `evaluations`. From the most bits on, the step with
    the least rise of loss per byte is made until the budget is met.

    Attributes:
        evaluations: Networks that were judged in the last `begin`.
    """

    evaluations = 0

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        net = _quantising(env, "GreedyBits", task_seed)
        found = net.quantisable()
        layers, most = len(found.names), found.uniform_size(net.budget)
        before = net.judge([32] * layers)["loss"]
        rise = [
            {b: net.judge([b if i == j else 32 for j in range(layers)])["loss"] - before
             for b in net.bits}
            for i in range(layers)
        ]  # fmt: skip
        self.evaluations = layers * len(net.bits) + 1
        bits = [net.bits[-1]] * layers
        while (size := found.size_of(bits)) > most:
            steps = []
            for i, now in enumerate(bits):
                lower = found.lower(i, now, net.bits)
                if lower is not None:
                    saved = size - found.size_of([*bits[:i], lower, *bits[i + 1 :]])
                    steps.append(((rise[i][lower] - rise[i][now]) / saved, i, lower))
            _, i, lower = min(steps)  # there is one: at their smallest, layers meet the budget
            bits[i] = lower
        return self._follow([net.action_of(b) for b in bits])


class RandomSearch(Plan):
    """Plays random episodes of a task, and then the one with the highest return again.

    In `PruneNet-v0` shares are drawn from U(lowest, 1) and multiplied by the largest number with
    which they fit the budget, so that none of it is wasted; in `QuantizeNet-v0` bits are drawn
    uniformly, and the environment's rule lowers them.

    Args:
        evaluations: Episodes to choose from.
        seed: Of what is drawn, beside the task's.
    """

    def __init__(self, evaluations: int = 50, seed: int = 0) -> None:
        self.evaluations = whole("evaluations", evaluations, 1)
        self.seed = whole_seed("seed", seed)

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        random = np.random.default_rng([task_seed, self.seed, 4])
        tried: list[tuple[float, list[Any]]] = []
        for _ in range(self.evaluations):
            actions = self._draw(env, task_seed, random)
            total = 0.0  # the task is at its start
            for action in actions:
                total += float(env.step(action)[1])
            tried.append((total, actions))
        return self._follow(max(tried, key=lambda one: one[0])[1])

    @staticmethod
    def _draw(env: gym.Env, task_seed: int, random: np.random.Generator) -> list[Any]:
        if isinstance(env.unwrapped, PruneNetEnv):
            net = _pruning(env, "RandomSearch", task_seed)
            drawn = random.uniform(net.lowest, 1.0, len(net.prunable().groups)).tolist()
            return net.actions_of(scaled(drawn, net.fits, net.lowest))
        net = _quantising(env, "RandomSearch", task_seed)
        drawn = random.integers(len(net.bits), size=len(net.quantisable().names))
        return [net.action_of(net.bits[i]) for i in drawn]


def _pruning(env: gym.Env, who: str, task_seed: int) -> PruneNetEnv:
    net = env.unwrapped
    if not isinstance(net, PruneNetEnv):
        raise ConfigurationError(f"{who} needs PruneNet-v0")
    env.reset(options={"task_seed": task_seed})
    return net


def _quantising(env: gym.Env, who: str, task_seed: int) -> QuantizeNetEnv:
    net = env.unwrapped
    if not isinstance(net, QuantizeNetEnv):
        needed = "PruneNet-v0 or QuantizeNet-v0" if who == "RandomSearch" else "QuantizeNet-v0"
        raise ConfigurationError(f"{who} needs {needed}")
    env.reset(options={"task_seed": task_seed})
    return net
