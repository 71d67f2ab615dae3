"""The names by which files know this library's classes, wherever these are defined."""

from collections.abc import Mapping, Sequence
from typing import Any

import rl_lightning


def public_path(thing: Any) -> str:
    """A class or function as files name it: `rl_lightning.PPO`, or its module's dotted path."""
    return present_path(f"{thing.__module__}.{thing.__qualname__}")


def present_path(path: str) -> str:
    """The path of today for one that a file of whatever version holds.

    What `rl_lightning` offers by its name keeps that name for ever, while modules move:
    `rl_lightning.agents.ppo.PPO` is `rl_lightning.PPO`. Any other path stays as it is.
    """
    package, _, rest = path.partition(".")
    name = rest.rpartition(".")[2]
    return (
        f"{package}.{name}" if package == "rl_lightning" and name in rl_lightning.__all__ else path
    )


def present_paths(value: Any) -> Any:
    """Plain data with all paths in its texts as they are today."""
    if isinstance(value, str):
        return present_path(value)
    if isinstance(value, Mapping):
        return {key: present_paths(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [present_paths(entry) for entry in value]
    return value
