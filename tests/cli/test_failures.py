"""What ends a run: one sentence where it is no defect of the library, its traceback where it is."""

import re

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from rl_lightning.errors import ConfigurationError, RunError
from rl_lightning.failures import explain_failure

FAILURES = {
    "configuration": (ConfigurationError("wrong"), "wrong", 2),
    "run": (RunError("broken"), "broken", 1),
    "memory": (MemoryError("Unable to allocate 3 TiB"), "not enough memory .*3 TiB", 1),
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
