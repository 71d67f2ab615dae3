"""From steps or texts to reward: language models as judges, shaping, bonuses for what is new.

A reward is not a wrapper: it is a stage of the collector. It judges all environments at once, on
the agent's device, and evaluation never sees it.
"""

from rl_lightning.rewards.count_bonus import CountBonus
from rl_lightning.rewards.goal_similarity import GoalSimilarity
from rl_lightning.rewards.make import MakesReward, check_makers, make_rewards
from rl_lightning.rewards.reward import Reward, Shaping, StateReward, Step
from rl_lightning.rewards.rnd_bonus import RNDBonus
from rl_lightning.rewards.text_function import TextFunction

__all__ = [
    "CountBonus",
    "GoalSimilarity",
    "MakesReward",
    "RNDBonus",
    "Reward",
    "Shaping",
    "StateReward",
    "Step",
    "TextFunction",
    "check_makers",
    "make_rewards",
]
