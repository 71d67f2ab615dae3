"""Wrappers that measure what they see, and so would make evaluation another task than training."""

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import vector

from rl_lightning.core.errors import ConfigurationError

_WAYS_OUT: dict[Any, str] = {
    (gym.wrappers.NormalizeObservation, vector.NormalizeObservation): (
        "observations by its own statistics, so a policy would be evaluated on others than it "
        "learned from; leave it out and set the encoder's normalize: true"
    ),
    (gym.wrappers.NormalizeReward, vector.NormalizeReward): (
        "rewards by its own statistics, and val/return would be a sum of normalised rewards; leave "
        "it out: RolloutDataModule's data.normalize_reward: true does it for learning alone"
    ),
}


def check_wrapper(kind: Any) -> None:
    """Refuse a wrapper that normalises by running statistics.

    Evaluation plays in environments of its own, whose wrappers begin with statistics of their own
    and go on changing them; and the training environments have one set each.

    Args:
        kind: The wrapper's class, or whatever else makes one.

    Raises:
        ConfigurationError: That names the wrapper, and what to use instead.
    """
    for kinds, way_out in _WAYS_OUT.items():
        if isinstance(kind, type) and issubclass(kind, kinds):
            raise ConfigurationError(
                f"wrapper {kind.__name__}: every environment, of training and of evaluation, would "
                f"normalise {way_out}"
            )


def check_wrappers(env: gym.Env) -> gym.Env:
    """The environment, if none of its wrappers does so; it may have brought one along."""
    inner = env
    while isinstance(inner, gym.Wrapper):
        check_wrapper(type(inner))
        inner = inner.env
    return env
