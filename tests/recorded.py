"""Tiny files of recorded episodes, from probes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from probes import Probe
from training import fit as fit_clipped
from training import make_trainer as make_clipped

from rl_lightning.core.types import EnvSpec
from rl_lightning.data import OfflineDataModule
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.writer import DatasetWriter


def right(kind: str, bit: int) -> Any:
    """The action whose goodness is 1."""
    return {
        "discrete": bit,
        "multi_discrete": np.array([bit, 2 * bit]),
        "multi_binary": np.array([bit, 1 - bit], np.int8),
        "box": np.array([0.5 if bit else -0.5], np.float32),
    }[kind]


def record(
    path: Path,
    task: str = "policy",
    observation: str = "vector",
    action: str = "discrete",
    choose: Callable[[Probe, np.random.Generator], Any] | None = None,
    episodes: int = 64,
    **probe: Any,
) -> str:
    """Episodes of a probe, by random actions or by `choose`; returns the file's name."""
    env = Probe(task, observation, action, **probe)  # type: ignore[arg-type]
    env.action_space.seed(0)
    rng = np.random.default_rng(0)
    spec = EnvSpec(env.observation_space, env.action_space, "Probe-v0")
    with DatasetWriter(path, spec) as writer:
        for number in range(episodes):
            obs, _ = env.reset(seed=None if number else 0)
            seen, steps, over = [obs], [], False
            while not over:
                taken = env.action_space.sample() if choose is None else choose(env, rng)
                obs, reward, terminated, truncated, _ = env.step(taken)
                seen.append(obs)
                steps.append((taken, reward, terminated, truncated))
                over = terminated or truncated
            actions, *rest = zip(*steps, strict=True)
            rows = gathered(env.observation_space, seen)
            writer.add(Episode(rows, np.array(actions), *map(np.array, rest)))
    return str(path)


def demonstrate(env: Probe, rng: np.random.Generator) -> Any:
    """The right action for what is shown; when it is dark, as if state 0 were."""
    return right(env.action, env.state % 2)


def gathered(space: gym.Space, rows: list[Any]) -> Any:
    """Observations as an `Episode` holds them."""
    if isinstance(space, gym.spaces.Dict):
        return {key: gathered(space[key], [row[key] for row in rows]) for key in space}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(gathered(entry, [row[i] for row in rows]) for i, entry in enumerate(space))
    return rows if isinstance(rows[0], str) else np.array(rows)


def offline(path: str, task: str = "policy", **kwargs: Any) -> OfflineDataModule:
    """A data module for a probe's file; `observation`, `action` and the like go to the probe."""
    own = {"observation", "action", "horizon", "terminate"} & set(kwargs)
    env = {"task": task, **{key: kwargs.pop(key) for key in own}}
    defaults = {"batch_size": 32, "updates_per_epoch": 100, "total_updates": 300}
    return OfflineDataModule(path, "Probe-v0", env_kwargs=env, **{**defaults, **kwargs})


# Agents that learn from replay clip by an argument of their own.
fit = partial(fit_clipped, gradient_clip_val=None)
make_trainer = partial(make_clipped, gradient_clip_val=None)


def learn(make: Callable[..., Any], data: OfflineDataModule, seed: int = 0) -> Any:
    """Train what `make` makes of the spaces; returns it."""
    torch.manual_seed(seed)
    return fit(make(data.spec), data)  # type: ignore[arg-type]
