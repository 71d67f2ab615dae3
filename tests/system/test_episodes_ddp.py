"""Two processes (gloo) learn one policy from episodes of different seeds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from token_tools import characters

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("episodes_ddp_script.py")


def ended(tmp_path, *more):
    """What two ranks have come to."""
    model = characters(tmp_path / "characters", positions=128)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), model, str(tmp_path), *more],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]


@pytest.mark.slow
def test_success_that_one_rank_alone_speaks_of(tmp_path):
    for rank in ended(tmp_path, "seldom"):
        assert rank["heard"]
        assert rank["metrics"]["train/success"] == 0.25
        assert rank["metrics"]["val/success"] == rank["metrics"]["val/pass@1"]
        assert rank["metrics"]["val/success"] == pytest.approx(0.2)


@pytest.mark.slow
def test_two_ranks_play_different_seeds_and_learn_one_policy(tmp_path):
    first, second = ended(tmp_path)
    train = [[s[1:] for s in rank["seeds"] if s[0] == "train"] for rank in (first, second)]
    assert train == [[[0, 2, 4, 6], [8, 10, 12, 14]], [[1, 3, 5, 7], [9, 11, 13, 15]]]
    val = [[s[1:] for s in rank["seeds"] if s[0] == "val"][-1] for rank in (first, second)]
    assert val == [[0, 2, 4], [1, 3]]
    assert first["frames"] == second["frames"] == 16
    assert first["metrics"] == second["metrics"]
    states = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
