"""Two processes (gloo) tune one model by different prompts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from token_tools import characters

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("prompts_ddp_script.py")


@pytest.mark.parametrize(
    "kind", ["GRPO", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("SFT", "DPO"))]
)
def test_two_ranks_are_asked_different_prompts_and_tune_one_model(kind, tmp_path):
    model = characters(tmp_path / "characters")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), model, str(tmp_path), kind],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert len(first["asked"]) == len(second["asked"]) == 4
    # Seven prompts are trained on: a pass of both ranks together has each of them once.
    both = [
        text
        for pair in zip(first["asked"], second["asked"], strict=True)
        for texts in zip(*pair, strict=True)
        for text in texts
    ]
    assert len(both) == 16
    assert len(set(both[:7])) == 7
    assert set(both[7:14]) == set(both[:7])
    assert first["written"] != second["written"]
    assert first["frames"] == second["frames"] == {"GRPO": 16}.get(kind, 4)
    assert first["metrics"] == second["metrics"]
    assert {"GRPO": "val/reward"}.get(kind, "val/loss") in first["metrics"]
    states = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
