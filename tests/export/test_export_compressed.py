"""Policies in few bits stay small as graphs, and act as before."""

import re
import subprocess
import sys
import zipfile
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from export_tools import opinionated

from rl_lightning import PPO, ActorCritic, EnvSpec
from rl_lightning.compress import quantise
from rl_lightning.core.errors import RunError
from rl_lightning.export import export_policy, run_exported

SPEC = EnvSpec(gym.spaces.Box(-1, 1, (8,), np.float32), gym.spaces.Discrete(4))
WEIGHTS = 8 * 128 + 128 * 128 + 128 * 4


def policy(bits=None):
    agent = opinionated(PPO(SPEC, network=partial(ActorCritic, hidden=[128, 128])))
    if bits is not None:
        agent.compress(partial(quantise, bits=bits))
    return agent.eval()


@pytest.mark.parametrize(
    "bits", [8, 5, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (16, 7, 4, 3, 2, 1))]
)
@pytest.mark.parametrize(
    ("format", "around"),
    [("onnx", 34_000), pytest.param("torch", 120_000, marks=pytest.mark.slow)],
)
def test_the_graph_holds_packed_weights(bits, format, around, tmp_path):
    export_policy(policy(bits), tmp_path / "out", format)  # which compares it with the agent
    name = {"onnx": "policy.onnx", "torch": "policy.pt2"}[format]
    size = (tmp_path / "out" / name).stat().st_size
    around *= 1 + 0.25 * (bits in (3, 5)) + 0.5 * (bits == 7)  # which are put together bit by bit
    assert WEIGHTS * bits / 8 < size < WEIGHTS * bits / 8 + around


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_no_file_of_this_machine_is_named(format, tmp_path):
    export_policy(policy(), tmp_path / "out", format)
    if format == "onnx":
        written = (tmp_path / "out" / "policy.onnx").read_bytes()
    else:
        with zipfile.ZipFile(tmp_path / "out" / "policy.pt2") as file:
            written = b"".join(file.read(name) for name in file.namelist())
    assert not re.findall(rb"/[\w./-]+\.py\b", written)


def test_what_cannot_be_loaded_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def broken(path, threads):
        raise RuntimeError("Type Error: int8 != uint8")

    monkeypatch.setattr(run_exported, "_onnx", broken)
    with pytest.raises(RunError, match=r"cannot be loaded: .*uint8; use --format torch"):
        export_policy(policy(), tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_another_environment_is_a_sentence(tmp_path):
    export_policy(policy(), tmp_path / "out", "onnx")
    for env, said in (
        ("CartPole-v1", r"--env CartPole-v1: observation: shape \[4\] instead of \[8\]"),
        ("Nowhere-v0", "--env: Environment `Nowhere` doesn't exist.* --env package:Nowhere-v0"),
    ):
        command = [sys.executable, "run_exported.py", "--env", env]
        done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
        assert done.returncode == 1
        assert re.search(said, done.stderr)
        assert "Traceback" not in done.stderr
