"""Two processes (gloo) learn one policy from two sets of environments."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from llm_tiny import tiny_model

import rl_lightning.core.types  # noqa: F401  (lets `weights_only` load an EnvSpec)

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("ddp_script.py")


def run(case, folder, *more):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), case, str(folder), *map(str, more)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):  # threads of an open group can abort a process that ends
        assert json.loads((folder / f"open{rank}.json").read_text()) is False
    ranks = [json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1)]
    states = [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    return ranks, states


def check(ranks, states, rollouts):
    assert ranks[0] == ranks[1]
    assert ranks[0]["frames"] == rollouts * 4 * 32 * 2  # both ranks' frames
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for key, value in states[0]["state"].items():
        assert torch.equal(value, states[1]["state"][key]), key
    # Each rank has its own environments and its own random numbers.
    assert not torch.equal(states[0]["action"], states[1]["action"])


def test_two_ranks_learn_one_policy_with_one_set_of_statistics(tmp_path):
    ranks, states = run("cartpole", tmp_path)
    check(ranks, states, rollouts=4)
    # The KL stop skipped minibatches, the same ones on both ranks.
    assert 0 < ranks[0]["updates"] < ranks[0]["batches"] == 4 * 3 * 2
    # Observation statistics count both ranks' observations: 4 rollouts of 32 steps and the reset.
    count = states[0]["state"]["policy.encoder.norm.running.moments"][0]
    assert (count == 2 * 4 * (4 * 32 + 1)).all()


@pytest.mark.slow
def test_bf16_mixed_and_resuming_on_two_ranks(tmp_path):
    ranks, states = run("bf16", tmp_path)
    check(ranks, states, rollouts=4)
    ranks, states = run("bf16", tmp_path, tmp_path / "last.ckpt")
    check(ranks, states, rollouts=6)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved = checkpoint["RolloutDataModule"]["ranks"]
    assert len(saved) == 2
    assert not torch.equal(saved[0]["collector"]["x"], saved[1]["collector"]["x"])


@pytest.mark.slow
@pytest.mark.pretrained
def test_frozen_language_model_on_two_ranks(tmp_path):
    ranks, states = run("llm", tmp_path)
    check(ranks, states, rollouts=4)


@pytest.mark.slow
def test_adapters_of_a_model_that_acts_are_equal_on_two_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_MODEL", tiny_model("llama", tmp_path / "llama", layers=1))
    ranks, states = run("lora", tmp_path / "run")
    check(ranks, states, rollouts=4)
    adapters = [value for key, value in states[0]["state"].items() if "lora_B" in key]
    assert adapters
    assert all(value.abs().sum() > 0 for value in adapters)  # they were trained


def test_the_command_line_trains_on_two_ranks(tmp_path):
    command = [sys.executable, "-m", "rl_lightning", "fit", "--config"]
    command += ["tests/cartpole.yaml", "--trainer.strategy=ddp", "--trainer.devices=2"]
    command += ["--trainer.precision=bf16-mixed", "--trainer.logger=false"]
    command += ["--data.total_frames=8192", "--data.rollouts_per_epoch=8", "--data.val_episodes=4"]
    done = subprocess.run(
        [*command, f"--checkpoint.dirpath={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained 8,192 of 8,192 frames" in done.stdout
    assert done.stdout.count("trained") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_with_one_sentence(rank, tmp_path):
    command = [sys.executable, "-m", "rl_lightning", "fit", "--config", "tests/cartpole.yaml"]
    command += ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.logger=false"]
    command += ["--data.total_frames=1e9", "--data.rollouts_per_epoch=2", "--data.passes=1"]
    command += ["--trainer.enable_progress_bar=false"]  # the killed one's would stand unfinished
    with subprocess.Popen(
        [*command, f"--checkpoint.dirpath={tmp_path}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as parent:
        while not (tmp_path / "last.ckpt").exists():  # both are training
            assert parent.poll() is None
            time.sleep(0.1)
        os.kill(parent.pid if rank == 0 else child_of(parent.pid), signal.SIGKILL)
        errors = parent.communicate(timeout=120)[1]  # until the other has closed it too
    lines = [line for line in errors.splitlines() if line.startswith("rl-lightning: error")]
    assert len(lines) == 1
    assert f"rank {1 - rank} stops, because another rank is gone" in lines[0]
    assert "Traceback" not in errors
    assert "gloo" not in lines[0]
    assert parent.returncode == (1 if rank else -signal.SIGKILL)


def child_of(parent):
    """The process that a rank 0 has started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # ended meanwhile
            continue
        if above == parent and b"fit" in words:
            return int(path.name)
    raise AssertionError("there is no second rank")
