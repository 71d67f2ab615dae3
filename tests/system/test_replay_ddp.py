"""Two processes (gloo) learn one policy from two replay buffers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded import record

import rl_lightning.core.types  # noqa: F401  (lets `weights_only` load an EnvSpec)

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("ddp_replay_script.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder that all runs wrote to."""
    folder = tmp_path_factory.mktemp("ddp")
    record(folder / "recorded.hdf5", episodes=32)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    world["PYTHONPATH"] = str(SCRIPT.parents[1])  # the probes
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, **world, "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            _, error = rank.communicate(timeout=300)
            assert rank.returncode == 0, error[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    return folder


def check(folder):
    """What both ranks ended with, if it is what it should be."""
    ranks = [json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1)]
    states = [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for key in ("frames", "updates", "val"):
        assert ranks[0][key] == ranks[1][key], key
    for key, value in states[0]["state"].items():
        assert torch.equal(value, states[1]["state"][key]), key
    # Each rank has its own environments and its own random numbers.
    for key in ("obs", "action"):
        assert not torch.equal(states[0][key], states[1][key]), key
    return ranks[0], states


@pytest.mark.parametrize("case", ["dqn", "sac"])
def test_two_ranks_learn_one_policy_from_two_buffers_and_go_on(case, results):
    first, rest = results / case / "first", results / case / "rest"
    end, states = check(first)
    rows = [json.loads((first / f"rank{r}.json").read_text())["rows"] for r in (0, 1)]
    assert end["frames"] == sum(rows)
    # Warm-up counts the frames of both ranks, an epoch has 40 of each; resets of a native vector
    # env are none, so that it takes more epochs.
    epochs = end["updates"] // 20
    if case == "sac":
        assert (end["frames"], end["updates"]) == (240, 40)
    else:
        assert 240 <= end["frames"] < 240 + 80
        assert end["updates"] == 20 * epochs >= 40

    checkpoint = torch.load(first / "last.ckpt", weights_only=True)["ReplayDataModule"]
    assert len(checkpoint["ranks"]) == 2
    folder = first / checkpoint["replay"]
    saved = [torch.load(folder / f"rank{r}" / "state.pt", weights_only=True) for r in (0, 1)]
    assert sum(int(s["counts"].sum()) for s in saved) >= end["frames"]
    assert [p.name for p in first.iterdir() if p.is_dir()] == [folder.name]

    resumed, later = check(rest)
    assert end["frames"] < resumed["frames"] < 320 + 80
    assert resumed["updates"] < 60  # which beginning anew would take
    for rank in (0, 1):  # old rows are still there, on the rank that wrote them
        assert torch.equal(states[rank]["obs"], later[rank]["obs"])


def test_two_ranks_learn_one_policy_from_one_recording_and_go_on(results):
    """Equal networks, rows of their own: batches twice as large."""
    end, _ = check(results / "iql" / "first")
    assert (end["frames"], end["updates"]) == (40, 40)
    resumed, _ = check(results / "iql" / "rest")
    assert (resumed["frames"], resumed["updates"]) == (60, 20)
