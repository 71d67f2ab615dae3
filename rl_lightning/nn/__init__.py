"""Neural network parts: trunks, heads, memory, running normalisation."""

from rl_lightning.nn.actor_critic import ActorCritic, Evaluation
from rl_lightning.nn.heads import ActionHead, make_head
from rl_lightning.nn.memory import Memory
from rl_lightning.nn.norm import RunningMoments, RunningNorm

__all__ = [
    "ActionHead",
    "ActorCritic",
    "Evaluation",
    "Memory",
    "RunningMoments",
    "RunningNorm",
    "make_head",
]
