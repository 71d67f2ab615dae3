"""Data: collecting rollouts, evaluation episodes, and the LightningDataModules."""

from rl_lightning.data.base_module import RLDataModule
from rl_lightning.data.collect.collector import Collector
from rl_lightning.data.collect.evaluation import EpisodeLoader
from rl_lightning.data.completion_module import CompletionDataModule
from rl_lightning.data.episode_module import EpisodeDataModule
from rl_lightning.data.offline_module import OfflineDataModule
from rl_lightning.data.preference_module import PreferenceDataModule
from rl_lightning.data.prompt_module import PromptDataModule
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay_module import ReplayDataModule
from rl_lightning.data.rollout_module import RolloutDataModule

__all__ = [
    "Collector",
    "CompletionDataModule",
    "EpisodeDataModule",
    "EpisodeLoader",
    "OfflineDataModule",
    "PreferenceDataModule",
    "PromptDataModule",
    "RLDataModule",
    "ReplayBuffer",
    "ReplayDataModule",
    "RolloutDataModule",
]
