"""What two ranks (gloo) learn together is what one process learns from the completions of both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from token_tools import characters

sys.path.insert(0, str(Path(__file__).parent))
from token_ranks_script import CASES, gradient

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("token_ranks_script.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    model = characters(folder / "characters")
    runs = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), model, str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said[-3000:]
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    return model, *found


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_two_ranks_gradients_is_that_of_all_completions(name, ranks):
    model, first, second = ranks
    whole = gradient(name, model, slice(0, 4))
    assert whole.abs().max() > 1e-4
    assert (first[name] - second[name]).abs().max() > 1e-4  # of different completions
    mean = (first[name] + second[name]) / 2
    torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


def test_statistics_are_means_over_the_ranks_that_have_them(ranks):
    for rank in ranks[1:]:
        assert rank["means"] == {"reward": 0.5, "reward/rare": 3.0}
