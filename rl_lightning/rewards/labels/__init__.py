"""Labels: questions about texts, answered by words, rules, files and language models."""

from rl_lightning.rewards.labels.endpoint import EndpointLabeller
from rl_lightning.rewards.labels.labeller import Labeller, UnreadableError
from rl_lightning.rewards.labels.language_model import OptionLabeller, SimilarityLabeller
from rl_lightning.rewards.labels.questions import Question
from rl_lightning.rewards.labels.rule import FileLabeller, RuleLabeller, WordLabeller
from rl_lightning.rewards.labels.verdict import Verdict
from rl_lightning.rewards.labels.writing import WritingLabeller

__all__ = [
    "EndpointLabeller",
    "FileLabeller",
    "Labeller",
    "OptionLabeller",
    "Question",
    "RuleLabeller",
    "SimilarityLabeller",
    "UnreadableError",
    "Verdict",
    "WordLabeller",
    "WritingLabeller",
]
