"""Files know this library's classes by public names, those of earlier versions by former ones."""

import pickletools
import zipfile
from collections.abc import Mapping

import pytest
import torch
from training import make_trainer

import rl_lightning
from rl_lightning import DQN, PPO, ActorCritic, Agent, EnvSpec, MLPEncoder, RolloutDataModule
from rl_lightning.agents.optimizer import make_optimizer
from rl_lightning.core.names import present_path, present_paths, public_path
from rl_lightning.exploration import EpsilonGreedy

FORMER = {
    "rl_lightning.PPO": "rl_lightning.agents.ppo.PPO",
    "rl_lightning.RolloutDataModule": "rl_lightning.data.rollout.RolloutDataModule",
    "rl_lightning.MLPEncoder": "rl_lightning.encoders.vector.MLPEncoder",
    "rl_lightning.ActorCritic": "rl_lightning.policies.actor_critic.ActorCritic",
}


def texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from texts(entry)


def replaced(value, names):
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {key: replaced(entry, names) for key, entry in value.items()}
    return [replaced(entry, names) for entry in value] if isinstance(value, list) else value


def saved(path):
    """A checkpoint after a short training."""
    data = RolloutDataModule("CartPole-v1", num_envs=2, rollout_steps=8, total_frames=16)
    agent = PPO(data.spec, encoder=MLPEncoder, network=ActorCritic)
    trainer = make_trainer(limit_val_batches=0)
    trainer.fit(agent, data)
    trainer.save_checkpoint(path)
    return agent


@pytest.mark.parametrize("name", rl_lightning.__all__)
def test_what_the_package_offers_is_known_by_that(name):
    thing = getattr(rl_lightning, name)
    assert public_path(thing) == f"rl_lightning.{name}"
    assert present_path(f"rl_lightning.some.former_home.{name}") == f"rl_lightning.{name}"


def test_any_other_path_stays():
    assert public_path(EpsilonGreedy) == "rl_lightning.exploration.EpsilonGreedy"
    assert public_path(make_optimizer) == "rl_lightning.agents.optimizer.make_optimizer"
    paths = ["torch.optim.Adam", "my.PPO", "rl_lightning", "a text about rl_lightning.PPO.", ""]
    assert present_paths({"a": paths, "b": 1}) == {"a": paths, "b": 1}


def test_checkpoints_hold_public_names_only(tmp_path):
    saved(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    parts = ("hyper_parameters", "datamodule_hyper_parameters")
    found = [t for part in parts for t in texts(checkpoint[part]) if t.startswith("rl_lightning")]
    assert set(found) == set(FORMER)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        (pickle,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        operations = list(pickletools.genops(archive.read(pickle)))
    named = {arg for code, arg, _ in operations if code.name == "GLOBAL"}
    assert {arg for arg in named if arg.startswith("rl_lightning")} == {"rl_lightning EnvSpec"}


def test_what_an_earlier_version_has_written_is_read(tmp_path, monkeypatch):
    agent = saved(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for part in ("hyper_parameters", "datamodule_hyper_parameters"):
        checkpoint[part] = replaced(checkpoint[part], FORMER)
    monkeypatch.setattr(EnvSpec, "__module__", "rl_lightning.types")
    torch.save(checkpoint, tmp_path / "old.ckpt")
    monkeypatch.undo()
    assert b"rl_lightning.types" in (tmp_path / "old.ckpt").read_bytes()
    old = Agent.load_from_checkpoint(tmp_path / "old.ckpt")
    assert type(old) is PPO
    assert old.spec == agent.spec
    data = RolloutDataModule.load_from_checkpoint(tmp_path / "old.ckpt", total_frames=32)
    make_trainer(limit_val_batches=0).fit(old, data, ckpt_path=tmp_path / "old.ckpt")
    assert old.frames == 32
    with pytest.raises(ValueError, match=r"holds a rl_lightning\.PPO, which is no DQN"):
        DQN.load_from_checkpoint(tmp_path / "old.ckpt")
