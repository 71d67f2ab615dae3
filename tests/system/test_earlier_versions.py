"""Checkpoints that an earlier version wrote, `tests/earlier`: they load, validate and go on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training import make_trainer

from rl_lightning import DQN, PPO, Agent, ReplayDataModule, RolloutDataModule

EARLIER = Path(__file__).parents[1] / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
KINDS = {"ppo-cartpole": (PPO, RolloutDataModule), "dqn-cartpole": (DQN, ReplayDataModule)}


@pytest.mark.parametrize("name", KINDS)
def test_they_load_and_validate_to_the_number_that_was_seen_then(name):
    kind, data = KINDS[name]
    agent = Agent.load_from_checkpoint(EARLIER / f"{name}.ckpt")
    assert type(agent) is kind
    module = data(**EXPECTED["data"][name])
    trainer = make_trainer(limit_val_batches=1.0, gradient_clip_val=None)
    result = trainer.validate(agent, module, verbose=False)[0]
    assert result["val/return"] == EXPECTED["returns"][name]


@pytest.mark.parametrize("name", KINDS)
def test_training_goes_on_with_fresh_episodes_and_says_so(name, tmp_path):
    kind, data = KINDS[name]
    for file in EARLIER.glob(f"{name}*"):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    agent = kind.load_from_checkpoint(tmp_path / f"{name}.ckpt")
    settings = EXPECTED["data"][name]
    module = data(**{**settings, "total_frames": settings["total_frames"] * 2})
    trainer = make_trainer(gradient_clip_val=None)
    with pytest.warns(UserWarning, match="CartPole.*earlier version.*fresh episodes"):
        trainer.fit(agent, module, ckpt_path=tmp_path / f"{name}.ckpt")
    assert module.frames >= 2 * settings["total_frames"]
    if data is ReplayDataModule:
        assert len(module.buffer) > 200 - 2 * 20  # what was there, less what is overwritten
    assert all(torch.isfinite(p).all() for p in agent.parameters())
