"""The on-policy data module: collect, prepare, and hand out minibatches."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.core.protocols import Trainee
from rl_lightning.data.base_module import RLDataModule
from rl_lightning.data.collect.collector import Collector
from rl_lightning.data.collect.reward_norm import RewardNorm
from rl_lightning.data.collect.rollout_storage import flatten_sequences, flatten_steps
from rl_lightning.data.update_loader import UpdateRun


class RolloutDataModule(RLDataModule):
    """Rollouts of T steps from B environments, in shuffled minibatches, several passes each.

    Args:
        env: Gymnasium id; `module:Id-v0` imports the module first.
        num_envs: Training environments of each rank, B.
        rollout_steps: Steps of one rollout in each environment, T.
        minibatch_size: Frames of one minibatch, a divisor of `num_envs · rollout_steps`; None: the
            whole rollout.
        passes: Passes over each rollout ("epochs" in PPO's paper).
        rollouts_per_epoch: Rollouts that make one epoch of the trainer, and so the grid on which
            validation and checkpoints happen. Training ends with the epoch in which the budget is
            used up.
        normalize_reward: Divide rewards by the running standard deviation of the discounted return.
        **shared: Arguments of `RLDataModule`.

    Raises:
        ConfigurationError: If a number is wrong or does not fit the others.
    """

    minibatch = "data.minibatch_size"

    def __init__(
        self,
        env: str,
        num_envs: int = 8,
        rollout_steps: int = 128,
        minibatch_size: int | None = None,
        passes: int = 1,
        rollouts_per_epoch: int = 1,
        *,
        normalize_reward: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(env, num_envs, **shared)
        self.rollout_steps = whole("data.rollout_steps", rollout_steps, 1)
        size = self.num_envs * self.rollout_steps
        part = size if minibatch_size is None else whole("data.minibatch_size", minibatch_size, 1)
        if size % part:
            raise ConfigurationError(
                f"data.minibatch_size: {part} does not divide the rollout of "
                f"num_envs · rollout_steps = {self.num_envs} · {self.rollout_steps} = {size} "
                f"frames; choose e.g. {_nearest_divisor(size, part)}"
            )
        self.minibatch_size = part
        self.passes = whole("data.passes", passes, 1)
        self.rollouts_per_epoch = whole("data.rollouts_per_epoch", rollouts_per_epoch, 1)
        self.normalize_reward = normalize_reward

    def clear(self) -> None:
        super().clear()
        self._reward_norm: RewardNorm | None = None

    def make_collector(self, env: VectorEnv, seed: int) -> Collector:
        return Collector(env, self.rollout_steps, seed, self.success_threshold)

    @property
    def frames_per_rollout(self) -> int:
        """Frames of one rollout on one rank, T · B."""
        return self.num_envs * self.rollout_steps

    @property
    def frames_per_epoch(self) -> int:
        return self.frames_per_rollout * self.epoch_rollouts

    @property
    def epoch_rollouts(self) -> int:
        """Rollouts of one epoch: a budget smaller than an epoch ends with its last rollout."""
        whole = self.frames_per_rollout * self._trainer.world_size
        return min(self.rollouts_per_epoch, math.ceil(self.total_frames / whole))

    @property
    def minibatches(self) -> int:
        """Minibatches of one pass."""
        return self.frames_per_rollout // self.minibatch_size

    def check(self, agent: Trainee) -> None:
        name = type(agent).__name__
        if "rollouts" not in agent.learns_from:
            own = "ReplayDataModule" if "replay" in agent.learns_from else "OfflineDataModule"
            raise ConfigurationError(
                f"{name} does not learn from rollouts: its data module is {own}, not "
                f"{type(self).__name__}; give --data {own}"
            )
        if not agent.reuses_rollouts and self.passes * self.minibatches > 1:
            raise ConfigurationError(
                f"{name} is right for one update per rollout only; set data.passes: 1 and leave "
                f"out data.minibatch_size (they are {self.passes} and {self.minibatch_size}), or "
                "use PPO"
            )
        length = agent.sequence_length
        if length is not None and not self._recurrent(agent):
            raise ConfigurationError(
                f"model.sequence_length: {length} means nothing without memory; leave it out, or "
                "set model.network's recurrent: lstm or gru"
            )
        if self._recurrent(agent):
            length = length or self.rollout_steps
            if self.rollout_steps % length:
                raise ConfigurationError(
                    f"model.sequence_length: {length} does not divide data.rollout_steps: "
                    f"{self.rollout_steps}"
                )
            if self.minibatch_size % length:
                raise ConfigurationError(
                    f"data.minibatch_size: {self.minibatch_size} does not hold whole sequences of "
                    f"{length} steps; choose a multiple of {length}, or set model.sequence_length"
                )

    def start(self) -> None:
        super().start()
        if self.normalize_reward and self._reward_norm is None:
            self._reward_norm = RewardNorm(self.num_envs, self.agent.gamma)

    def train_dataloader(self) -> "RolloutLoader":
        self.start()
        return RolloutLoader(self)

    def next_batch(self) -> tuple[TensorDict, int]:
        """Collect one rollout and prepare it.

        Returns:
            The batch and the dimension along which minibatches are drawn: steps `[T·B]` along 0, or
            sequences `[L, n]` along 1.
        """
        self.agent.check_loss()  # of the last rollout's last update
        self._mode = None  # a callback may have changed what the agent consists of
        with self.acting() as agent:
            agent.begin_rollout()
            assert isinstance(self.collector, Collector)
            try:
                rollout = self.collector.collect(agent)
            except Exception as error:
                agent.explain(error)
                raise
            agent.synchronize()
            if self.collector.stage is not None:
                self.collector.stage.synchronize()
            steps = rollout.steps
            valid = steps.get("valid", None)
            if self._reward_norm is not None:
                done = steps["terminated"] | steps["truncated"]
                steps["reward"] = self._reward_norm(steps["reward"], done, valid)
            batch = agent.prepare(rollout)
        self.count(self.frames_per_rollout if valid is None else int(valid.sum()))
        if self._recurrent(agent):
            return flatten_sequences(batch, agent.sequence_length or self.rollout_steps), 1
        return flatten_steps(batch), 0

    def rank_state(self) -> dict[str, Any]:
        norm = self._reward_norm
        return {**super().rank_state(), "reward_norm": None if norm is None else norm.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        if self.normalize_reward and state["reward_norm"] is not None:
            self._reward_norm = RewardNorm(self.num_envs, self.agent.gamma)
            self._reward_norm.load_state_dict(state["reward_norm"])

    def forget(self) -> None:
        super().forget()
        self._reward_norm = None

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        if self.normalize_reward and state["reward_norm"] is not None:
            self._reward_norm = RewardNorm(self.num_envs, self.agent.gamma)
            fresh = self._reward_norm.state_dict()
            self._reward_norm.load_state_dict({**fresh, "moments": state["reward_norm"]["moments"]})

    @staticmethod
    def _recurrent(agent: Trainee) -> bool:
        return agent.initial_state(1) is not None


class RolloutSource(Protocol):
    """A data module that collects before it hands out minibatches, on and on."""

    agent: Any
    passes: int
    runs: bool

    @property
    def epoch_rollouts(self) -> int:
        """Rollouts of one epoch."""
        ...

    @property
    def minibatches(self) -> int:
        """Minibatches of one pass."""
        ...

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        ...

    def begin_clock(self) -> None:
        """Called before an epoch's first rollout."""

    def next_batch(self) -> tuple[TensorDict, int]:
        """A rollout, and the dimension along which minibatches are drawn."""
        ...

    def plan(self, epoch: int) -> None:
        """Called after an epoch's last rollout, with the number of the next one."""


class RolloutLoader:
    """Yields an epoch's rollouts as runs of minibatches, or where each of them is to be a training
    step of its own the minibatches, collecting each rollout when its turn comes.

    It has an exact length: without one, Lightning fetches a batch ahead, and the next rollout would
    be collected before the last update of the one before it.

    Args:
        data: The data module.
    """

    def __init__(self, data: RolloutSource) -> None:
        self.data = data

    def __len__(self) -> int:
        data = self.data
        return data.epoch_rollouts * (1 if data.runs else data.passes * data.minibatches)

    def __iter__(self) -> Iterator[TensorDict | UpdateRun | None]:
        data = self.data
        data.begin_clock()
        rollouts = data.epoch_rollouts
        for index in range(rollouts):
            batch, dim = data.next_batch()
            if index == rollouts - 1:
                data.plan(data.epoch + 1)
            minibatches = self._minibatches(batch, dim)
            if data.runs:
                yield UpdateRun(minibatches, data.passes * data.minibatches)
                continue
            left = data.passes * data.minibatches
            for minibatch in minibatches:
                yield minibatch
                left -= 1
                if data.agent.stop_passes():
                    break
            for _ in range(left):
                yield None  # Lightning's way to skip a batch and still count it

    def _minibatches(self, batch: TensorDict, dim: int) -> Iterator[TensorDict]:
        data = self.data
        rows = batch.batch_size[dim]
        for _ in range(data.passes):
            if data.minibatches == 1:
                yield batch
                continue
            order = torch.randperm(rows, device=data.agent.device)
            shuffled = batch[order] if dim == 0 else batch[:, order]
            yield from shuffled.split(rows // data.minibatches, dim=dim)


def _nearest_divisor(size: int, wanted: int) -> int:
    small = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
    divisors = sorted({*small, *(size // d for d in small)})
    return min(divisors, key=lambda d: abs(d - wanted))
