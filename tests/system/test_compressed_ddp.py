"""Two processes (gloo) exchange small gradients."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from compressed_ddp_script import FULL, OneWeight
from torch.utils.data import DataLoader

from rl_lightning import CompressGradients
from rl_lightning.cli.command import main
from rl_lightning.compress.gradient_messages import count_of, thin_rank
from rl_lightning.compress.gradients import METHODS
from rl_lightning.core.errors import ConfigurationError

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("compressed_ddp_script.py")


def run(parts, folder):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), parts, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1)]
    states = [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for case, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][case][name]), (case, name)
    return told, states[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One start of two processes for all that is looked at."""
    return run("methods,halves,lost,resume", tmp_path_factory.mktemp("compressed"))


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_every_update_is_compressed_and_its_bytes_are_those_handed_over(trained, method):
    told, states = trained
    shapes = [v.shape for name, v in states[method].items() if name.startswith("policy.")]
    sizes = [shape.numel() for shape in shapes]
    thin = [(shape, r) for shape in shapes if (r := thin_rank(shape, 1))]
    dense = sum(sizes) - sum(shape.numel() for shape, _ in thin)
    last = {
        "none": 4 * sum(sizes),
        "fp16": 2 * sum(sizes),
        "bf16": 2 * sum(sizes),
        "powersgd": 4 * (dense + sum((n + math.prod(m)) * r for (n, *m), r in thin)),
        "topk": 8 * sum(count_of(0.1, size) for size in sizes),
        "onebit": 4 * len(sizes) + math.ceil(sum(sizes) / 8),
    }[method]
    for rank in told:
        seen = rank[method]
        assert seen["size"] == sum(sizes)
        assert seen["updates"] == seen["agent"] == seen["steps"] == 12
        gathered = method in ("topk", "onebit")
        each = 3 if method == "powersgd" else 1
        assert seen["all_gather"] == (11 if gathered else 0)  # the first is sent in full
        assert seen["all_reduce"] == 1 + (0 if gathered else 11 * each)
        assert seen["bytes"] == 4 * sum(sizes) + 11 * last
        assert seen["last"] == last
        assert len(seen["logged"]) == seen["losses"] == 4
        for row in seen["logged"]:
            assert row["comm/bytes_per_update"] == last
            assert row["comm/compression"] == pytest.approx(4 * sum(sizes) / last)


def test_without_the_callback_nobody_is_called(trained):
    told, states = trained
    assert told[0]["None"]["bytes"] == told[0]["None"]["all_reduce"] == 0
    assert told[0]["None"]["logged"] == []
    assert same(states["None"], states["none"])  # what DDP does is done, to the last bit
    for method in METHODS[1:]:
        assert not same(states["None"], states[method])


def test_halves_are_averages_of_rounded_gradients(trained):
    told, _ = trained
    own, other = torch.tensor(FULL).half(), (-0.5 * torch.tensor(FULL)).half()
    expected = (own / 2 + other / 2).float().tolist()
    assert expected == [0.25, math.inf, 0.0, -0.8125]
    for rank in told:
        assert rank["halves1"] == {"seen": [expected] * 4, "updates": 4}
        # Of two batches that are accumulated (each counts half) one sum is sent.
        assert rank["halves2"]["updates"] == len(rank["halves2"]["seen"]) == 2
        assert rank["halves2"]["seen"] == [expected] * 2


@pytest.mark.parametrize("method", METHODS)
def test_nan_of_one_rank_reaches_all(trained, method):
    for rank in trained[0]:
        (gradient,) = rank[f"{method} lost"]["seen"]
        assert any(math.isnan(value) for value in gradient)


def check_resumed(trained, method):
    told, states = trained
    assert same(states[f"{method} whole"], states[f"{method} resumed"])
    # It would not be so without what was not sent.
    assert not same(states[f"{method} whole"], states[f"{method} forgotten"])
    for rank in told:
        assert rank[f"{method} resumed"]["updates"] == 24
        strange = rank[f"{method} strange"]
        assert strange["same"]["warnings"] == []
        assert strange["same"]["residuals"] > 0
        expected = {"ranks": "3 ranks, not 2", "shapes": "other parameters", "method": "method "}
        if method == "powersgd":
            expected["rank"] = "rank 3, not 1"
        else:
            assert strange["rank"] == strange["same"]
        for name, message in expected.items():
            assert strange[name]["residuals"] == 0
            assert strange[name]["updates"] == 24
            if rank is told[0]:
                (warning,) = strange[name]["warnings"]
                assert message in warning
                assert "residuals begin at zero" in warning


def test_a_resumed_run_goes_on_bit_for_bit(trained):
    check_resumed(trained, "onebit")


@pytest.mark.slow
def test_resumed_runs_of_other_methods_go_on_bit_for_bit(tmp_path):
    trained = run("resume_all", tmp_path)
    check_resumed(trained, "topk")
    check_resumed(trained, "powersgd")


@pytest.mark.slow
def test_agents_with_several_losses_and_accumulated_gradients(tmp_path):
    told, _ = run("agents", tmp_path)
    for rank in told:
        assert rank["accumulated"]["updates"] == rank["accumulated"]["agent"] == 6
        for case in ("sac onebit", "sac powersgd", "td3 onebit", "td3 powersgd"):
            assert rank[case]["updates"] == rank[case]["agent"] == 96


def test_one_device_has_nobody_to_send_to(tmp_path):
    states = {}
    for compress in (None, CompressGradients("onebit")):
        model = OneWeight()
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[compress] if compress else [],
        )
        batches = DataLoader(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        if compress is None:
            trainer.fit(model, batches)
        else:
            with pytest.warns(UserWarning, match="one device has nobody to send gradients to"):
                trainer.fit(model, batches)
            assert compress.measures() == compress.state_dict() == {}
        states[compress is None] = model.weight.detach().clone()
    assert torch.equal(states[True], states[False])


def test_strategies_and_precisions_that_do_not_fit_are_refused():
    compress, wrapped = CompressGradients("topk"), torch.nn.Linear(1, 1)
    trainer = SimpleNamespace(
        world_size=2, precision="32-true", strategy=SimpleNamespace(model=wrapped)
    )
    with pytest.raises(ConfigurationError, match=r"strategy is SimpleNamespace, .* use ddp"):
        compress.on_fit_start(trainer, wrapped)  # type: ignore[arg-type]
    ddp = torch.nn.parallel.DistributedDataParallel
    trainer.strategy.model = ddp.__new__(ddp)
    trainer.precision = "16-mixed"
    with pytest.raises(ConfigurationError, match=r"method='topk' .* use bf16-mixed"):
        compress.on_fit_start(trainer, wrapped)  # type: ignore[arg-type]


def command(tmp_path, *more):
    options = ["fit", "--config", "tests/cartpole.yaml", "--trainer.logger=false"]
    options += ["--trainer.callbacks+=rl_lightning.CompressGradients"]
    options += ["--trainer.callbacks.method=powersgd", "--trainer.callbacks.rank=1"]
    options += ["--data.total_frames=4096", "--data.rollouts_per_epoch=4", "--data.passes=2"]
    options += ["--data.val_episodes=4", f"--checkpoint.dirpath={tmp_path}"]
    return [*options, *more]


def test_the_command_line_takes_it(tmp_path):
    with pytest.warns(UserWarning, match="one device has nobody"):
        main(command(tmp_path))
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.slow
def test_the_command_line_compresses_on_two_ranks(tmp_path):
    more = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    done = subprocess.run(
        [sys.executable, "-m", "rl_lightning", *command(tmp_path, *more)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["CompressGradients"]
    assert state["method"] == "powersgd"
    assert len(state["ranks"]) == 2
    one, other = (rank["residuals"] for rank in state["ranks"])
    assert one
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(rank["updates"] == 8 * 2 for rank in state["ranks"])
