"""Running one measurement in a process of its own."""

import json
import logging
import os
import subprocess
import sys
import warnings
from typing import Any


def run_apart(script: str, *arguments: object) -> dict[str, Any]:
    """Run `script --run ARGUMENTS` with one thread; returns the JSON of its last line.

    Raises:
        SystemExit: If it fails, with what it wrote to stderr.
    """
    command = [sys.executable, script, "--run", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def prepare_process() -> None:
    """One thread, no noise, and torch's compiler imported before any clock runs."""
    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    # The first optimizer of a process imports the compiler: seconds that are nobody's fault.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
