"""The offline data module: recorded episodes in a buffer, and samples of it."""

from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDict

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.tree import to_device
from rl_lightning.data.own_module import own_module
from rl_lightning.data.recorded_module import RecordedDataModule
from rl_lightning.data.recordings.dataset import Dataset, read_recorded, spell
from rl_lightning.data.recordings.rows import READ_ROWS, batched, blocks
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.storage import (
    OBS_DTYPES,
    action_dtype,
    action_example,
    check_storage,
    storage_folder,
)
from rl_lightning.data.resume.random_numbers import rng_state, set_rng_state


class OfflineDataModule(RecordedDataModule):
    """Batches of transitions, drawn uniformly from recorded episodes; nothing is collected.

    The clock counts updates: `total_updates` is the budget, `agent.frames` and the x axis of all
    curves are updates. The environment serves evaluation only. A checkpoint does not hold the
    episodes: a resumed run reads the file again, and says so if it is another one.

    Args:
        dataset: HDF5 file of episodes (`rl-lightning predict --data.record FILE` writes one), or
            the folder of a Minari data set.
        env: Gymnasium id of the evaluation environment, whose spaces are the recorded ones;
            `module:Id-v0` imports the module first.
        batch_size: Transitions of one batch, and so of one update, on each rank.
        updates_per_epoch: Updates that make one epoch of the trainer, and so the grid on which
            validation and checkpoints happen. Training ends with the epoch in which the budget is
            used up.
        total_updates: Budget.
        n_step: Steps of a return before it goes on with the value of what followed.
        obs_dtype: How floating-point observations and features are stored: `float32` or `float16`.
        storage: Keep the episodes in `memory`, or on `disk` behind a memory map.
        storage_dir: Folder for `disk`; None: the system's for temporary files.
        **shared: Arguments of `RLDataModule`.

    Raises:
        ConfigurationError: If a number is wrong, or, when training starts, if the file cannot be
            read or holds episodes of other spaces.
    """

    def __init__(
        self,
        dataset: str,
        env: str,
        batch_size: int = 256,
        updates_per_epoch: int = 1_000,
        total_updates: int = 50_000,
        n_step: int = 1,
        obs_dtype: Literal["float32", "float16"] = "float32",
        storage: Literal["memory", "disk"] = "memory",
        storage_dir: str | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(env, num_envs=1, total_frames=total_updates, seed=None, **shared)
        if self.rewards or self.env_reward_weight != 1.0:
            raise ConfigurationError(
                "data.rewards, data.env_reward_weight: they judge steps while these are taken, and "
                "recorded ones are read as they are; leave them out, or record episodes of an "
                "environment that pays what you want (data.wrappers)"
            )
        check_storage(obs_dtype, storage, storage_dir)
        self.dataset = dataset
        self.batch_size = whole("data.batch_size", batch_size, 1)
        self.updates_per_epoch = whole("data.updates_per_epoch", updates_per_epoch, 1)
        self.n_step = whole("data.n_step", n_step, 1)
        self.obs_dtype = obs_dtype
        self.storage = storage
        self.storage_dir = storage_dir

    def clear(self) -> None:
        super().clear()
        self.buffer: ReplayBuffer | None = None
        self.__dict__.pop("recorded", None)

    # --- reading --------------------------------------------------------------------------------

    def check(self, agent: Trainee) -> None:
        if not {"replay", "recordings"} & set(agent.learns_from):
            raise ConfigurationError(
                f"{type(agent).__name__} does not learn from recorded data; use BC, IQL or another "
                f"agent that learns from replay, or its own data module: --data {own_module(agent)}"
            )

    @cached_property
    def recorded(self) -> Dataset:
        """The episodes on disk."""
        return read_recorded(self.dataset, self.spec)

    def open_source(self, seed: int) -> None:
        self.__dict__.pop("recorded", None)  # of an earlier run; the file may be another one now
        _ = self.recorded.fingerprint

    def start(self) -> None:
        super().start()
        if self.buffer is None:
            self.buffer = self.read()

    def read(self) -> ReplayBuffer:
        """All recorded episodes, one after the other, as this agent's encoder preprocesses them.

        An agent that begins sees them all for its running statistics; one that goes on has them.
        """
        recorded, space = self.recorded, self.spec.action_space
        recorded.check_masks(self.agent.mask_dim)
        rows = recorded.total_steps + recorded.total_episodes
        buffer = ReplayBuffer(
            rows,
            1,
            dtype=OBS_DTYPES[self.obs_dtype],
            repeats=self.agent.repeats(),
            action_dtype=action_dtype(space),
            folder=storage_folder(self.storage, self.storage_dir),
        )
        kind = action_example(space, 1).dtype
        with self.reading(rows) as (agent, bar):
            begins = agent.frames == 0
            for obs, action, *rest, masks in blocks(recorded.episodes(), READ_ROWS):
                obs = batched(obs)
                if begins:
                    agent.observe(obs)
                mask = None if masks is None else torch.from_numpy(masks)
                action = torch.as_tensor(action, dtype=kind)
                buffer.extend(agent.preprocess(obs), action, *rest, mask=mask)
                bar.update(len(rest[0]))
        buffer.arena.release()
        return buffer

    # --- loaders --------------------------------------------------------------------------------

    def next_batch(self) -> TensorDict:
        """Sample a batch, on the agent's device."""
        assert self.buffer is not None
        agent = self.agent
        index = self.buffer.draw(self.batch_size)
        batch: Any = to_device(self.buffer.read(index, agent.gamma, self.n_step), agent.device)
        return TensorDict(batch, batch_size=[self.batch_size])

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self.buffer = None

    # --- exact resuming -------------------------------------------------------------------------

    def rank_state(self) -> dict[str, Any]:
        return {
            "num_envs": self.num_envs,
            "rng": rng_state(self._trainer.strategy.root_device),
            "encoder": self.agent.collection_state(),
            "dataset": self.recorded.fingerprint,
        }

    def load_rank_state(self, state: dict[str, Any]) -> None:
        self.load_shared_state(state)
        set_rng_state(state["rng"], self._trainer.strategy.root_device)

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        now = self.recorded.fingerprint
        if state["dataset"] != now:
            rank_zero_warn(
                f"data.dataset: {self.dataset} holds {spell(now)}, but training began with "
                f"{spell(state['dataset'])}: it goes on with what is there now"
            )
