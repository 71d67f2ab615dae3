"""Where prompts come from: lists, files, Hugging Face datasets and tasks that make their own."""

from rl_lightning.data.prompts.files import FilePrompts, as_prompts
from rl_lightning.data.prompts.ranked import RankedPrompts
from rl_lightning.data.prompts.reasoning import ReasoningGymPrompts
from rl_lightning.data.prompts.split import split_prompts
from rl_lightning.data.prompts.strings import StringTasks
from rl_lightning.data.prompts.table import PickedPrompts, Prompts, RowPrompts

__all__ = [
    "FilePrompts",
    "PickedPrompts",
    "Prompts",
    "RankedPrompts",
    "ReasoningGymPrompts",
    "RowPrompts",
    "StringTasks",
    "as_prompts",
    "split_prompts",
]
