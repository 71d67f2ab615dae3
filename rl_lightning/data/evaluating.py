"""What every data module plays: the trainer's agent as it acts, and episodes of evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from gymnasium.vector import VectorEnv
from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.collect.evaluation import EpisodeLoader, limited
from rl_lightning.data.recordings.episode import EpisodeRecorder
from rl_lightning.data.recordings.writer import DatasetWriter
from rl_lightning.nn.modes import EvalMode


class EvaluatingModule(L.LightningDataModule):
    """Evaluation episodes as loaders, one episode a batch, and recording them."""

    spec: EnvSpec
    agent: Trainee
    record: str | None
    success_threshold: float | None
    val_episodes: int
    val_num_envs: int
    val_seed: int
    val_explore: bool
    val_transcript_steps: int
    _trainer: Any
    _writer: DatasetWriter | None
    _eval_loaders: dict[str, Any]
    _mode: EvalMode | None

    def make_eval_env(self, num_envs: int, render_mode: str | None = None) -> VectorEnv:
        """A vector env as validation uses it."""
        raise NotImplementedError

    @contextmanager
    def acting(self) -> Iterator[Trainee]:
        """The trainer's agent in the state in which it acts.

        In eval mode and inside the precision plugin's context, because with dropout or outside
        autocast the first ratio of PPO would not be 1; under `no_grad` and not `inference_mode`,
        because what is collected is trained on.
        """
        agent: Any = self.agent
        if self._mode is None or self._mode.module is not agent:
            self._mode = EvalMode(agent)
        with self._mode, torch.no_grad(), self._trainer.precision_plugin.forward_context():
            yield agent

    @contextmanager
    def reading(self, rows: int) -> Iterator[tuple[Trainee, tqdm]]:
        """The agent, ready to preprocess recorded observations, and a bar for so many rows."""
        quiet = not self._trainer.is_global_zero
        bar = tqdm(total=rows, desc="reading", unit=" rows", delay=2.0, leave=False, disable=quiet)
        with self.acting() as agent, bar:
            agent.begin_rollout()
            yield agent, bar
            agent.synchronize()
            agent.begin_rollout()  # a tuned model's features are standardised from here on

    def val_dataloader(self) -> EpisodeLoader:
        return self._evaluation("val", self.val_seed)

    def test_dataloader(self) -> EpisodeLoader:
        return self._evaluation("test", self.val_seed + 1_000_000)

    def predict_dataloader(self) -> EpisodeLoader:
        loader = self._evaluation("predict", self.val_seed + 2_000_000)
        if self.record is not None and loader.recorder is None:
            world = self._trainer.world_size
            if world > 1:
                raise ConfigurationError(
                    f"data.record: {world} ranks cannot write to one file, {self.record}; set "
                    "trainer.devices: 1"
                )
            self._writer = DatasetWriter(self.record, self.spec)
            if self._writer.before:
                rank_zero_warn(
                    f"data.record: {self.record} holds {self._writer.before} episodes, and new "
                    "ones come behind them; the same policy under the same data.val_seed plays "
                    "the same ones again"
                )
            loader.recorder = EpisodeRecorder(loader.env, self._writer.add)
        return loader

    def _evaluation(self, stage: str, seed: int) -> EpisodeLoader:
        world, rank = self._trainer.world_size, self._trainer.global_rank
        if self.val_episodes % world:
            raise ConfigurationError(
                f"data.val_episodes: {self.val_episodes} cannot be split evenly over {world} "
                f"ranks; choose a multiple of {world}"
            )
        episodes, length = limited(self._trainer, stage, self.val_episodes // world)
        made = self._eval_loaders.get(stage)
        if made is None or (made.episodes, made.length) != (episodes, length):
            if made is not None:
                made.close()
            num_envs = min(self.val_num_envs, episodes)
            self._eval_loaders[stage] = EpisodeLoader(
                self.make_eval_env(num_envs),
                self.acting,
                episodes,
                seed + rank * num_envs,
                self.val_explore,
                self.success_threshold,
                self.val_transcript_steps if rank == 0 else 0,
                length=length,
                unread=lambda: self.agent.unread,
            )
        return self._eval_loaders[stage]
