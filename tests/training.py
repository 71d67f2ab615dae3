"""Short training runs for tests, and reading what came out of them."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from probes import batch, goodness

from rl_lightning.agents import A2C, PPO, REINFORCE
from rl_lightning.agents.agent import adam
from rl_lightning.data import RolloutDataModule
from rl_lightning.encoders import MLPEncoder
from rl_lightning.policies import ActorCritic

AGENTS: dict[str, Callable[..., Any]] = {
    "ppo": PPO,
    "a2c": A2C,
    "reinforce": REINFORCE,
    "reinforce_alone": partial(REINFORCE, baseline=False),
}
CRITICS = ("ppo", "a2c", "reinforce")
ACTIONS = ("discrete", "multi_discrete", "multi_binary", "clipped_box", "squashed_box")


def make_trainer(**kwargs: Any) -> L.Trainer:
    """A trainer without logger, checkpoints or bars, unless asked for."""
    defaults: dict[str, Any] = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "gradient_clip_val": 0.5,
    }
    return L.Trainer(**{**defaults, **kwargs})


def fit(agent: Any, data: RolloutDataModule, ckpt_path: str | None = None, **trainer: Any) -> Any:
    """Train, silently; returns the agent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_trainer(**trainer)
        made.fit(agent, data, ckpt_path=ckpt_path)
    return agent


def train_probe(
    name: str,
    task: str,
    observation: str = "vector",
    action: str = "discrete",
    *,
    rollouts: int | None = None,
    lr: float = 1e-2,
    gamma: float = 0.5,
    encoder: Callable[..., Any] = MLPEncoder,
    network: dict[str, Any] | None = None,
    env: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Any:
    """Train an agent on a probe, for half a second.

    Args:
        name: One of `AGENTS`.
        task: Of the probe, as are `observation` and `env`.
        action: One of `ACTIONS`.
        rollouts: Rollouts of 16 environments and 4 steps; PPO makes 8 updates of each, the others
            one, and so have more of them by default.
        **kwargs: Of the agent; `network` and `data` are keyword arguments of those.
    """
    torch.manual_seed(seed)
    reuse = {"minibatch_size": 32, "passes": 4} if name == "ppo" else {}
    module = RolloutDataModule(
        "Probe-v0",
        env_kwargs={
            "task": task,
            "observation": observation,
            "action": action.removeprefix("clipped_").removeprefix("squashed_"),
            **(env or {}),
        },
        seed=seed,
        **{
            "num_envs": 16,
            "rollout_steps": 4,
            "total_frames": 64 * (rollouts or (16 if name == "ppo" else 60)),
            **reuse,
            **(data or {}),
        },
    )
    squash = action == "squashed_box"
    agent = AGENTS[name](
        module.spec,
        encoder=encoder,
        network=partial(
            ActorCritic,
            **{"hidden": (16,), "log_std_init": -1.0, "squash": squash, **(network or {})},
        ),
        optimizer=partial(adam, lr=lr),
        gamma=gamma,
        **kwargs,
    )
    return fit(agent, module, **(trainer or {}))


@torch.no_grad()
def values(agent: Any, observation: str, *states: int) -> list[float]:
    """V of the states that an episode runs through."""
    memory, out = agent.initial_state(1), []
    for state in states:
        x = agent.preprocess(batch(observation, state))
        out.append(agent.inspect(x, memory)["value"].item())
        memory = agent.act(x, explore=False, state=memory).get("next_state")
    return out


@torch.no_grad()
def judge(
    agent: Any, observation: str, action: str, states: tuple[int, ...], bit: int, explore: bool
) -> float:
    """Mean goodness of the last action of an episode that runs through `states`.

    Args:
        agent: What acts.
        observation: Disguise of the states.
        action: One of `ACTIONS`.
        states: States.
        bit: What is right.
        explore: Act as while training, 500 times; otherwise greedily.
    """
    kind, rows = action.removeprefix("clipped_").removeprefix("squashed_"), 500 if explore else 1
    memory, taken = agent.initial_state(rows), None
    for state in states:
        x = agent.preprocess(batch(observation, *[state] * rows))
        out = agent.act(x, explore=explore, state=memory)
        memory, taken = out.get("next_state"), out["action"].numpy()
    assert taken is not None
    return float(np.mean([goodness(kind, row, bit) for row in taken]))
