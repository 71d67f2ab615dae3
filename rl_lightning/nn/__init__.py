"""Neural network parts without an opinion: trunks, heads, memory, running normalisation."""

from typing import Any

from rl_lightning.core.former import former_attribute
from rl_lightning.nn.heads import ActionHead, make_head
from rl_lightning.nn.memory import Memory
from rl_lightning.nn.norm import RunningMoments, RunningNorm
from rl_lightning.nn.target import make_target

__all__ = [
    "ActionHead",
    "Memory",
    "RunningMoments",
    "RunningNorm",
    "make_head",
    "make_target",
]

_MOVED = ("ActorCritic", "ContinuousNetwork", "Evaluation", "OfflineNetwork", "QNetwork", "pick")


def __getattr__(name: str) -> Any:
    return former_attribute(__name__, name, _MOVED, "rl_lightning.policies")
