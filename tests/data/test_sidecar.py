"""Replay contents beside a checkpoint: whatever happens, a checkpoint has its folder."""

import contextlib
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training import make_trainer

from rl_lightning import DQN
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data import ReplayDataModule
from rl_lightning.data.resume import checkpoint_files, sidecar
from rl_lightning.data.resume.sidecar import PairedFiles, SidecarIO, Spool, find_sidecar, sidecars

SMALL = {
    "env": "CartPole-v1",
    "num_envs": 2,
    "buffer_frames": 400,
    "batch_size": 8,
    "warmup_frames": 20,
    "collect_frames": 4,
    "frames_per_epoch": 40,
    "total_frames": 10**6,
    "seed": 3,
}


def train(folder, epochs, ckpt_path=None, saver=None, **data):
    torch.manual_seed(0)
    module = ReplayDataModule(**{**SMALL, **data})
    saver = saver or ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = make_trainer(
        max_epochs=epochs, callbacks=[saver], enable_checkpointing=True, gradient_clip_val=None
    )
    agent = DQN(module.spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*max_epochs.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory.*")
        warnings.filterwarnings("ignore", ".*callbacks used to create.*")
        trainer.fit(agent, module, ckpt_path=ckpt_path)
    return module


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def whole(path):
    """The replay contents that a checkpoint names, or an error."""
    name = torch.load(path, weights_only=True)["ReplayDataModule"]["replay"]
    return torch.load(find_sidecar(path, name, 0) / "state.pt", weights_only=True)


# --- in training ------------------------------------------------------------------------------


def test_each_checkpoint_has_a_folder_and_each_folder_a_checkpoint(tmp_path):
    train(tmp_path, 3)
    assert len(names(tmp_path)) == 2  # the spool is gone
    checkpoint, folder = names(tmp_path)
    assert checkpoint == "last.ckpt"
    assert folder.startswith("last.replay.")
    assert whole(tmp_path / "last.ckpt")["counts"].sum() > 100


def test_a_checkpoint_is_small_and_plain(tmp_path):
    train(tmp_path, 1, buffer_frames=200_000, warmup_frames=20_000)
    (folder,) = sidecars(tmp_path / "last.ckpt")
    outside = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert outside > 20_000 * 20
    assert (tmp_path / "last.ckpt").stat().st_size < outside / 2
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    DQN.load_from_checkpoint(tmp_path / "last.ckpt")


def test_a_removed_checkpoint_takes_its_folder_along(tmp_path):
    saver = ModelCheckpoint(
        tmp_path,
        "{step}",
        monitor="time/frames",
        mode="max",
        save_top_k=2,
        save_last=True,
        save_on_train_epoch_end=True,
    )
    module = ReplayDataModule(**SMALL)
    trainer = make_trainer(
        max_epochs=5,
        callbacks=[saver],
        enable_checkpointing=True,
        gradient_clip_val=None,
        log_every_n_steps=1,
    )
    trainer.fit(DQN(module.spec), module)
    paths = [*map(Path, saver.best_k_models), tmp_path / "last.ckpt"]
    assert len(paths) == 3
    assert len(names(tmp_path)) == 6
    for path in paths:
        whole(path)


def test_moving_both_works_and_moving_one_is_told(tmp_path):
    train(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train(tmp_path / "c", 2, tmp_path / "b" / "last.ckpt")
    (tmp_path / "d").mkdir()
    shutil.copy(tmp_path / "a" / "last.ckpt", tmp_path / "d")
    with pytest.raises(ConfigurationError, match=r"d/last.ckpt goes .* move them along .*: false"):
        train(tmp_path / "e", 2, tmp_path / "d" / "last.ckpt")


def test_the_way_out_of_lost_contents(tmp_path):
    train(tmp_path, 1)
    (folder,) = sidecars(tmp_path / "last.ckpt")
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="the policy plays 20 frames before learning goes on"):
        module = train(tmp_path / "b", 2, tmp_path / "last.ckpt", save_replay=False)
    assert module.frames == 60 + 20 + 40
    assert names(tmp_path / "b") == ["last.ckpt"]


def test_what_is_not_saved_leaves_no_folder_of_an_older_checkpoint(tmp_path):
    train(tmp_path, 1)
    with pytest.warns(UserWarning, match="the policy plays"):
        train(tmp_path, 2, tmp_path / "last.ckpt", save_replay=False)
    assert names(tmp_path) == ["last.ckpt"]


def test_a_folder_that_is_not_whole_is_told(tmp_path):
    train(tmp_path, 1)
    (folder,) = sidecars(tmp_path / "last.ckpt")
    next(folder.rglob("obs.*")).unlink()
    with pytest.raises(ConfigurationError, match=r"incomplete: no .*obs"):
        train(tmp_path / "b", 2, tmp_path / "last.ckpt")


def test_other_sizes_are_told(tmp_path):
    train(tmp_path, 1)
    with pytest.raises(ConfigurationError, match=r"resume with the same data.buffer_frames"):
        train(tmp_path / "b", 2, tmp_path / "last.ckpt", buffer_frames=500)


# --- one save ---------------------------------------------------------------------------------


class Writer:
    """Saves numbered contents to one path, as the data module would."""

    def __init__(self, folder):
        self.path = Path(folder) / "last.ckpt"
        self.spool = Spool(Path(folder), 0)
        self.io = SidecarIO(PairedFiles("data"), "data")

    def save(self, number):
        def contents(folder):
            (folder / "x.npy").write_text(str(number))
            return {"number": number}

        spooled = [str(self.spool.write(number, contents))]
        checkpoint = {"data": {"replay": spooled}, "number": number}
        self.io.save_checkpoint(checkpoint, self.path)
        assert checkpoint["data"]["replay"] is spooled


def saved(path):
    """The number of a checkpoint, which must be that of its contents."""
    checkpoint = torch.load(path, weights_only=True)
    folder = find_sidecar(path, checkpoint["data"]["replay"], 0)
    assert (folder / "x.npy").read_text() == str(checkpoint["number"])
    return checkpoint["number"]


def test_saving_over_a_checkpoint_leaves_one_folder(tmp_path):
    writer = Writer(tmp_path)
    for number in range(3):
        writer.save(number)
        assert saved(writer.path) == number
        assert len(sidecars(writer.path)) == 1
    assert (tmp_path / "last.ckpt").is_file()
    writer.io.remove_checkpoint(writer.path)
    writer.spool.close()
    assert names(tmp_path) == []


def test_a_spool_writes_a_version_once(tmp_path):
    spool, written = Spool(tmp_path, 0), []

    def save(folder):
        written.append(folder)
        return {}

    assert spool.write(1, save) == spool.write(1, save)
    spool.write(2, save)
    assert len(written) == 2
    assert [f.is_dir() for f in written] == [False, True]


def test_other_checkpoints_of_similar_names_keep_their_folders(tmp_path):
    writer = Writer(tmp_path)
    for name in ("last.ckpt", "last-v1.ckpt", "las.ckpt", "last.ckpt"):
        writer.path = tmp_path / name
        writer.save(name)
    for name in ("last.ckpt", "last-v1.ckpt", "las.ckpt"):
        assert saved(tmp_path / name) == name


STAGES = ("spooling", "spooled", "renamed", "written", "replaced")


def interrupt(stage, how, monkeypatch):
    """Let something happen at a stage of the next save."""

    def happen(*args, **kwargs):
        how()

    if stage == "spooling":
        monkeypatch.setattr(torch, "save", happen)
    elif stage == "spooled":
        monkeypatch.setattr(sidecar.os, "replace", happen)
    elif stage == "renamed":
        monkeypatch.setattr(checkpoint_files, "replace_file", happen)
    elif stage == "written":
        replace = os.replace
        monkeypatch.setattr(
            os, "replace", lambda a, b: happen() if a.suffix == ".tmp" else replace(a, b)
        )
    else:
        monkeypatch.setattr(sidecar, "_remove", happen)


def fail():
    raise OSError("no space left on device")


@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_save_leaves_the_checkpoint_before_it(stage, tmp_path):
    writer = Writer(tmp_path)
    writer.save(1)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(stage, fail, patch)
        with pytest.raises((RunError, OSError), match="no space"):
            writer.save(2)
    if stage != "replaced":
        assert len(names(tmp_path)) == 3  # checkpoint, folder, spool; nothing half-written
    assert saved(writer.path) == (2 if stage == "replaced" else 1)
    writer.save(3)  # and the next one cleans up
    assert saved(writer.path) == 3
    assert len(sidecars(writer.path)) == 1


@pytest.mark.parametrize("stage", [*STAGES, "committed"])
def test_a_killed_process_leaves_a_checkpoint_with_its_contents(stage, tmp_path):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            writer = Writer(tmp_path)
            writer.save(1)
            if stage != "committed":
                interrupt(stage, lambda: os._exit(9), pytest.MonkeyPatch())
            writer.save(2)
            os._exit(9)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    path = tmp_path / "last.ckpt"
    assert saved(path) == (2 if stage in ("replaced", "committed") else 1)
    spools = list(tmp_path.glob(".replay-rank0-*"))
    assert len(spools) == 1
    writer = Writer(tmp_path)  # removes what the dead process has left
    writer.save(3)
    assert not spools[0].exists()
    assert len(sidecars(path)) == 1
    assert len(names(tmp_path)) == 3  # checkpoint, folder, spool


def test_the_spool_of_a_living_process_is_left_alone(tmp_path):
    writers = [Writer(tmp_path), Writer(tmp_path)]
    for number, writer in enumerate(writers):
        writer.save(number)
        assert saved(writer.path) == number


def test_contents_of_an_earlier_version_are_told(tmp_path):
    train(tmp_path / "a", 1)
    (folder,) = sidecars(tmp_path / "a" / "last.ckpt")
    (file,) = folder.rglob("state.pt")
    state = torch.load(file, weights_only=True)
    del state["mask_dim"]
    torch.save(state, file)
    with pytest.raises(ConfigurationError, match=r"earlier version; .*save_replay: false"):
        train(tmp_path / "b", 2, tmp_path / "a" / "last.ckpt")
    train(tmp_path / "c", 2, tmp_path / "a" / "last.ckpt", save_replay=False)
