"""What a data module goes on from: its state in a checkpoint, of all ranks."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from gymnasium.vector import VectorEnv

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.ranks import gather
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.data.resume.random_numbers import rng_state, set_rng_state
from rl_lightning.data.resume.remembered import (
    RememberedFiles,
    inside,
    left_out,
    put_back,
    read,
    take_out,
)
from rl_lightning.data.resume.sidecar import Spool, find_sidecar, saves_beside, spool_place
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
    _spools: dict[str, Spool]
    _remembered: RememberedFiles
    _resume_from: Path | None
    _texts_name: str | None

    def _leave(self) -> None:
        """End collecting."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Frames, and per rank all that collecting goes on from: environments, RNGs, statistics."""
        ranks, texts = self._saved_ranks()
        return {"frames": self.frames, "ranks": ranks, "texts": texts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._leave()  # a search for a learning rate restores in the middle of a run
        self._began = None
        self.frames = state_dict["frames"]
        self._restored = state_dict["ranks"]
        name, path = state_dict.get("texts"), self.trainer and self.trainer.ckpt_path
        self._texts_name = name if isinstance(name, str) else None  # a list: never moved in place
        self._resume_from = None if path is None else Path(path)
        if self.trainer is not None and self.trainer.state.fn == "fit" and self._restored:
            # Now: a search for a learning rate removes the checkpoint that it goes back to.
            self._recall(min(self.trainer.global_rank, len(self._restored) - 1))

    def _saved_ranks(self) -> tuple[list[Any], list[str] | None]:
        """The states of all ranks, and the folders where what they remember is spooled."""
        if not self._running and (self.trainer is None or not self._restored):
            return self._restored or [None], None
        rank, world = self._trainer.global_rank, self._trainer.world_size
        if not self._running and len(self._restored or []) != world:
            self._recall(0)
            return [inside(state) for state in self._restored or []], None
        own = self.rank_state() if self._running else self._recall(rank)
        state, found = take_out(own)
        if not saves_beside(self._trainer) or not any(gather(len(found))):
            return gather(inside(own)), None
        files = self._remembered
        folder = self.spooled("texts", object(), lambda folder: files.save(folder, found))
        return gather(state), gather(str(folder))

    def _recall(self, rank: int) -> Any:
        """A rank's state that a checkpoint held, with what stood beside it."""
        assert self._restored is not None
        state, name = self._restored[rank], self._texts_name
        without, lacks = left_out(state)
        if not lacks:
            return state
        try:
            if name is None or self._resume_from is None:
                raise ConfigurationError("the checkpoint does not say where it is")
            state = put_back(state, read(find_sidecar(self._resume_from, name, rank, "texts")))
        except Exception as error:  # of what is gone, damaged or a stranger's
            told = error if isinstance(error, ConfigurationError) else f"damaged ({error})"
            warnings.warn(
                f"what was remembered of texts cannot be read: {told}. It is computed anew, and "
                "may differ in the last digits from what the run has seen: it goes on, but no "
                "longer bit for bit as without the interruption",
                stacklevel=2,
            )
            state = without
        self._restored[rank] = state
        return state

    def spooled(self, kind: str, version: Any, save: Callable[[Path], dict[str, Any]]) -> Path:
        """Where this rank's contents of a version lie, written now unless they are there.

        Args:
            kind: One of `sidecar.KINDS`.
            version: See `Spool.write`, as for
            save: this.
        """
        trainer, spool = self._trainer, self._spools.get(kind)
        if spool is None or not spool.folder.is_dir():  # gone with a save after `fit`
            spool = self._spools[kind] = Spool(spool_place(trainer), trainer.global_rank, kind)
        try:
            return spool.write(version, save)
        except BaseException:
            if not self._running:
                self.close_spools()
            raise

    def close_spools(self) -> None:
        """Delete what was written for checkpoints that are to come."""
        for spool in self._spools.values():
            spool.close()
        self._spools = {}

    def _all_ranks(self) -> list[Any]:
        if not self._running:  # before a run, or after it: what the next one goes on from
            return self._restored or [None]
        return gather(self.rank_state())

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
        stage = self.collector.stage
        return {
            "num_envs": self.num_envs,
            "rng": rng_state(self._trainer.strategy.root_device),
            "envs": envs,
            "collector": self.collector.state_dict(),
            "encoder": self.agent.collection_state(),
            **({} if stage is None else {"rewards": stage.learned_state()}),
        }

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore what `rank_state` returned."""
        assert self.collector is not None
        assert self._train_env is not None
        agent = self.agent
        agent.load_collection_state(state["encoder"])
        self._load_rewards(state)
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
        self._load_rewards(state)

    def _load_rewards(self, state: dict[str, Any]) -> None:
        if self.collector is not None and self.collector.stage is not None:
            self.collector.stage.load_learned_state(state.get("rewards"))

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
        restored = self._restored
        if not restored or restored[0] is None:
            self._restored = None
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
            self.load_shared_state(self._recall(0))
        else:
            self.load_rank_state(self._recall(rank))
        self._restored = None
