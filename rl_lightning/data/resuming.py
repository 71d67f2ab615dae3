"""What a data module goes on from: its state in a checkpoint, of all ranks."""

import warnings
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from gymnasium.vector import VectorEnv

from rl_lightning.core.protocols import Trainee
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.data.resume.random_numbers import rng_state, set_rng_state
from rl_lightning.envs.state import StateError


class ResumingModule(L.LightningDataModule):
    """Frames, and per rank environments, random numbers and statistics."""

    agent: Trainee
    env: str
    num_envs: int
    frames: int
    seed: int | None
    collector: Stepper | None
    snapshots: Snapshots
    _trainer: Any
    _train_env: VectorEnv | None
    _running: bool
    _restored: list[Any] | None
    _began: tuple[float, int] | None

    def _leave(self) -> None:
        """End collecting."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Frames, and per rank all that collecting goes on from: environments, RNGs, statistics."""
        return {"frames": self.frames, "ranks": self._all_ranks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._leave()  # a search for a learning rate restores in the middle of a run
        self._began = None
        self.frames = state_dict["frames"]
        self._restored = state_dict["ranks"]

    def _all_ranks(self) -> list[Any]:
        if not self._running:  # before a run, or after it: what the next one goes on from
            return self._restored or [None]
        return self.gather(self.rank_state())

    def rank_state(self) -> dict[str, Any]:
        """What this rank goes on from, as plain data and tensors."""
        assert self.collector is not None
        assert self._train_env is not None
        envs = None
        if self.snapshots.supported:
            try:
                envs = self.snapshots.take(self._train_env)
            except StateError as error:  # a spare one could be copied
                envs, reason = None, f"the state of {self.env!r} cannot be saved now: {error}"
                warnings.warn(reason, stacklevel=2)
        return {
            "num_envs": self.num_envs,
            "rng": rng_state(self._trainer.strategy.root_device),
            "envs": envs,
            "collector": self.collector.state_dict(),
            "encoder": self.agent.collection_state(),
        }

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore what `rank_state` returned."""
        assert self.collector is not None
        assert self._train_env is not None
        agent = self.agent
        agent.load_collection_state(state["encoder"])
        reason = self._put_back(state["envs"])
        if reason is None:
            self.collector.load_state_dict(state["collector"], agent.device)
        else:
            warnings.warn(
                f"the state of {self.env!r} cannot be restored ({reason}): training goes on with "
                "fresh episodes",
                stacklevel=2,
            )
        set_rng_state(state["rng"], self._trainer.strategy.root_device)

    def _put_back(self, states: list[Any] | None) -> str | None:
        """Restore the environments' own state; why not, if that is impossible."""
        assert self._train_env is not None
        if not self.snapshots.supported:
            return self.snapshots.reason
        if states is None:
            return "it was not saved"
        try:
            self.snapshots.put(self._train_env, states)
        except StateError as error:
            return str(error)
        return None

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Restore of `rank_state` what any number of environments and ranks can go on from."""
        self.agent.load_collection_state(state["encoder"])

    def gather(self, own: Any) -> list[Any]:
        """What every rank gives, in the order of ranks."""
        ranks: list[Any] = [own]
        if self._trainer.world_size > 1:
            ranks = [None] * self._trainer.world_size
            dist.all_gather_object(ranks, own)
        return ranks

    def _sum_over_ranks(self, frames: int) -> int:
        trainer = self._trainer
        if trainer.world_size > 1:
            total = torch.tensor(frames, device=trainer.strategy.root_device)
            dist.all_reduce(total)
            frames = int(total)
        return frames

    def _seed(self) -> int:
        return self.seed if self.seed is not None else torch.initial_seed() % 2**31

    def _go_on(self) -> None:
        restored, self._restored = self._restored, None
        if not restored or restored[0] is None:
            if self.frames:
                warnings.warn(
                    "the checkpoint does not say where collecting stood: training goes on with "
                    "fresh episodes, random numbers and statistics",
                    stacklevel=2,
                )
            return
        rank, world = self._trainer.global_rank, self._trainer.world_size
        if len(restored) != world or restored[rank]["num_envs"] != self.num_envs:
            warnings.warn(
                f"the checkpoint was written by {len(restored)} ranks of "
                f"{restored[0]['num_envs']} environments, this run has {world} of {self.num_envs}: "
                "training goes on with fresh episodes and random numbers",
                stacklevel=2,
            )
            self.load_shared_state(restored[0])
            return
        self.load_rank_state(restored[rank])
