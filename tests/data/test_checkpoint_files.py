"""Checkpoint files: whatever happens while one is saved, the one before it stays whole."""

import contextlib
import errno
import os
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from recorded import offline, record
from training import make_trainer

from rl_lightning import BC, DQN, PPO, MLPEncoder
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data import (
    ReplayDataModule,
    RolloutDataModule,
    checkpoint_files,
)
from rl_lightning.data.resume.checkpoint_files import CheckpointFiles, replace_file
from rl_lightning.data.resume.sidecar import find_sidecar, sidecars


def rollouts(**kwargs):
    small = {"num_envs": 2, "rollout_steps": 8, "total_frames": 32, "val_episodes": 1, "seed": 1}
    return RolloutDataModule("CartPole-v1", **{**small, **kwargs})


def replay(**kwargs):
    small = {"num_envs": 2, "buffer_frames": 200, "batch_size": 8, "warmup_frames": 20, "seed": 1}
    small |= {"frames_per_epoch": 20, "total_frames": 60, "val_episodes": 1}
    return ReplayDataModule("CartPole-v1", **{**small, **kwargs})


def recorded(folder, **kwargs):
    small = {"batch_size": 8, "updates_per_epoch": 10, "total_updates": 20}
    return offline(record(folder / "recorded.hdf5", episodes=8), **{**small, **kwargs})


KINDS = {"rollouts": (PPO, rollouts), "replay": (DQN, replay), "recorded": (BC, recorded)}


def begin(kind, folder, **trainer):
    """A short run; returns agent, data and trainer."""
    make_agent, make_data = KINDS[kind]
    data = make_data(folder) if kind == "recorded" else make_data()
    agent = make_agent(data.spec)
    made = make_trainer(gradient_clip_val=None, default_root_dir=folder, **trainer)
    made.fit(agent, data)
    return agent, data, made


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_checkpoint_before_it_and_is_one_sentence(
    kind, tmp_path, monkeypatch
):
    agent, _, trainer = begin(kind, tmp_path)
    path = tmp_path / "saved" / "last.ckpt"
    trainer.save_checkpoint(path)
    before, there = weights(path), sorted(p.name for p in path.parent.iterdir())
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(agent.parameters()) + 1, agent.parameters()
    )
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.os, "replace", full_disk)
        with pytest.raises(RunError, match=r"saved.* cannot be saved: No space left.* make room"):
            trainer.save_checkpoint(path)
    assert all(torch.equal(before[k], v) for k, v in weights(path).items())
    assert sorted(p.name for p in path.parent.iterdir()) == there  # nothing half-written
    trainer.save_checkpoint(path)
    assert any(not torch.equal(before[k], v) for k, v in weights(path).items())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_elsewhere_and_moved(kind, tmp_path, monkeypatch):
    _, _, trainer = begin(kind, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    moves = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: moves.append((a, b)) or replace(a, b))
    trainer.save_checkpoint(tmp_path / "new" / "last.ckpt")
    assert all(Path(a).parent == Path(b).parent == tmp_path / "new" for a, b in moves)
    assert Path(moves[-1][1]).name == "last.ckpt"


def test_a_file_is_flushed_before_it_takes_the_others_place(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: events.append(name) or real(*a)
        )
    replace_file(tmp_path / "x", b"new")
    assert events == ["fsync", "replace", "fsync"]  # contents, name, folder
    assert (tmp_path / "x").read_bytes() == b"new"


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    (tmp_path / ".x.ckpt.123456789abc.tmp").write_bytes(b"half")
    (tmp_path / ".y.ckpt.123456789abc.tmp").write_bytes(b"of another checkpoint")
    with (tmp_path / ".x.ckpt.abcdef123456.tmp").open("wb") as file:
        assert checkpoint_files.lock(file)
        replace_file(tmp_path / "x.ckpt", b"new")
        names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [".x.ckpt.abcdef123456.tmp", ".y.ckpt.123456789abc.tmp", "x.ckpt"]


def test_a_killed_process_leaves_the_whole_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            CheckpointFiles().save_checkpoint({"state_dict": {"x": torch.ones(9)}}, path)
            os.fsync = lambda *_: os._exit(9)
            CheckpointFiles().save_checkpoint({"state_dict": {"x": torch.zeros(9)}}, path)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.iterdir())) == 2
    assert weights(path)["x"].sum() == 9
    CheckpointFiles().save_checkpoint({"state_dict": {"x": torch.zeros(9)}}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


# --- what is not saved ------------------------------------------------------------------------


def poison(agent, name, value):
    with torch.no_grad():
        dict(agent.state_dict())[name].view(-1)[0] = value


def normal(agent):
    return partial(agent, encoder=partial(MLPEncoder, normalize=True))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("rollouts", "policy.actor.net.0.weight", float("nan")),
        ("replay", "target", float("inf")),
        ("recorded", "moments", float("nan")),
    ],
)
def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(
    kind, name, value, tmp_path, monkeypatch
):
    make_agent, make_data = KINDS[kind]
    if name == "moments":
        monkeypatch.setitem(KINDS, kind, (normal(make_agent), make_data))
    agent, _, trainer = begin(kind, tmp_path)
    path = tmp_path / "saved" / "last.ckpt"
    trainer.save_checkpoint(path)
    found = next((k for k in agent.state_dict() if name in k), None)
    found = found or next(k for k, v in agent.state_dict().items() if v.is_floating_point())
    poison(agent, found, value)
    there = path.read_bytes(), sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(RunError, match=f"{found} is not finite"):
        trainer.save_checkpoint(path)
    assert (path.read_bytes(), sorted(p.name for p in path.parent.iterdir())) == there


def test_infinite_constants_are_no_reason_to_refuse(tmp_path):
    agent, _, trainer = begin("rollouts", tmp_path)
    agent.register_buffer("bounds", torch.tensor([-float("inf"), float("inf")]))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert weights(tmp_path / "last.ckpt")["bounds"].isinf().all()


# --- what is not read -------------------------------------------------------------------------


def flip(path, offset):
    contents = bytearray(path.read_bytes())
    contents[offset] ^= 16
    path.write_bytes(bytes(contents))


def inside(path, suffix):
    """Offset of the middle of the largest record whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        records = [i for i in archive.infolist() if suffix in i.filename]
        info = max(records, key=lambda i: i.file_size)
        return path.read_bytes().index(archive.read(info), info.header_offset) + info.file_size // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["weights", "pickle", "short", "text", "foreign"])
def test_damaged_and_foreign_checkpoints_are_one_sentence(kind, how, tmp_path):
    agent, data, trainer = begin(kind, tmp_path)
    path = tmp_path / "saved" / "broken.ckpt"
    trainer.save_checkpoint(path)
    if how == "short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "text":
        path.write_text("hello")
    elif how == "foreign":
        torch.save({"state_dict": agent.state_dict()}, path)
    else:
        flip(path, inside(path, "/data/" if how == "weights" else "data.pkl"))
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    for run in (make_trainer(gradient_clip_val=None).fit, make_trainer().validate):
        with pytest.raises(ConfigurationError, match=r"checkpoint .*broken\.ckpt: ") as error:
            run(agent, datamodule=data, ckpt_path=path)
        assert "weights_only" not in str(error.value)
        assert "\n" not in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())


@pytest.mark.parametrize("suffix", ["state.pt", ".npy"])
def test_damaged_replay_contents_are_one_sentence(suffix, tmp_path):
    _, _, trainer = begin("replay", tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (folder,) = sidecars(tmp_path / "last.ckpt")
    path = next(p for p in sorted(folder.rglob("*")) if p.name.endswith(suffix))
    path.write_bytes(path.read_bytes()[:-50])
    data = replay(total_frames=100)
    with pytest.raises(ConfigurationError, match=folder.name):
        make_trainer(gradient_clip_val=None).fit(
            DQN(data.spec), data, ckpt_path=tmp_path / "last.ckpt"
        )


@pytest.mark.parametrize(
    "name", ["../x.replay.1", "/tmp/x.replay.1", "..", "x", "a\\b.replay.1", ".replay.1\0"]
)
def test_replay_contents_lie_beside_their_checkpoint_and_nowhere_else(name, tmp_path):
    with pytest.raises(ConfigurationError, match="no folder beside it"):
        find_sidecar(tmp_path / "last.ckpt", name, 0)


@pytest.mark.parametrize("what", ["folder", "rank", "file"])
def test_replay_contents_are_no_links(what, tmp_path):
    _, _, trainer = begin("replay", tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (folder,) = sidecars(tmp_path / "last.ckpt")
    part = {"folder": folder, "rank": folder / "rank0", "file": folder / "rank0" / "state.pt"}[what]
    part.rename(tmp_path / "secret")
    part.symlink_to(tmp_path / "secret")
    data = replay(total_frames=100)
    with pytest.raises(ConfigurationError, match=r"is a link or no file"):
        make_trainer(gradient_clip_val=None).fit(
            DQN(data.spec), data, ckpt_path=tmp_path / "last.ckpt"
        )


# --- plugins, and a trainer that is used again ------------------------------------------------


class Own(TorchCheckpointIO):
    """A user's plugin."""

    saved = loaded = 0

    def save_checkpoint(self, *args, **kwargs):
        self.saved += 1
        super().save_checkpoint(*args, **kwargs)

    def load_checkpoint(self, *args, **kwargs):
        self.loaded += 1
        return super().load_checkpoint(*args, **kwargs)


def test_a_users_plugin_stays_inside_and_once(tmp_path):
    plugin = Own()
    agent, data, trainer = begin("replay", tmp_path, plugins=[plugin])
    data.total_frames = 100
    trainer.fit(agent, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert trainer.strategy.checkpoint_io.inner is plugin
    assert plugin.saved == 1
    assert len(sidecars(tmp_path / "last.ckpt")) == 1
    trainer.validate(agent, data, ckpt_path=tmp_path / "last.ckpt")
    assert plugin.loaded == 1


def test_saving_in_a_thread_writes_our_files(tmp_path, monkeypatch):
    *_, trainer = begin("replay", tmp_path, plugins=[AsyncCheckpointIO()])
    for _ in range(2):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        trainer.strategy.checkpoint_io.teardown()
        (folder,) = sidecars(tmp_path / "last.ckpt")
        checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert checkpoint["ReplayDataModule"]["replay"] == folder.name
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(RunError, match="No space left"):
        trainer.save_checkpoint(tmp_path / "last.ckpt")


def test_saving_after_training_leaves_no_spool(tmp_path, monkeypatch):
    agent, data, trainer = begin("replay", tmp_path)
    for name in ("a", "b"):  # the second one needs contents that the first one had spooled
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        assert not list(tmp_path.rglob(".*"))
        (folder,) = sidecars(tmp_path / f"{name}.ckpt")
        assert (folder / "rank0" / "state.pt").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        with pytest.raises(RunError, match=r"replay contents in .* be saved: No space left"):
            trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.rglob(".*"))
    data.total_frames = 100
    trainer.fit(agent, data)  # and training goes on saving
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert data.frames == 100
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_trains_whole_budgets_again_and_again(kind, tmp_path):
    agent, data, trainer = begin(kind, tmp_path)
    updates = trainer.global_step
    assert trainer.max_epochs == -1
    for times in (2, 3):
        agent = type(agent)(data.spec)
        trainer.fit(agent, data)
        assert agent.frames == data.frames == data.total_frames
        assert trainer.global_step == times * updates


def test_a_trainer_goes_from_data_to_data(tmp_path):
    *_, trainer = begin("recorded", tmp_path)
    for kind in ("replay", "rollouts", "replay"):
        make_agent, make_data = KINDS[kind]
        data = make_data()
        trainer.fit(make_agent(data.spec), data)
        assert data.frames == data.total_frames
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert len(sidecars(tmp_path / "last.ckpt")) == (kind == "replay")


@pytest.mark.parametrize("kind", ["rollouts", "replay"])
def test_after_an_error_trainer_and_data_can_be_used_again(kind, tmp_path):
    class Fails(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise KeyError("mine")

    make_agent, make_data = KINDS[kind]
    data = make_data()
    trainer = make_trainer(gradient_clip_val=None, callbacks=[Fails()], default_root_dir=tmp_path)
    with pytest.raises(KeyError, match="mine"):
        trainer.fit(make_agent(data.spec), data)
    assert trainer.max_epochs == -1
    trainer.callbacks = []
    agent = make_agent(data.spec)
    trainer.fit(agent, data)
    assert agent.frames == data.frames == data.total_frames


@pytest.mark.parametrize("data", [rollouts, replay])
def test_a_run_and_its_continuation_remove_what_they_replace(data, tmp_path):
    """Lightning's own bookkeeping: it keeps one, and the file that a run went on from."""

    def fit(epochs, **kwargs):
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=1, save_on_train_epoch_end=True)
        kind = PPO if data is rollouts else DQN
        module = data(total_frames=epochs * (16 if data is rollouts else 20))
        trainer = make_trainer(callbacks=[saver], enable_checkpointing=True, gradient_clip_val=None)
        trainer.fit(kind(module.spec), module, **kwargs)
        kept = set(tmp_path.glob("*.ckpt"))
        assert len(set(tmp_path.glob("*.replay.*"))) == (len(kept) if data is replay else 0)
        return kept

    (first,) = fit(3)
    second = fit(6, ckpt_path=first)
    assert len(second) == 2
    assert first in second
