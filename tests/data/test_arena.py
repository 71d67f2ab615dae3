"""Snapshots of a replay buffer, and its arrays on disk."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replay_tools import Game, contents, features, same, tokens

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.replay import arrays as arena
from rl_lightning.data.replay.buffer import ReplayBuffer
from rl_lightning.data.replay.storage import action_example

KINDS = {
    "plain": {"mask": True},
    "stack": {"stack": 4, "kind": "image", "frames": 120},
    "stack-nested": {"stack": 3, "kind": "nested", "frames": 120, "prioritized": True},
    "prioritized": {"prioritized": True, "dtype": np.float16},
    "episodes": {"episodes": True, "longest": 30},
    "features": {"preprocess": features, "repeats": True, "prioritized": True},
    "tokens": {"preprocess": tokens, "repeats": True, "episodes": True},
    "everything": {"stack": 2, "kind": "nested", "prioritized": True, "episodes": True},
}


def save(game, folder):
    """A snapshot, the rest of it through a file as in a real run."""
    folder.mkdir()
    torch.save(game.buffer.save(folder), folder / "state.pt")


def load(game, folder, **kwargs):
    buffer = game.make_buffer()
    state = torch.load(folder / "state.pt", weights_only=True)
    action = action_example(game.env.single_action_space, buffer.num_envs)
    buffer.load(folder, state, game.collector.x, action)
    return buffer


@pytest.fixture
def _small_chunks(monkeypatch):
    monkeypatch.setattr(arena, "CHUNK_BYTES", 128)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_snapshot_stays_what_the_buffer_was(kind, next_step, tmp_path):
    game = Game(**{"frames": 60, "next_step": next_step, **KINDS[kind]})
    rng = np.random.default_rng(0)
    saved = []
    for number in range(30):
        game.play(int(rng.choice([1, 2, 3, 8, 40])))
        if game.buffer.priorities is not None:
            index, _ = game.buffer.draw_by_priority(8, 1.0)
            game.buffer.set_priorities(index, torch.rand(8) + 0.1)
        folder = tmp_path / str(number)
        save(game, folder)
        saved.append((folder, contents(game.buffer)))
        restored = load(game, folder)
        same(contents(restored), saved[-1][1])
        if rng.random() < 0.3:  # go on with the copy, which has to save as well as the original
            game.buffer = restored
        if len(saved) > 4:  # old ones stay whole, whichever of those around them are deleted
            old, then = saved.pop(int(rng.integers(4)))
            same(contents(load(game, old)), then)
            shutil.rmtree(old)
        game.check(n_step=2, rounded=torch.float16 if kind == "prioritized" else None)
    assert game.buffer._counts.min() > 4 * game.buffer.rows


def files(folder):
    return {f.name: f.stat().st_ino for f in sorted(folder.glob("*.npy"))}


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("kind", ["plain", "stack", "features"])
def test_what_has_not_changed_is_linked(kind, tmp_path):
    game = Game(**{"frames": 600, "num_envs": 1, **KINDS[kind]})
    game.play(400)
    for name in "abc":
        save(game, tmp_path / name)
        game.play(5 if name == "b" else 0)
    a, b, c = (files(tmp_path / name) for name in "abc")
    for before, after in [(a, b), (b, c)]:  # nothing happened but a look at the newest row; 5 steps
        changed = {name for name in after if after[name] != before.get(name)}
        assert 0 < len(changed) < len(after) / 4
    tables = [name for name in b if ".table" in name]
    assert bool(tables) == (kind == "features")
    assert all(a[name] == b[name] for name in tables)
    names = {name.partition(".")[0] for name in changed}
    assert {"flags", "reward", "action", "obs"} <= names


def test_a_snapshot_without_the_one_before_it_is_written_whole(tmp_path):
    game = Game(frames=60, prioritized=True)
    game.play(10)
    save(game, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    save(game, tmp_path / "b")
    same(contents(load(game, tmp_path / "b")), contents(game.buffer))


@pytest.mark.parametrize("kind", ["plain", "features", "everything"])
@pytest.mark.parametrize("size", [64, 512])
def test_chunks_of_another_size_are_read_as_well(kind, size, tmp_path, monkeypatch):
    monkeypatch.setattr(arena, "CHUNK_BYTES", 128)
    game = Game(**{"frames": 600, **KINDS[kind]})
    game.play(60)
    save(game, tmp_path / "a")
    monkeypatch.setattr(arena, "CHUNK_BYTES", size)
    game.buffer = load(game, tmp_path / "a")
    game.play(3)
    save(game, tmp_path / "b")
    same(contents(load(game, tmp_path / "b")), contents(game.buffer))


def test_where_there_are_no_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    game = Game(frames=60)
    game.play(10)
    for name in "ab":
        save(game, tmp_path / name)
    assert set(files(tmp_path / "a").values()).isdisjoint(files(tmp_path / "b").values())
    same(contents(load(game, tmp_path / "b")), contents(game.buffer))


def test_what_does_not_fit_is_refused(tmp_path):
    game = Game(frames=60)
    game.play(10)
    save(game, tmp_path / "a")
    game.make_buffer = lambda: ReplayBuffer(90, 3)
    with pytest.raises(ConfigurationError, match="has 21 rows for 3 environments, this one 31"):
        load(game, tmp_path / "a")
    game.make_buffer = lambda: ReplayBuffer(60, 3, dtype=np.float16, action_dtype=np.uint8)
    with pytest.raises(ConfigurationError, match=r"hold obs as float32 \(3,\), this run has"):
        load(game, tmp_path / "a")
    game.make_buffer = lambda: ReplayBuffer(60, 3, action_dtype=np.uint8)
    chunk = tmp_path / "a" / "reward.000000000000.npy"
    np.save(chunk, np.zeros(0, np.float32))
    with pytest.raises(ConfigurationError, match=r"incomplete: .*reward.* is empty"):
        load(game, tmp_path / "a")
    chunk.unlink()
    with pytest.raises(ConfigurationError, match=r"incomplete: no .*reward"):
        load(game, tmp_path / "a")


def test_priorities_can_be_switched_on_when_going_on(tmp_path):
    game = Game(frames=60)
    game.play(30)
    save(game, tmp_path / "a")
    game.make_buffer = lambda: ReplayBuffer(60, 3, action_dtype=np.uint8, prioritized=True)
    restored = load(game, tmp_path / "a")
    assert np.array_equal(
        restored.priorities.tree.leaves > 0, (game.buffer.flags & 1).numpy().astype(bool)
    )
    assert set(restored.priorities.tree.leaves) == {0.0, 1.0}


# --- on disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_disk_equals_memory(kind, tmp_path):
    games = [Game(**{"frames": 60, **KINDS[kind]}, folder=f) for f in (None, tmp_path)]
    for game in games:
        torch.manual_seed(0)
        for _ in range(5):
            game.play(21)
            game.buffer.arena.release()
    same(contents(games[0].buffer), contents(games[1].buffer))
    kinds = {type(array) for array in games[1].buffer.arena.arrays.values()}
    assert kinds == {np.memmap}


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_release_gives_memory_back_and_keeps_the_contents(tmp_path):
    made = arena.Arena(tmp_path)
    array = made.new("x", 64, (2**20,), np.uint8)
    before = resident()
    array[:] = np.arange(64, dtype=np.uint8)[:, None]
    full = resident()
    assert full - before > 60 * 2**20
    made.release()
    assert resident() - before < 8 * 2**20
    assert array.sum(dtype=np.int64) == 2**20 * 64 * 63 // 2


def test_files_on_disk_have_no_name_and_so_cannot_be_left_behind(tmp_path):
    made = arena.Arena(tmp_path / "there")
    array = made.new("x", 4, (3,), np.float32)
    array[:] = 5
    made.release()
    assert (array == 5).all()
    assert list((tmp_path / "there").iterdir()) == []


def test_too_large_a_buffer_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"buffer_frames: .* GiB on disk are needed"):
        ReplayBuffer(10**16, 1, folder=tmp_path)
    made = arena.Arena(tmp_path)
    half = int(shutil.disk_usage(tmp_path).free * 0.6)
    made.new("x", 1, (half,), np.uint8)
    with pytest.raises(ConfigurationError, match="storage_dir"):  # both together are too large
        made.new("y", 1, (half,), np.uint8)
    with pytest.raises(ConfigurationError, match=r"rows of x \(1000000,\) need .*storage: disk"):
        arena.Arena().new("x", 10**11, (10**6,), np.uint8)
