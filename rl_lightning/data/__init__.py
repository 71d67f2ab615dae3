"""Data: collecting rollouts, evaluation episodes, and the LightningDataModules."""

from rl_lightning.data.collector import Collector
from rl_lightning.data.evaluation import EpisodeLoader
from rl_lightning.data.module import RLDataModule
from rl_lightning.data.rollout import RolloutDataModule

__all__ = ["Collector", "EpisodeLoader", "RLDataModule", "RolloutDataModule"]
