"""Rewards out of their descriptions: one object each, under a name of its own."""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.sharing import sharing
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards.reward import Reward

MakesReward = Callable[[EnvSpec], Reward]
ENVIRONMENT = "env"  # the name of what the environment itself pays


def check_makers(makers: Any) -> list[MakesReward]:
    """What `data.rewards` may be: a list of classes, or of other callables that make rewards.

    Raises:
        ConfigurationError: That names the entry that is none.
    """
    if makers is None:
        return []
    if isinstance(makers, str) or not isinstance(makers, Sequence):
        raise ConfigurationError(
            f"data.rewards must be a list of rewards, not {shortened(repr(makers), 80)}; write "
            "[{class_path: rl_lightning.rewards.GoalSimilarity, init_args: {…}}], in Python "
            "[partial(GoalSimilarity, …)]"
        )
    for index, maker in enumerate(makers):
        if isinstance(maker, Reward) or not callable(maker):
            raise ConfigurationError(
                f"data.rewards[{index}] must be a class of rewards, or partial(class, …), which is "
                f"called with the environment's spec; not {shortened(repr(maker), 80)}"
            )
    return list(makers)


def make_rewards(
    makers: Sequence[MakesReward],
    spec: EnvSpec,
    num_envs: int,
    gamma: float,
    device: torch.device,
    models: Mapping[Any, Any] | None = None,
) -> dict[str, Reward]:
    """Rewards by name, ready for their first step; those that read with one model load it once.

    Args:
        makers: Called with `spec`.
        spec: The environment's spaces.
        num_envs: B.
        gamma: The agent's γ.
        device: The agent's.
        models: Frozen language models of the agent's that they may read with, see `sharing`.

    Raises:
        ConfigurationError: If one cannot read the environment, is no reward, or has another's name.
    """
    named: dict[str, Reward] = {}
    with sharing(models):
        for index, maker in enumerate(makers):
            reward = maker(spec)
            if not isinstance(reward, Reward):
                raise ConfigurationError(
                    f"data.rewards[{index}] makes a {type(reward).__name__}, which is no Reward: "
                    "derive it from rl_lightning.rewards.Reward"
                )
            if reward.name is None:
                reward.name = free_name(name_of(type(reward)), named)
            elif reward.name in named or reward.name == ENVIRONMENT:
                raise ConfigurationError(
                    f"data.rewards[{index}]: the name {reward.name!r} is taken; give another"
                )
            reward.setup(num_envs, gamma, device)
            named[reward.name] = reward
    return named


def name_of(cls: type) -> str:
    """`GoalSimilarity` → `goal_similarity`, `RNDBonus` → `rnd_bonus`."""
    words = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
    return re.sub(words, "_", cls.__name__).lower()


def free_name(name: str, taken: Container[str]) -> str:
    """A name that is not taken: this one, or with the first number that makes it so."""
    count, free = 1, name
    while free in taken or free == ENVIRONMENT:
        count += 1
        free = f"{name}_{count}"
    return free
