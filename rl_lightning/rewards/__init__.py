"""From steps or texts to reward: language models as judges, shaping, bonuses for what is new.

A reward is not a wrapper: it is a stage of the collector. It judges all environments at once, on
the agent's device, and evaluation never sees it.
"""

from rl_lightning.rewards.make import MakesReward, check_makers, make_rewards
from rl_lightning.rewards.reward import Reward, Shaping, StateReward, Step

__all__ = [
    "MakesReward",
    "Reward",
    "Shaping",
    "StateReward",
    "Step",
    "check_makers",
    "make_rewards",
]
