"""Playing whole episodes and reporting their results, one batch an episode."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.protocols import Actor
from rl_lightning.core.tree import first_row
from rl_lightning.data.collect.patience import Patience
from rl_lightning.data.collect.stepper import Stepper
from rl_lightning.data.recordings.episode import EpisodeRecorder
from rl_lightning.envs.failures import name


class EpisodeLoader:
    """A loader of exactly `episodes` finished episodes, split evenly over the environments.

    Every environment plays its share and no more: taking the first episodes to finish would favour
    short ones. For the same reason nobody may stop asking before the last one: whoever wants fewer
    says so beforehand. Where an episode does not end, a warning says so.

    Each iteration resets the environments with the same seeds, so that validations play the same
    episodes; with `explore` the random numbers are the same too, and training's are left untouched.

    Args:
        env: Vector env.
        acting: Context in which the agent acts; yields it.
        episodes: Number of episodes.
        seed: Seed of environment 0; environment i gets `seed + i`.
        explore: Act as while training; otherwise greedily.
        success_threshold: See `Collector`.
        transcript_steps: Steps of the first episode to write down in full.
        recorder: Is shown every step of `env`, and writes the episodes that are counted.
        length: What `len` says, if not `episodes`: a trainer that is to take a share of them (a
            float as `limit_val_batches`) multiplies `len` by it, to arrive at `episodes`.
        unread: Gives the entries of observations that need not be finite, see `Encoder.unread`.

    Raises:
        ConfigurationError: While iterating, if the environment cannot be reset.
        RunError: While iterating, if it raises in a step, or if an observation or a reward is not
            finite.
    """

    def __init__(
        self,
        env: VectorEnv,
        acting: Callable[[], AbstractContextManager[Actor]],
        episodes: int,
        seed: int,
        explore: bool = False,
        success_threshold: float | None = None,
        transcript_steps: int = 0,
        recorder: EpisodeRecorder | None = None,
        length: int | None = None,
        unread: Callable[[], set[tuple[Any, ...]]] = set,
    ) -> None:
        self.env = env
        self.unread = unread
        self.acting = acting
        self.episodes = episodes
        self.seed = seed
        self.explore = explore
        self.success_threshold = success_threshold
        self.transcript_steps = transcript_steps
        self.recorder = recorder
        self.length = episodes if length is None else length
        self.seconds = 0.0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not around the loop: whoever asks for the episodes may leave it suspended while training.
        began = time.perf_counter()
        for episode in self._play():
            self.seconds += time.perf_counter() - began
            yield episode
            began = time.perf_counter()
        self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    @contextmanager
    def _own_random_numbers(self, device: torch.device, step: int) -> Iterator[None]:
        """The random numbers of one step; the global ones are as they were afterwards.

        Around each step and not around the loop: a generator that is suspended inside would leave
        the ones of evaluation to whoever asked for its episodes.
        """
        if not self.explore:
            yield
            return
        devices = [] if device.type == "cpu" else [device]
        kind = "cuda" if device.type == "cpu" else device.type
        with torch.random.fork_rng(devices, device_type=kind):
            # A stride that no other rank's or stage's seed is apart by.
            torch.manual_seed(self.seed + 1_000_003 * step)
            yield

    def _play(self) -> Iterator[dict[str, Any]]:
        count = self.env.num_envs
        share, rest = divmod(self.episodes, count)
        left = np.array([share + (b < rest) for b in range(count)])
        transcript: list[dict[str, Any]] | None = [] if self.transcript_steps else None
        stepper = Stepper(
            self.env,
            self.seed,
            self.success_threshold,
            observed=False,
            during="this evaluation",
            keeps_action=self.recorder is not None or transcript is not None,
        )
        stepper.check.ignore(self.unread())
        patience = Patience(name(self.env))
        with self.acting() as agent:
            stepper.restart(agent)
        if self.recorder is not None:
            self.recorder.reset(stepper.obs, stepper.info)
        for step in itertools.count():
            if not left.any():
                return
            writing = transcript is not None and len(transcript) < self.transcript_steps
            with self.acting() as agent, self._own_random_numbers(agent.device, step):
                stepper.look(agent)
                now: Any = stepper.x, stepper.state, stepper.mask
                out = agent.act(now[0], explore=self.explore, state=now[1], mask=now[2])
                record = self._thoughts(agent, stepper.obs, now) if writing else {}
            took = stepper.advance(out["action"])
            stepper.carry(out.get("next_state"), took)
            patience.wait(left)
            if self.recorder is not None:
                self.recorder.step(
                    stepper.action,
                    stepper.obs,
                    took.reward,
                    took.terminated,
                    took.truncated,
                    stepper.info,
                    took.reset,
                )
            if writing and transcript is not None:
                action = np.asarray(stepper.action[0]).tolist()
                transcript.append({**record, "action": action, "reward": float(took.reward[0])})
            for ended in took.finished:
                b = ended.env
                if not left[b]:
                    continue
                left[b] -= 1
                patience.ended()
                if self.recorder is not None:
                    self.recorder.write(b)
                episode: dict[str, Any] = {
                    "return": ended.total,
                    "length": ended.length,
                    "success": ended.success,
                    "env": b,
                }
                if b == 0 and transcript is not None:
                    episode["transcript"], transcript = transcript, None
                yield episode

    def _thoughts(self, agent: Actor, obs: Any, now: Any) -> dict[str, Any]:
        """What environment 0 shows, and what the policy thinks of it, for a transcript."""
        head: list[Any] = [None if part is None else first_row(part) for part in now]
        space = self.env.single_observation_space
        return {"observation": readable(obs, space), **_plain(agent.inspect(*head))}


def readable(obs: Any, space: gym.Space) -> str:
    """Observation of environment 0 for a human reader.

    Args:
        obs: Of all environments, as a vector env returns them.
        space: Of one environment's.
    """
    s = gym.spaces
    if isinstance(space, s.Dict):
        return "; ".join(f"{key}: {readable(obs[key], entry)}" for key, entry in space.items())
    if isinstance(space, s.Tuple):
        return "; ".join(readable(part, entry) for part, entry in zip(obs, space, strict=True))
    first = obs[0]
    if isinstance(first, str):
        return first
    if not isinstance(space, s.Box | s.Discrete | s.MultiDiscrete | s.MultiBinary):
        return shortened(first)
    array = np.asarray(first)
    if array.size > 32:
        return f"{array.dtype} array of shape {array.shape}"
    return np.array2string(array, precision=3, suppress_small=True)


def limited(trainer: Any, stage: str, episodes: int) -> tuple[int, int]:
    """How many of a rank's episodes its trainer will ask for, and what `len` must say for it.

    The loader must know before it plays, since the first episodes to end are the short ones.

    Args:
        trainer: With `limit_{stage}_batches`: k episodes of all ranks, or a share as a float.
        stage: `val`, `test` or `predict`.
        episodes: Of this rank, without a limit.

    Raises:
        ConfigurationError: If k episodes cannot be split evenly over the ranks.
    """
    name = f"limit_{stage}_batches"
    limit = getattr(trainer, name)
    if isinstance(limit, float):  # the trainer multiplies by it, and refuses less than one
        return max(int(episodes * limit), 1), episodes
    world = trainer.world_size
    limit = min(limit, episodes * world)
    if limit % world and not trainer.fast_dev_run:
        raise ConfigurationError(
            f"trainer.{name}: {limit} episodes cannot be split evenly over {world} ranks; choose a "
            f"multiple of {world}"
        )
    share = max(math.ceil(limit / world), 1)
    return share, share


def _plain(thoughts: dict[str, Tensor]) -> dict[str, Any]:
    return {key: value[0].float().cpu().tolist() for key, value in thoughts.items()}
