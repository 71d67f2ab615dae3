"""Neural network parts: trunks, heads, memory, running normalisation."""

from rl_lightning.nn.actor_critic import ActorCritic, Evaluation
from rl_lightning.nn.continuous import ContinuousNetwork
from rl_lightning.nn.heads import ActionHead, make_head
from rl_lightning.nn.memory import Memory
from rl_lightning.nn.norm import RunningMoments, RunningNorm
from rl_lightning.nn.offline import OfflineNetwork
from rl_lightning.nn.q_network import QNetwork, pick
from rl_lightning.nn.target import make_target

__all__ = [
    "ActionHead",
    "ActorCritic",
    "ContinuousNetwork",
    "Evaluation",
    "Memory",
    "OfflineNetwork",
    "QNetwork",
    "RunningMoments",
    "RunningNorm",
    "make_head",
    "make_target",
    "pick",
]
