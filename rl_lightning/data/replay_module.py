"""The off-policy data module: collect into a replay buffer, and hand out samples of it."""

import math
from collections.abc import Iterator
from typing import Any, Literal

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_range, whole
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.schedules import anneal
from rl_lightning.core.tree import to_device
from rl_lightning.data.collect.replay_collector import ReplayCollector
from rl_lightning.data.own_module import own_module
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.hindsight import Hindsight, Strategy
from rl_lightning.data.replay.storage import (
    OBS_DTYPES,
    action_dtype,
    check_multiple,
    check_room,
    check_storage,
    storage_folder,
)
from rl_lightning.data.replay_contents import ReplayContents
from rl_lightning.data.update_loader import UpdateLoader


class ReplayDataModule(ReplayContents):
    """Collects a few frames, samples a few batches, and so on.

    The first epoch begins with `warmup_frames` of uniform actions. Then every `collect_frames`
    frames pay for `gradient_steps` batches; all counts are frames, whatever the number of
    environments.

    Args:
        env: Gymnasium id; `module:Id-v0` imports the module first.
        num_envs: Training environments of each rank, B.
        buffer_frames: Frames of each rank that the buffer holds.
        batch_size: Transitions of one batch.
        warmup_frames: Frames of uniform actions before the first update, of all ranks together.
        collect_frames: Frames of each rank between two rounds of updates, a multiple of `num_envs`.
        gradient_steps: Batches of one round.
        frames_per_epoch: Frames of each rank that make one epoch of the trainer, and so the grid on
            which validation and checkpoints happen; a multiple of `collect_frames`.
        dataset: HDF5 file, or folder of a Minari data set, of recorded episodes that the buffer
            begins with, before warm-up; of several ranks, each reads its share. They take rows of
            `buffer_frames`, and are the first to be overwritten. None: it begins empty.
        n_step: Steps of a return before it goes on with the value of what followed.
        prioritized: Draw transitions in proportion to |δ|^α (Schaul et al. 2016).
        priority_alpha: α; 0 is uniform.
        priority_beta: β of the importance weights at the beginning; it ends at 1.
        priority_eps: Added to |δ|.
        her_goals: k: for goal environments, relabelled transitions per one left as it was
            (hindsight experience replay); 0 for none.
        her_strategy: Which achieved goals to relabel with: `future` or `final`.
        frame_stack: Frames of stacked observations (`stack_size` of the FrameStackObservation
            wrapper): each is stored once.
        obs_dtype: How floating-point observations and features are stored: `float32` or `float16`.
        storage: Keep the buffer in `memory`, or on `disk` behind a memory map.
        storage_dir: Folder for `disk`; None: the system's for temporary files.
        save_replay: Save the buffer's contents beside each checkpoint.
        **shared: Arguments of `RLDataModule`.

    Raises:
        ConfigurationError: If a number is wrong or does not fit the others.
    """

    def __init__(
        self,
        env: str,
        num_envs: int = 1,
        buffer_frames: int = 100_000,
        batch_size: int = 128,
        warmup_frames: int = 1_000,
        collect_frames: int | None = None,
        gradient_steps: int = 1,
        frames_per_epoch: int = 1_000,
        *,
        dataset: str | None = None,
        n_step: int = 1,
        prioritized: bool = False,
        priority_alpha: float = 0.6,
        priority_beta: float = 0.4,
        priority_eps: float = 1e-6,
        her_goals: int = 0,
        her_strategy: Strategy = "future",
        frame_stack: int = 1,
        obs_dtype: Literal["float32", "float16"] = "float32",
        storage: Literal["memory", "disk"] = "memory",
        storage_dir: str | None = None,
        save_replay: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(env, num_envs, **shared)
        num_envs, total_frames = self.num_envs, self.total_frames
        buffer_frames = whole("data.buffer_frames", buffer_frames, 1)
        batch_size = whole("data.batch_size", batch_size, 1)
        collect_frames = num_envs if collect_frames is None else collect_frames
        collect_frames = whole("data.collect_frames", collect_frames, 1)
        gradient_steps = whole("data.gradient_steps", gradient_steps, 1)
        frames_per_epoch = whole("data.frames_per_epoch", frames_per_epoch, 1)
        n_step = whole("data.n_step", n_step, 1)
        frame_stack = whole("data.frame_stack", frame_stack, 1)
        warmup_frames = whole("data.warmup_frames", warmup_frames, 0)
        check_range("data.priority_alpha", priority_alpha, 0.0)
        check_range("data.priority_beta", priority_beta, 0.0, 1.0)
        check_range("data.priority_eps", priority_eps, 0.0)
        her_goals = whole("data.her_goals", her_goals, 0)
        check_multiple("collect_frames", collect_frames, "num_envs", num_envs)
        check_multiple("frames_per_epoch", frames_per_epoch, "collect_frames", collect_frames)
        check_storage(obs_dtype, storage, storage_dir)
        judged = bool(self.rewards) or self.env_reward_weight != 1.0
        for name, other in (("her_goals", her_goals), ("dataset", dataset)):
            if judged and other:
                raise ConfigurationError(
                    f"data.{name}: {other} brings rewards of the environment alone into the "
                    "buffer, beside rows that data.rewards and data.env_reward_weight have "
                    f"judged; leave out these, or data.{name}"
                )
        if her_goals and n_step > 1:
            raise ConfigurationError(
                f"data.n_step: {n_step} cannot be relabelled: rewards of later steps belong to the "
                "old goal; set data.n_step: 1 or data.her_goals: 0"
            )
        if warmup_frames >= total_frames:
            raise ConfigurationError(
                f"data.warmup_frames: {warmup_frames} leave nothing of data.total_frames: "
                f"{total_frames} to learn in"
            )
        for name, value, unit in (
            ("batch_size", batch_size, 1),
            ("collect_frames", collect_frames, 1),
            ("n_step", n_step, num_envs),
        ):
            check_room(buffer_frames, name, value, unit)
        self.buffer_frames = buffer_frames
        self.batch_size = batch_size
        self.warmup_frames = warmup_frames
        self.collect_frames = collect_frames
        self.gradient_steps = gradient_steps
        self.dataset = dataset
        self._frames_per_epoch = frames_per_epoch
        self.n_step = n_step
        self.prioritized = prioritized
        self.priority_alpha = priority_alpha
        self.priority_beta = priority_beta
        self.priority_eps = priority_eps
        self.her_goals = her_goals
        self.her_strategy: Strategy = her_strategy
        self.frame_stack = frame_stack
        self.obs_dtype = obs_dtype
        self.storage = storage
        self.storage_dir = storage_dir
        self.save_replay = save_replay

    def clear(self) -> None:
        super().clear()
        self.hindsight: Hindsight | None = None
        self._sampled: Tensor | None = None
        self.row_errors: Tensor | None = None

    def forget(self) -> None:
        super().forget()
        self._sampled = self.row_errors = None

    # --- the plan -------------------------------------------------------------------------------

    @property
    def frames_per_epoch(self) -> int:
        return self._frames_per_epoch

    @property
    def rounds(self) -> int:
        """Rounds of collecting and updating in one epoch."""
        return self._frames_per_epoch // self.collect_frames

    def check(self, agent: Trainee) -> None:
        if "replay" not in agent.learns_from:
            own = own_module(agent)
            raise ConfigurationError(
                f"{type(agent).__name__} does not learn from replay: its data module is {own}, not "
                f"{type(self).__name__}; give --data {own}"
            )
        if self.prioritized and not agent.tells_priorities:
            raise ConfigurationError(
                f"data.prioritized: {type(agent).__name__} does not say how wrong it was on each "
                "row; set data.prioritized: false"
            )

    def plan(self, epoch: int) -> None:
        done = self.frames
        # Warm-up comes on top of the first epoch.
        self.frames = max(done, min(self.warmup_frames, self.total_frames - 1))
        super().plan(epoch)
        self.frames = done

    @property
    def planned_length(self) -> int:
        begin = min(self.warmup_frames, self.total_frames - 1)
        epochs = math.ceil((self.total_frames - begin) / self.epoch_length)
        return begin + epochs * self.epoch_length

    @property
    def progress(self) -> float:
        """Share of the frame budget, in whole epochs, that is used up."""
        return min(self.frames / self.planned_length, 1.0)

    def count(self, frames: int) -> None:
        trainer = self._trainer
        if self.collector is not None and self.collector.next_step_reset:
            frames = self._sum_over_ranks(frames)
        else:
            frames *= trainer.world_size
        self.agent.tick(self.frames + frames, self.progress, self.weak_metrics)
        self.frames += frames

    def metrics(self) -> dict[str, float]:
        size = 0 if self.buffer is None else len(self.buffer)
        return {**super().metrics(), "replay/frames": float(size)}

    # --- loaders --------------------------------------------------------------------------------

    def make_collector(self, env: Any, seed: int) -> ReplayCollector:
        return ReplayCollector(env, seed, self.success_threshold)

    def train_dataloader(self) -> UpdateLoader:
        self.start()
        return UpdateLoader(self, self.runs)

    def make_buffer(self) -> ReplayBuffer:
        """An empty buffer for this rank."""
        return ReplayBuffer(
            self.buffer_frames,
            self.num_envs,
            stack=self.frame_stack,
            dtype=OBS_DTYPES[self.obs_dtype],
            repeats=self.agent.repeats(),
            prioritized=self.prioritized,
            episodes=self.her_goals > 0,
            action_dtype=action_dtype(self.spec.action_space),
            folder=storage_folder(self.storage, self.storage_dir),
        )

    def start(self) -> None:
        world = self._trainer.world_size
        check_room(self.buffer_frames, "warmup_frames", -(-self.warmup_frames // world), 1, world)
        if self.her_goals and self.hindsight is None:
            spare: Any = self._spare
            self.hindsight = Hindsight(spare, self.her_goals, self.her_strategy)
        super().start()
        if self.buffer is None:
            self.buffer = self.make_buffer()
            self._lost = self._why_lost() if self.frames > 0 else None
            assert self.collector is not None
            self._preload()
            if self.collector.x is not None:  # a resumed run, whose replay contents are gone
                self.buffer.begin(self.collector.x, mask=self.collector.mask)

    def begin_epoch(self) -> None:
        self.begin_clock()
        self.warm_up()

    def batches(self) -> Iterator[TensorDict]:
        for left in reversed(range(self.rounds)):
            self.feed_back()
            self.collect()
            if not left:
                self.end_epoch()
            for _ in range(self.gradient_steps):
                yield self.next_batch()

    def collect(self) -> None:
        """Collect the frames that pay for one round of updates."""
        self._play(self.collect_frames // self.num_envs, False)

    def end_epoch(self) -> None:
        """All frames of an epoch are in: agree with the other ranks, plan the next one."""
        assert self.buffer is not None
        self.agent.synchronize()
        if self.collector is not None and self.collector.stage is not None:
            self.collector.stage.synchronize()
        self.buffer.arena.release()
        self.plan(self.epoch + 1)

    def next_batch(self) -> TensorDict:
        """Sample a batch, on the agent's device."""
        assert self.buffer is not None
        self.feed_back()
        agent, buffer = self.agent, self.buffer
        weight = None
        if self.prioritized:
            beta = anneal(self.priority_beta, 1.0, 1.0, self.progress)
            index, weight = buffer.draw_by_priority(self.batch_size, beta)
            self._sampled = index
        else:
            index = buffer.draw(self.batch_size)
        batch = buffer.read(index, agent.gamma, self.n_step)
        if self.hindsight is not None:
            batch = self.hindsight(buffer, index, batch, agent.gamma)
        if weight is not None:
            batch["weight"] = weight
        moved: Any = to_device(batch, agent.device)
        return TensorDict(moved, batch_size=[index.shape[0]])

    def feed_back(self) -> None:
        """Give the last batch's rows the priorities that the agent found."""
        index, self._sampled = self._sampled, None
        if index is None or self.buffer is None:
            return
        errors, self.row_errors = self.row_errors, None
        if errors is None:
            raise ConfigurationError(
                f"data.prioritized: {type(self.agent).__name__} says that it tells_priorities, but "
                "its loss returns no row_errors"
            )
        self.buffer.set_priorities(index, (errors.abs() + self.priority_eps) ** self.priority_alpha)
