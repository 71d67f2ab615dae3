"""Replay contents: begun with recordings, saved beside checkpoints, gone on from."""

import math
from itertools import islice
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.checkpoints import read_archive
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.ranks import gather
from rl_lightning.data.base_module import RLDataModule
from rl_lightning.data.recordings.dataset import Dataset, read_recorded, spell
from rl_lightning.data.recordings.into_buffer import preload
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.storage import action_example
from rl_lightning.data.resume.sidecar import find_sidecar
from rl_lightning.data.tuners import check_restart


class ReplayContents(RLDataModule):
    """A data module with a replay buffer that is saved beside checkpoints."""

    dataset: str | None
    buffer_frames: int
    warmup_frames: int
    batch_size: int
    save_replay: bool
    buffer: ReplayBuffer | None

    def make_buffer(self) -> ReplayBuffer:
        """An empty buffer for this rank."""
        raise NotImplementedError

    def feed_back(self) -> None:
        """Give the last batch's rows the priorities that the agent found."""
        raise NotImplementedError

    def clear(self) -> None:
        super().clear()
        self.buffer = None
        self._lost: str | None = None  # why a run that goes on does so without its contents
        self._began_with: dict[str, Any] | None = None
        self._replay_name: str | None = None
        self._saved_envs: str | None = None  # whose contents these are, if they are other ones

    def _open(self) -> Dataset | None:
        """The recorded episodes, if there are to be any."""
        if self.dataset is None:
            return None
        recorded = read_recorded(self.dataset, self.spec)
        recorded.check_masks(self.agent.mask_dim)
        return recorded

    def _compare(self, known: dict[str, Any] | None) -> None:
        """Say so if the contents that a run goes on from began with other recorded episodes."""
        recorded = self._open()
        now = None if recorded is None else recorded.fingerprint
        self._began_with = known
        if now is not None and now != known:
            before = "no recorded episodes" if known is None else spell(known)
            rank_zero_warn(
                f"data.dataset: {self.dataset} holds {spell(now)}, but the saved replay contents "
                f"began with {before}: they go on as they are, without it"
            )

    def _preload(self) -> None:
        """Let the buffer begin with recorded episodes."""
        trainer, recorded, buffer = self._trainer, self._open(), self.buffer
        if recorded is None:
            return
        assert buffer is not None
        self._began_with = recorded.fingerprint
        share = islice(recorded.episodes(), trainer.global_rank, None, trainer.world_size)
        kind = action_example(self.spec.action_space, 1).dtype
        rows = (recorded.total_steps + recorded.total_episodes) // trainer.world_size
        with self.reading(rows) as (agent, bar):
            written = preload(buffer, share, agent, kind, agent.frames == 0, bar)
        if lost := self._sum_over_ranks(written - len(buffer)):
            rank_zero_warn(
                f"data.buffer_frames: {lost} of the {recorded.total_steps} transitions of "
                f"{self.dataset} find no room; make it larger, also for what will be collected"
            )

    def _why_lost(self) -> str:
        if self._replay_name is None:
            return "there are no replay contents to go on from"
        if not self.save_replay:
            return "data.save_replay: false leaves the saved replay contents where they are"
        if self._saved_envs is None:
            return "the saved replay contents cannot be gone on from"
        return (
            f"the saved replay contents are those of {self._saved_envs} environments, not of "
            f"data.num_envs: {self.num_envs} on {self._trainer.world_size} ranks, and stay where "
            "they are"
        )

    def warm_up(self) -> None:
        """Play the frames that come before the first update."""
        assert self.buffer is not None
        world = self._trainer.world_size
        self.agent.begin_rollout()
        if self.frames < self.warmup_frames:
            while self.frames < self.warmup_frames:  # steps that only reset are no frames
                missing = self.warmup_frames - self.frames
                self._play(math.ceil(missing / (self.num_envs * world)), True)
        elif self._lost is not None:
            # Resumed without contents: the policy, not chance, fills the buffer anew.
            rank_zero_warn(
                f"{self._lost}: the policy plays {self.refill} frames before learning goes on"
            )
            self._play(math.ceil(self.refill / (self.num_envs * world)), False)
        else:
            return
        self._lost = None
        self.agent.synchronize()
        self.agent.begin_rollout()  # a tuned model's features are standardised from here on

    def _play(self, steps: int, uniformly: bool) -> None:
        assert self.buffer is not None
        collector: Any = self.collector
        with self.acting() as agent:
            frames = collector.collect(agent, self.buffer, steps, uniformly)
        self.count(frames)

    @property
    def refill(self) -> int:
        """Frames to fill an empty buffer with when a run is resumed."""
        return max(self.warmup_frames, self.batch_size)

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        self.buffer, self._replay_name = None, None  # perhaps in the middle of a row

    def forget(self) -> None:
        super().forget()
        self.buffer, self._began_with, self._replay_name = None, None, None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "replay": self._spooled()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        name = state_dict.get("replay")
        self._replay_name = name if isinstance(name, str) else None  # a list: never moved in place
        self._saved_envs = None
        if self._replay_name is not None:
            check_restart(self._trainer)
        self.buffer = None

    def rank_state(self) -> dict[str, Any]:
        self.feed_back()
        return {**super().rank_state(), "dataset": self._began_with}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        if self.buffer is not None or not self.save_replay:
            return  # a second `fit`: it is still here
        if self._replay_name is None or self._resume_from is None:
            return
        folder = find_sidecar(self._resume_from, self._replay_name, self._trainer.global_rank)
        saved = read_archive(folder / "state.pt")
        assert self.collector is not None
        fresh = self.collector.x is None
        if fresh:  # environments that cannot be copied, or that had not begun
            with self.acting() as agent:
                self.collector.reset(agent)
        assert self.collector.x is not None
        self.buffer = self.make_buffer()
        example = action_example(self.spec.action_space, self.num_envs)
        try:
            self.buffer.load(folder, saved, self.collector.x, example)
        except ConfigurationError:
            raise
        except Exception as error:  # what was changed by a stranger or a disk fails in many ways
            raise ConfigurationError(
                f"ckpt_path: the replay contents in {folder} are damaged ({error}); set "
                "data.save_replay: false to go on without them"
            ) from error
        self._compare(state.get("dataset"))
        if fresh:
            self.buffer.begin(self.collector.x, mask=self.collector.mask)

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        self._saved_envs = str(state["num_envs"])

    def _spooled(self) -> list[str] | None:
        if self.buffer is None or not self.save_replay or not len(self.buffer):
            return None
        version = (self.frames, self._trainer.global_step)
        return gather(str(self.spooled("replay", version, self.buffer.save)))
