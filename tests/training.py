"""Short training runs for tests."""

import warnings
from typing import Any

import lightning as L

from rl_lightning.data import RolloutDataModule


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
