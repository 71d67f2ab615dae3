"""From steps or texts to reward: language models as judges, shaping, bonuses for what is new.

A reward is not a wrapper: it is a stage of the collector. It judges all environments at once, on
the agent's device, and evaluation never sees it.
"""

from rl_lightning.rewards.count_bonus import CountBonus
from rl_lightning.rewards.goal_similarity import GoalSimilarity
from rl_lightning.rewards.labelled import LabelledReward
from rl_lightning.rewards.labels import (
    EndpointLabeller,
    FileLabeller,
    Labeller,
    OptionLabeller,
    RuleLabeller,
    SimilarityLabeller,
    WordLabeller,
    WritingLabeller,
)
from rl_lightning.rewards.learned import LearnedReward
from rl_lightning.rewards.likelihood import Likelihood
from rl_lightning.rewards.make import MakesReward, check_makers, make_rewards
from rl_lightning.rewards.reward import Reward, Shaping, StateReward, Step
from rl_lightning.rewards.rnd_bonus import RNDBonus
from rl_lightning.rewards.suggested_goals import SuggestedGoals
from rl_lightning.rewards.text_function import TextFunction

__all__ = [
    "CountBonus",
    "EndpointLabeller",
    "FileLabeller",
    "GoalSimilarity",
    "LabelledReward",
    "Labeller",
    "LearnedReward",
    "Likelihood",
    "MakesReward",
    "OptionLabeller",
    "RNDBonus",
    "Reward",
    "RuleLabeller",
    "Shaping",
    "SimilarityLabeller",
    "StateReward",
    "Step",
    "SuggestedGoals",
    "TextFunction",
    "WordLabeller",
    "WritingLabeller",
    "check_makers",
    "make_rewards",
]
