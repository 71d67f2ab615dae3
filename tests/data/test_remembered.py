"""What encoders remember goes beside checkpoints, is written once, and may be missing."""

import os
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from training import make_trainer

from rl_lightning import DQN, PPO, DictEncoder, LLMEncoder, ReplayDataModule, RolloutDataModule
from rl_lightning.core.remembered import Remembered
from rl_lightning.data.resume import remembered
from rl_lightning.data.resume.remembered import (
    MOST_PARTS,
    RememberedFiles,
    inside,
    left_out,
    put_back,
    read,
    take_out,
)
from rl_lightning.data.resume.sidecar import find_sidecar, sidecars
from rl_lightning.llm import TextCache


def rows(texts):
    return torch.tensor([[float(text), 1.0] for text in texts])


def equal(one, other):
    return (
        one.keys == other.keys
        and torch.equal(one.rows, other.rows)
        and torch.equal(one.serials, other.serials)
    )


def write(files, folder, *found):
    folder.mkdir()
    torch.save(files.save(folder, list(found)), folder / "state.pt")
    return folder


# --- files ----------------------------------------------------------------------------------------


def test_a_save_writes_what_is_new(tmp_path):
    cache, files = TextCache(100, 2), RememberedFiles()
    cache.get(("1", "2"), rows)
    first = write(files, tmp_path / "a", cache.state())
    cache.get(("1", "3"), rows)
    second = write(files, tmp_path / "b", cache.state())
    (part,) = (p for p in first.iterdir() if p.name != "state.pt")
    assert os.path.samefile(part, second / part.name)
    (new,) = {p.name for p in second.iterdir()} - {part.name, "state.pt"}
    assert torch.load(second / new, weights_only=True)["keys"] == ["3"]
    third = write(files, tmp_path / "c", cache.state())
    assert {p.name for p in third.iterdir()} == {part.name, new, "state.pt"}
    assert read(second)[0].keys == ["2", "1", "3"]
    shutil.rmtree(first)
    assert equal(read(third)[0], cache.state())


@pytest.mark.parametrize("capacity", [5, 30, 1000])
def test_what_is_read_is_what_there_was(capacity, tmp_path):
    cache, files = TextCache(capacity, 2), RememberedFiles()
    generator = torch.Generator().manual_seed(0)
    most = 0
    for step in range(2 * MOST_PARTS + 5):
        texts = [str(int(i)) for i in torch.randint(200, (7,), generator=generator)]
        cache.get(texts, rows)
        folder = write(files, tmp_path / str(step), cache.state())
        assert equal(read(folder)[0], cache.state())
        most = max(most, len(list(folder.iterdir())))
        if step:
            shutil.rmtree(tmp_path / str(step - 1))
        if step == 20:
            cache.clear()
    assert most <= MOST_PARTS + 1


def test_rows_that_were_dropped_and_computed_anew_are_the_new_ones(tmp_path):
    cache, files = TextCache(2, 1), RememberedFiles()
    for step, text in enumerate("abcab"):
        cache.get((text,), lambda texts, step=step: torch.full((1, 1), float(step)))
        folder = write(files, tmp_path / str(step), cache.state())
    (found,) = read(folder)
    assert (found.keys, found.rows[:, 0].tolist()) == (["a", "b"], [3.0, 4.0])


def test_after_a_failed_save_everything_is_written(tmp_path, monkeypatch):
    cache, files = TextCache(9, 2), RememberedFiles()
    cache.get(("1", "2"), rows)
    first = write(files, tmp_path / "a", cache.state())
    cache.get(("3",), rows)
    with monkeypatch.context() as patch:
        patch.setattr(remembered.torch, "save", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write(files, tmp_path / "b", cache.state())
    assert equal(read(write(files, tmp_path / "c", cache.state()))[0], cache.state())
    shutil.rmtree(first)
    shutil.rmtree(tmp_path / "c")
    assert equal(read(write(files, tmp_path / "d", cache.state()))[0], cache.state())


def test_what_is_taken_out_is_put_back():
    one = Remembered(["a"], torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    other = Remembered([], torch.empty(0, 3), torch.zeros(0, dtype=torch.int64))
    state = {"x": [1, {"y": one}], "z": {"remembered": other, "hits": 3}}
    without, found = take_out(state)
    assert (found[0] is one, found[1] is other, len(found)) == (True, True, 2)
    assert put_back(without, found) == state
    empty, lacked = left_out(without)
    assert lacked
    assert empty["x"][1]["y"].keys == []
    assert left_out(state) == (state, False)
    assert inside(state)["x"][1]["y"]["keys"] == ["a"]


def same_weights(one, other):
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(one.encoder.norm.running.moments, other.encoder.norm.running.moments)


# --- runs -----------------------------------------------------------------------------------------


def encoder(tmp_path, **kwargs):
    return partial(
        LLMEncoder, model=tiny_model("bert", tmp_path / "model"), max_length=24, **kwargs
    )


def begin(tmp_path, kind="rollouts"):
    torch.manual_seed(0)
    common = {"env": "TextMaze-v0", "num_envs": 4, "val_episodes": 4, "seed": 1}
    if kind == "rollouts":
        data = RolloutDataModule(**common, rollout_steps=8, minibatch_size=16, total_frames=128)
        return PPO(data.spec, encoder(tmp_path)), data
    data = ReplayDataModule(
        **common, frames_per_epoch=32, warmup_frames=32, batch_size=8, total_frames=160
    )
    return DQN(data.spec, encoder(tmp_path)), data


def run(tmp_path, folder, epochs, ckpt_path=None, kind="rollouts", **trainer):
    agent, data = begin(tmp_path, kind)
    saver = ModelCheckpoint(
        tmp_path / folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    made = make_trainer(
        max_epochs=epochs, callbacks=[saver], enable_checkpointing=True, limit_val_batches=1.0,
        **{"gradient_clip_val": None, **trainer},
    )  # fmt: skip
    made.fit(agent, data, ckpt_path=ckpt_path)
    return agent, data, made, tmp_path / folder / "last.ckpt"


@pytest.mark.parametrize("kind", ["rollouts", "replay"])
def test_a_resumed_run_remembers_and_a_checkpoint_holds_no_vectors(kind, tmp_path):
    whole, *_ = run(tmp_path, "whole", 4, kind=kind)
    *_, path = run(tmp_path, "half", 2, kind=kind)
    kinds = ["texts"] if kind == "rollouts" else ["replay", "texts"]
    assert sorted(p.name.split(".")[1] for p in sidecars(path)) == kinds
    entry = torch.load(path, weights_only=True)[type(begin(tmp_path, kind)[1]).__qualname__]
    (found,) = read(find_sidecar(path, entry["texts"], 0, "texts"))
    assert len(found.keys) == len(found.rows) > 20
    assert "keys" not in str(entry["ranks"][0]["encoder"])
    rest, _, _, path = run(tmp_path, "rest", 4, path, kind=kind)
    same_weights(whole, rest)
    assert rest.encoder.cache.state().keys == whole.encoder.cache.state().keys
    assert torch.equal(rest.encoder.cache.state().rows, whole.encoder.cache.state().rows)
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


def test_a_moved_checkpoint_loads_validates_and_says_what_is_lost(tmp_path):
    agent, data, trainer, path = run(tmp_path, "a", 2)
    (before,) = trainer.validate(agent, data, verbose=False)
    moved = tmp_path / "b" / "last.ckpt"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    agent, data = begin(tmp_path)
    (after,) = make_trainer(limit_val_batches=1.0, gradient_clip_val=None).validate(
        agent, data, ckpt_path=moved, verbose=False
    )
    assert after["val/return"] == pytest.approx(before["val/return"], abs=1e-5)
    assert PPO.load_from_checkpoint(moved).encoder.cache.state().keys == []
    with pytest.warns(UserWarning, match=r"texts\.[0-9a-f]+, which are not there.*no longer bit"):
        agent, data, *_ = run(tmp_path, "c", 3, moved)
    assert data.frames == 96


def test_damaged_and_strange_files_are_told_and_computed_anew(tmp_path):
    *_, path = run(tmp_path, "a", 1)
    (folder,) = sidecars(path)
    part = next(p for p in (folder / "rank0").iterdir() if p.name != "state.pt")
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="cannot be read.*computed anew"):
        run(tmp_path, "b", 2, path)
    checkpoint = torch.load(path, weights_only=True)
    for name in ("../a/x.texts.00", "/etc", "last.replay.0123"):
        checkpoint["RolloutDataModule"]["texts"] = name
        torch.save(checkpoint, path)
        with pytest.warns(UserWarning, match="no folder beside it"):
            run(tmp_path, "c", 2, path)


def test_a_checkpoint_of_before_holds_the_vectors_itself(tmp_path):
    whole, *_ = run(tmp_path, "whole", 4)
    *_, path = run(tmp_path, "half", 2)
    checkpoint = torch.load(path, weights_only=True)
    entry = checkpoint["RolloutDataModule"]
    (found,) = read(find_sidecar(path, entry.pop("texts"), 0, "texts"))
    saved = entry["ranks"][0]["encoder"]
    del saved["remembered"]
    saved |= {"texts": found.keys, "vectors": found.rows}
    torch.save(checkpoint, path)
    rest, *_ = run(tmp_path, "rest", 4, path)
    same_weights(whole, rest)


def test_saving_before_and_after_training_keeps_what_is_remembered(tmp_path):
    agent, data, trainer, path = run(tmp_path, "a", 2)
    known = agent.encoder.cache.state().keys
    trainer.save_checkpoint(tmp_path / "b" / "x.ckpt")
    for _ in range(2):  # loaded, and saved again without training
        agent, data = begin(tmp_path)
        made = make_trainer(gradient_clip_val=None, limit_val_batches=1.0)
        made.validate(agent, data, ckpt_path=path, verbose=False)
        made.save_checkpoint(tmp_path / "b" / "y.ckpt")
        for name in ("x", "y"):
            target = tmp_path / "b" / f"{name}.ckpt"
            entry = torch.load(target, weights_only=True)["RolloutDataModule"]
            (found,) = read(find_sidecar(target, entry["texts"], 0, "texts"))
            assert found.keys == known
        path = tmp_path / "b" / "y.ckpt"
    assert not list(tmp_path.rglob(".*"))


def test_encoders_of_dictionaries_remember_each_their_own(tmp_path):
    """By the order in which they stand in the state."""
    import gymnasium as gym

    from rl_lightning.core.types import EnvSpec

    text = gym.spaces.Text(100)
    spec = EnvSpec(gym.spaces.Dict({"a": text, "b": text}), gym.spaces.Discrete(2), "Two-v0")
    make = partial(
        DictEncoder, encoders={"a": encoder(tmp_path), "b": encoder(tmp_path, cache_size=9)}
    )
    one, other = make(spec), make(spec)
    one.preprocess({"a": ("x", "y"), "b": ("z", "z")})
    state, found = take_out(one.collection_state())
    assert [part.keys for part in found] == [["x", "y"], ["z"]]
    folder = write(RememberedFiles(), tmp_path / "out", *found)
    other.load_collection_state(put_back(state, read(folder)))
    again = other.collection_state()
    assert {name: part["remembered"].keys for name, part in again.items()} == {
        "a": ["x", "y"], "b": ["z"],
    }  # fmt: skip


def test_a_checkpoint_that_goes_elsewhere_holds_everything(tmp_path, monkeypatch):
    from rl_lightning.data.resume import sidecar

    agent, _, trainer, _ = run(tmp_path, "a", 1)
    monkeypatch.setattr(sidecar, "is_remote", lambda path: True)
    target = tmp_path / "remote.ckpt"
    trainer.save_checkpoint(target)
    entry = torch.load(target, weights_only=True)["RolloutDataModule"]
    assert entry["texts"] is None
    assert entry["ranks"][0]["encoder"]["remembered"]["keys"] == agent.encoder.cache.state().keys
    monkeypatch.undo()
    assert Path(target).is_file()
    agent, *_ = run(tmp_path, "b", 2, target)
    whole, *_ = run(tmp_path, "c", 2)
    same_weights(whole, agent)


def test_checkpoints_of_one_stem_keep_their_folders(tmp_path):
    *_, trainer, _ = run(tmp_path, "a", 1)
    for name in ("model.v1", "model.v2", "model"):
        trainer.save_checkpoint(tmp_path / "b" / name)
    for name in ("model.v1", "model.v2", "model"):
        path = tmp_path / "b" / name
        entry = torch.load(path, weights_only=True)["RolloutDataModule"]
        assert read(find_sidecar(path, entry["texts"], 0, "texts"))


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part | {"rows": part["rows"][:, :3]},
        lambda part: part | {"rows": part["rows"][:, :1]},
        lambda part: part | {"rows": part["rows"][:, 0]},
        lambda part: part | {"rows": part["rows"].double()},
        lambda part: part | {"rows": part["rows"] * float("nan")},
        lambda part: part | {"keys": [part["keys"][0]] * len(part["keys"])},
        lambda part: part | {"keys": [["a"]] * len(part["keys"])},
        lambda part: part | {"serials": part["serials"] * 0},
        lambda part: part | {"serials": part["serials"].float()},
    ],
)
def test_files_with_other_things_than_rows_are_told_and_computed_anew(change, tmp_path):
    *_, path = run(tmp_path, "a", 1)
    (folder,) = sidecars(path)
    (file,) = (p for p in (folder / "rank0").iterdir() if p.name != "state.pt")
    torch.save(change(torch.load(file, weights_only=True)), file)
    with pytest.warns(UserWarning, match=r"damaged .*|computed anew"):
        agent, *_ = run(tmp_path, "b", 2, path)
    assert len(agent.encoder.cache) > 5


def test_another_cache_in_the_middle_of_a_run_is_saved_as_it_is(tmp_path):
    files = RememberedFiles()
    first = TextCache(9, 2)
    first.get(("1", "2"), rows)
    write(files, tmp_path / "a", first.state())
    second = TextCache(9, 2)
    second.get(("7", "8"), rows)
    assert equal(read(write(files, tmp_path / "b", second.state()))[0], second.state())


def test_a_search_for_a_learning_rate_keeps_what_is_remembered(tmp_path):
    from lightning.pytorch.callbacks import LearningRateFinder

    *_, path = run(tmp_path, "a", 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "what was remembered")
        agent, data = begin(tmp_path)
        finder = LearningRateFinder(num_training_steps=3, update_attr=False)
        make_trainer(max_epochs=3, callbacks=[finder], gradient_clip_val=None).fit(
            agent, data, ckpt_path=path
        )
