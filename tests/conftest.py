"""Settings of the whole test run: one thread a process, no network, no noise."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import logging

import probes  # noqa: F401  (registers the probe environments)
import pytest
import torch

torch.set_num_threads(1)


def _no_group(*_, **__):
    raise RuntimeError("no group of ranks in the process of all tests: see tests/alone.py")


torch.distributed.init_process_group = _no_group


@pytest.fixture(autouse=True)
def _quiet():
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
