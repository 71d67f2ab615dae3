"""From steps or texts to reward: language models as judges, shaping, bonuses for what is new.

A reward is not a wrapper: it is a stage of the collector. It judges all environments at once, on
the agent's device, and evaluation never sees it.
"""

from rl_lightning.rewards.labels import (
    EndpointLabeller,
    FileLabeller,
    Labeller,
    OptionLabeller,
    RuleLabeller,
    SimilarityLabeller,
)
from rl_lightning.rewards.learned import LearnedReward
from rl_lightning.rewards.make import MakesReward, check_makers, make_rewards
from rl_lightning.rewards.reward import Reward, Shaping, StateReward, Step

__all__ = [
    "EndpointLabeller",
    "FileLabeller",
    "Labeller",
    "LearnedReward",
    "MakesReward",
    "OptionLabeller",
    "Reward",
    "RuleLabeller",
    "Shaping",
    "SimilarityLabeller",
    "StateReward",
    "Step",
    "check_makers",
    "make_rewards",
]
