"""What acts: actor-critics, Q-networks, tables, continuous actors, language models."""

from rl_lightning.policies.actor_critic import ActorCritic
from rl_lightning.policies.continuous import ContinuousNetwork
from rl_lightning.policies.discrete import DiscreteNetwork
from rl_lightning.policies.generating import GeneratingPolicy
from rl_lightning.policies.offline import OfflineNetwork
from rl_lightning.policies.policy import Evaluation, Policy, RolloutPolicy
from rl_lightning.policies.q_network import ActionValues, QNetwork, pick
from rl_lightning.policies.scoring import ScoringPolicy, ScoringQNetwork
from rl_lightning.policies.table import Table

__all__ = [
    "ActionValues",
    "ActorCritic",
    "ContinuousNetwork",
    "DiscreteNetwork",
    "Evaluation",
    "GeneratingPolicy",
    "OfflineNetwork",
    "Policy",
    "QNetwork",
    "RolloutPolicy",
    "ScoringPolicy",
    "ScoringQNetwork",
    "Table",
    "pick",
]
