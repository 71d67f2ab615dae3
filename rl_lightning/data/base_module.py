"""What all data modules share: environments, evaluation, the frame clock and exact resuming."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.errors import ConfigurationError, check_finite, whole, whole_seed
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.ranks import close_at_exit, keep_at_exit
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.clock import ClockModule
from rl_lightning.data.collect.reward_stage import RewardStage
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.data.evaluating import EvaluatingModule
from rl_lightning.data.recordings.writer import DatasetWriter
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.data.resume.remembered import RememberedFiles
from rl_lightning.data.resume.sidecar import Spool, install
from rl_lightning.data.resuming import ResumingModule
from rl_lightning.data.stored_module import StoredDataModule
from rl_lightning.data.trainer_arguments import check_trainer, trains_nothing
from rl_lightning.data.tuners import check_tuners
from rl_lightning.envs.describe.actions import action_names, names_of
from rl_lightning.envs.make import Vectorization, WrapperSpec, make_env, make_vector_env
from rl_lightning.llm import frozen_models
from rl_lightning.nn.modes import EvalMode
from rl_lightning.rewards import Reward, check_makers, make_rewards
from rl_lightning.trainer import max_epochs, set_max_epochs

MOST_ENVS = 1_000_000  # more is a slip of the keyboard, and would fill any memory


class RLDataModule(StoredDataModule, EvaluatingModule, ResumingModule, ClockModule):
    """Environments for training and evaluation, and the count of frames.

    An epoch is a fixed amount of experience, so the budget is `total_frames`: the module sets the
    trainer's `max_epochs` to what is left of it. Frames are environment steps of all ranks.

    Args:
        env: Gymnasium id; `module:Id-v0` imports the module first.
        num_envs: Training environments of each rank, B.
        total_frames: Budget, in frames of all ranks together; warm-up is part of it.
        env_kwargs: Keyword arguments of the environment.
        wrappers: Wrappers by name, innermost first, see `rl_lightning.envs.make_env`.
        vectorization: `sync`, `async` (processes) or `native` (the environment's own).
        seed: Environment i of rank r is seeded `seed + r · num_envs + i`; None: the global seed.
        success_threshold: Return from which an episode counts as a success where the environment's
            `info` does not say.
        val_episodes: Evaluation episodes, of all ranks together. A trainer's limit on batches
            (`limit_val_batches` and the like) takes their place: k, or that share of them.
        val_num_envs: Evaluation environments of each rank.
        val_env_kwargs: What evaluation changes in `env_kwargs`, e.g. held-out levels.
        val_seed: Seed of evaluation environment 0, the same at every validation.
        val_explore: Evaluate the stochastic policy; otherwise the greedy one.
        val_transcript_steps: Steps of one evaluation episode to write to the text panel.
        record: HDF5 file that `predict` writes its episodes to, behind those it holds already.
        rewards: What steps of training are worth beside what the environment pays, see
            `rl_lightning.rewards`. Learned from is `env_reward_weight · r_env + Σ weightᵢ · rᵢ`;
            `train/return` and all of evaluation stay the environment's own.
        env_reward_weight: Weight of what the environment pays; 0 learns from `rewards` alone.

    Raises:
        ConfigurationError: If the environment or a number is wrong.
    """

    minibatch: str | None = None
    """The argument that splits experience into batches where there is no `batch_size`."""
    prediction_file = "episodes.jsonl"
    """What `predict` writes beside the logs."""
    logs_every: int | None = None
    """Updates between two that the command line logs, where nobody says; None: Lightning's 50."""
    records_lines = False
    """Whether `record` takes the place of that file."""
    unit: str = "frame"
    """What the clock counts: `frames`, `total_frames` and the agent's clock are in this unit."""

    def __init__(
        self,
        env: str,
        num_envs: int = 8,
        total_frames: int = 100_000,
        env_kwargs: dict[str, Any] | None = None,
        wrappers: list[WrapperSpec] | None = None,
        vectorization: Vectorization = "sync",
        seed: int | None = None,
        success_threshold: float | None = None,
        val_episodes: int = 20,
        val_num_envs: int = 8,
        val_env_kwargs: dict[str, Any] | None = None,
        val_seed: int = 1_000_000,
        val_explore: bool = False,
        val_transcript_steps: int = 8,
        record: str | None = None,
        rewards: list[Callable[[EnvSpec], Reward]] | None = None,
        env_reward_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.remember_arguments()
        check_finite("data.success_threshold", success_threshold)
        self.env = env
        self.num_envs = whole("data.num_envs", num_envs, 1, MOST_ENVS)
        self.total_frames = whole(f"data.total_{self.unit}s", total_frames, 1)
        self.env_kwargs = dict(env_kwargs or {})
        self.wrappers: Sequence[WrapperSpec] = wrappers or []
        self.vectorization: Vectorization = vectorization
        self.seed = None if seed is None else whole_seed("data.seed", seed)
        self.success_threshold = success_threshold
        self.val_episodes = whole("data.val_episodes", val_episodes, 1)
        self.val_num_envs = whole("data.val_num_envs", val_num_envs, 1, MOST_ENVS)
        self.val_env_kwargs = dict(val_env_kwargs or {})
        self.val_seed = whole_seed("data.val_seed", val_seed)
        self.val_explore = val_explore
        self.val_transcript_steps = whole("data.val_transcript_steps", val_transcript_steps, 0)
        self.record = record
        self.rewards = check_makers(rewards)
        if env_reward_weight is None:
            raise ConfigurationError("data.env_reward_weight must be a finite number, not None")
        check_finite("data.env_reward_weight", env_reward_weight)
        self.env_reward_weight = float(env_reward_weight)
        self.clear()

    def clear(self) -> None:
        """Be as if there had been no run: a copy, which keeps the arguments, is in none."""
        self.trainer = None
        self.frames = 0
        self.collector: Stepper | None = None
        self._train_env: VectorEnv | None = None
        self._eval_loaders: dict[str, Any] = {}
        self._writer: DatasetWriter | None = None
        self._running = False
        self.runs = False
        self._restored: list[Any] | None = None
        self._spools: dict[str, Spool] = {}
        self._remembered = RememberedFiles()
        self._resume_from: Path | None = None
        self._texts_name: str | None = None
        self._max_epochs: Any = None
        self._planned = 0
        self._began: tuple[float, int] | None = None
        self._mode: EvalMode | None = None
        for name in ("_spare", "snapshots", "weak_metrics"):
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.clear()
        return new.__dict__

    # --- what subclasses say --------------------------------------------------------------------

    @property
    def frames_per_epoch(self) -> int:
        """Frames of one epoch on one rank."""
        raise NotImplementedError

    @property
    def epoch_length(self) -> int:
        """What one epoch adds to the clock."""
        return self.frames_per_epoch * self._trainer.world_size

    def open_source(self, seed: int) -> None:
        """Make what experience comes from: training environments, the first seeded `seed`."""
        self._train_env = make_vector_env(
            self.env, self.num_envs, self.vectorization, self.env_kwargs, self.wrappers
        )
        self.collector = self.make_collector(self._train_env, seed)
        if self.rewards or self.env_reward_weight != 1.0:
            self.collector.stage = self._make_stage()

    def _make_stage(self) -> RewardStage:
        agent: Any = self.agent
        if not agent.learns_from_rewards:
            raise ConfigurationError(
                f"data.rewards: {type(agent).__name__} learns from no reward; leave it out, and "
                "env_reward_weight too"
            )
        place = self.num_envs, agent.gamma, agent.device
        rewards = make_rewards(self.rewards, self.spec, *place, frozen_models(agent))
        return RewardStage(rewards, self.num_envs, agent.device, self.env_reward_weight, self.env)

    def make_collector(self, env: VectorEnv, seed: int) -> Stepper:
        """What steps the training environments."""
        raise NotImplementedError

    def check(self, agent: Trainee) -> None:
        """Raise `ConfigurationError` if the agent cannot be trained on these data."""

    # --- who else is there --------------------------------------------------------------------

    @property
    def _trainer(self) -> Any:
        assert self.trainer is not None, "the data module is not attached to a Trainer"
        return self.trainer

    @property
    def agent(self) -> Trainee:
        """The trainer's agent."""
        return self._trainer.lightning_module

    # --- environments ---------------------------------------------------------------------------

    @cached_property
    def _spare(self) -> gym.Env | VectorEnv:
        if self.vectorization == "native":
            return make_vector_env(self.env, 1, "native", self.env_kwargs, self.wrappers)
        return make_env(self.env, self.env_kwargs, self.wrappers)

    @cached_property
    def spec(self) -> EnvSpec:
        """The spaces of one environment, read off a spare one."""
        env = self._spare
        if not isinstance(env, VectorEnv):
            names = names_of(env, self.env)
            return EnvSpec(env.observation_space, env.action_space, self.env, names)
        actions = env.single_action_space
        count = int(actions.n) if isinstance(actions, gym.spaces.Discrete) else 0
        names = action_names(self.env, count)
        return EnvSpec(env.single_observation_space, actions, self.env, names)

    @cached_property
    def snapshots(self) -> Snapshots:
        """Copies environment state into checkpoints, where that is possible."""
        return Snapshots(self._spare)

    def make_eval_env(self, num_envs: int, render_mode: str | None = None) -> VectorEnv:
        """A vector env as validation uses it."""
        kwargs = {**self.env_kwargs, **self.val_env_kwargs}
        return make_vector_env(
            self.env, num_envs, self.vectorization, kwargs, self.wrappers, render_mode
        )

    # --- loaders --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Have the trainer save and load checkpoints safely, from here on and also after `fit`.

        Unlike the trainer's `max_epochs`, which is put back, that stays: it belongs to no run.
        """
        if self.trainer is None:  # called by hand, to see whether anything happens
            return
        install(self._trainer, type(self).__qualname__, lambda: self._running)
        close_at_exit()
        if stage != "fit":
            return
        check_tuners(self._trainer, self.minibatch)
        if (reason := trains_nothing(self._trainer)) is not None:  # no loader is asked for then
            rank_zero_warn(
                f"nothing is trained: {reason}; leave it out, or give Trainer(max_epochs=-1), to "
                f"train until {self._budget} are used up"
            )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch  # made on the agent's device in the first place

    def start(self) -> None:
        """Open the source, go on from a checkpoint if there is one, plan the run."""
        trainer = self._trainer
        if not self._running:
            check_trainer(trainer, self._budget)
            self.check(self.agent)
            seed = self._seed() + trainer.global_rank * self.num_envs
            if trainer.global_rank > 0:
                # Lightning seeds all ranks alike; their actions must not be sampled alike.
                torch.manual_seed(seed)
            self.open_source(seed)
            if self.collector is not None:
                self.collector.check.ignore(self.agent.unread)
            self._running = True
            self._max_epochs = max_epochs(trainer)
            if self.agent.frames == 0:
                self.forget()  # what another agent has done
            self._go_on()
        self.runs = self.agent.plan_updates()
        if self.frames >= self.total_frames:
            rank_zero_warn(
                f"nothing to train: {self._budget} are used up by the "
                f"{self.frames} so far; raise it to go on"
            )
        self.plan(self.epoch)
        ends = max_epochs(trainer) == self._max_epochs != self._planned
        if ends and not trains_nothing(trainer):  # that is said already
            rank_zero_warn(
                f"max_epochs={self._max_epochs} ends training before {self._budget} are used up; "
                "give Trainer(max_epochs=-1) for the whole budget"
            )

    def forget(self) -> None:
        """Begin at 0, with fresh environments and statistics."""
        self.frames, self._began, self._restored = 0, None, None

    def teardown(self, stage: str) -> None:
        if self._running:
            self._restored = self._all_ranks()  # for `save_checkpoint` and another `fit`
        self._leave()
        for loader in self._eval_loaders.values():
            loader.close()
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._eval_loaders = {}
        self.close_spools()

    def on_exception(self, exception: BaseException) -> None:
        # Lightning calls no `teardown` then; where collecting stood, nobody knows. The environments
        # end themselves: to wait here for one that has failed could hide why.
        keep_at_exit()
        self._train_env = None
        self._leave()
        self.close_spools()

    def _leave(self) -> None:
        """End collecting, and put back what this module has set on the trainer."""
        if self._running:
            set_max_epochs(self._trainer, self._max_epochs)
        if self._train_env is not None:
            self._train_env.close()
        self._running = False
        self.collector = self._train_env = None
