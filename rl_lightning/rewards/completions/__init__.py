"""What completions are worth: rules, functions and models that judge what was written."""

from rl_lightning.rewards.completions.form import FormatReward, LengthReward
from rl_lightning.rewards.completions.function import RewardFunction
from rl_lightning.rewards.completions.judge import CompletionJudge, Judged, RewardLike
from rl_lightning.rewards.completions.match import ExactMatch, PartialMatch, RegexMatch
from rl_lightning.rewards.completions.models import LabellerReward, RewardModelReward
from rl_lightning.rewards.completions.numeric import NumericAnswer
from rl_lightning.rewards.completions.reasoning import ReasoningGymReward
from rl_lightning.rewards.completions.reward import CompletionReward, Prompt

__all__ = [
    "CompletionJudge",
    "CompletionReward",
    "ExactMatch",
    "FormatReward",
    "Judged",
    "LabellerReward",
    "LengthReward",
    "NumericAnswer",
    "PartialMatch",
    "Prompt",
    "ReasoningGymReward",
    "RegexMatch",
    "RewardFunction",
    "RewardLike",
    "RewardModelReward",
]
