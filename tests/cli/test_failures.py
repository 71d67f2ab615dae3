"""What ends a run: one sentence where it is no defect of the library, its traceback where it is."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_lightning.cli.failures import explain_failure
from rl_lightning.cli.parser import check_devices, check_parsed
from rl_lightning.core.errors import ConfigurationError, RunError

FAILURES = {
    "configuration": (ConfigurationError("wrong"), "wrong", 2),
    "run": (RunError("broken"), "broken", 1),
    "memory": (MemoryError("Unable to allocate 3 TiB"), "not enough memory .*3 TiB", 1),
    "numpy": (ValueError("array is too big; `arr.size ..."), "not enough memory", 1),
    "gpu": (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory", 1),
    "disk": (PermissionError(13, "Permission denied", "/x/last.ckpt"), "/x/last.ckpt: Perm", 1),
    "scheduler": (
        MisconfigurationException(
            "ReduceLROnPlateau conditioned on metric val/los which is not available. Available "
            "metrics are: ['step', 'loss/value', 'val/loss']. Condition can be set using ..."
        ),
        "ReduceLROnPlateau: no metric 'val/los' is logged; there is val/loss, loss/value$",
        2,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_that_is_no_defect_is_one_sentence(name):
    error, message, status = FAILURES[name]
    found = explain_failure(error)
    assert found is not None
    assert re.search(message, found[0])
    assert found[1] == status


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes differ"), ValueError("?")])
def test_a_defect_keeps_its_traceback(error):
    assert explain_failure(error) is None


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:4",
        "[..] Read error [127.0.0.1]:4: Connection reset by peer",
        "NCCL communicator was aborted on rank 1. remote process exited or there was a network err",
    ],
)
def test_a_rank_that_lost_another_says_so(message, monkeypatch):
    assert explain_failure(RuntimeError(message)) is None  # without ranks it is something else
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    text, status = explain_failure(RuntimeError(message))  # type: ignore[misc]
    assert text.startswith("rank 1 stops, because another rank is gone")
    assert status == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${nowhere}", "there is no nowhere"),
        ("${oc.env:NO_SUCH_WORD}", "'NO_SUCH_WORD' not found"),
        ("${nonsense:1}", "Unsupported interpolation type nonsense"),
        ("${", "no viable alternative at input"),
    ],
)
def test_an_interpolation_that_leads_nowhere_names_its_argument(value, message):
    given = {"fit": {"data": {"init_args": {"num_envs": value}}}}
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.to_container(OmegaConf.create(given), resolve=True)
    text, status = explain_failure(caught.value)  # type: ignore[misc]
    assert text.startswith("data.num_envs: the interpolation ${…} cannot be resolved: ")
    assert message in text
    assert status == 2


def machine(device, processes):
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, num_devices=processes)


def test_what_the_machine_is_not_made_for_is_refused():
    for precision in (16, "16", "16-mixed"):
        with pytest.raises(ConfigurationError, match=f"trainer.precision: {precision} computes"):
            check_devices(machine("cpu", 1), precision)
        check_devices(machine("cuda", 1), precision)
    check_devices(machine("cpu", 2), "bf16-mixed")
    with pytest.raises(ConfigurationError, match=r"trainer\.devices: 2000 would start"):
        check_devices(machine("cpu", 2000), None)


def parsed(**changes):
    agent = {"class_path": "rl_lightning.agents.PPO", "init_args": {"gamma": 0.9}}
    data = {"class_path": "rl_lightning.data.RolloutDataModule", "init_args": {"env": "X-v0"}}
    sections = {"model": agent, "data": data, "trainer": Namespace(), "checkpoint": Namespace()}
    return Namespace({"seed_everything": 1, **sections, **changes})


def test_what_the_parser_lets_pass_is_refused():
    check_parsed(parsed())
    for changes, message in (
        ({"seed_everything": 2**32}, "seed_everything must be at most 4,294,967,295"),
        ({"trainer": 5}, "trainer: expected a mapping of its arguments, not 5"),
        ({"checkpoint": [1]}, r"checkpoint: expected a mapping of its arguments, not \[1\]"),
        ({"trainer": Namespace(max_time=math.nan)}, "trainer.max_time: expected a number"),
        (
            {"data": {"class_path": "rl_lightning.data.RLDataModule"}},
            "data: RLDataModule is what others are derived from; choose one of .*Rollout",
        ),
        (
            {
                "data": {
                    "class_path": "rl_lightning.data.RolloutDataModule",
                    "init_args": {"val_seed": None, "seed": None},
                }
            },
            "data.val_seed: null is no value",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_parsed(parsed(**changes))
