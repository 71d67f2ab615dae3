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
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rl_lightning.data.episodes import read_success
from rl_lightning.data.finite import FiniteCheck
from rl_lightning.data.patience import Patience
from rl_lightning.data.recording import EpisodeRecorder
from rl_lightning.envs.failures import failed, name
from rl_lightning.errors import ConfigurationError, shortened
from rl_lightning.spaces import action_writer
from rl_lightning.tree import first_row


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
        acting: Callable[[], AbstractContextManager[Any]],
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
        self.check = FiniteCheck(env, "this evaluation")
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
        env = self.env
        count = env.num_envs
        share, rest = divmod(self.episodes, count)
        left = np.array([share + (b < rest) for b in range(count)])
        next_step_reset = env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        resetting = np.zeros(count, bool)
        returns, lengths = np.zeros(count), np.zeros(count, np.int64)
        transcript: list[dict[str, Any]] | None = [] if self.transcript_steps else None

        self.check.ignore(self.unread())
        to_env, patience = action_writer(env.single_action_space), Patience(name(env))
        try:
            obs, info = env.reset(seed=self.seed)
        except (Exception, SystemExit) as error:
            raise failed(env, error, "reset") from error
        self.check.reset(obs)
        if self.recorder is not None:
            self.recorder.reset(obs, info)
        state: Tensor | None = None
        with self.acting() as agent:
            state = agent.initial_state(count)
        for step in itertools.count():
            if not left.any():
                return
            with self.acting() as agent, self._own_random_numbers(agent.device, step):
                try:
                    x = agent.preprocess(obs)
                except Exception as error:
                    self.check.explain(obs, error)
                    raise
                mask = agent.read_mask(info)
                self.check.mask(mask, resetting if next_step_reset else None)
                out = agent.act(x, explore=self.explore, state=state, mask=mask)
                writing = transcript is not None and len(transcript) < self.transcript_steps
                if writing:
                    head = [None if v is None else first_row(v) for v in (x, state, mask)]
                    thoughts = agent.inspect(*head)
                    record = {
                        "observation": readable(obs, env.single_observation_space),
                        **_plain(thoughts),
                    }
            action = to_env(out["action"])
            given = action if self.recorder is None and not writing else action.copy()
            try:
                obs, reward, terminated, truncated, info = env.step(given)
                reward = self.check.step(obs, reward, resetting if next_step_reset else None)
            except (Exception, SystemExit) as error:
                self.check.action(out["action"])
                raise failed(env, error, "step") from error
            patience.wait(left)
            if self.recorder is not None:
                self.recorder.step(action, obs, reward, terminated, truncated, info, resetting)
            done = terminated | truncated
            returns += reward * ~resetting
            lengths += ~resetting
            if writing:
                assert transcript is not None
                record |= {"action": np.asarray(action[0]).tolist(), "reward": float(reward[0])}
                transcript.append(record)
            state = out.get("next_state")
            fresh = resetting if next_step_reset else done
            if state is not None and fresh.any():
                state = state * torch.from_numpy(~fresh).to(state)[:, None]
            if done.any():
                success = read_success(info, done, returns, self.success_threshold)
                for b in np.flatnonzero(done & (left > 0)):
                    left[b] -= 1
                    patience.ended()
                    if self.recorder is not None:
                        self.recorder.write(int(b))
                    episode = {
                        "return": float(returns[b]),
                        "length": int(lengths[b]),
                        "success": float("nan") if success is None else float(success[b]),
                        "env": int(b),
                    }
                    if b == 0 and transcript is not None:
                        episode["transcript"], transcript = transcript, None
                    yield episode
                returns[done], lengths[done] = 0.0, 0
            if next_step_reset:
                resetting = done


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
