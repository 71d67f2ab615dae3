"""Tests that open a group of ranks, each in a process of its own: `alone.py FILE NAME ARGUMENT…`.

Gloo's threads outlive what they were started for. When one of them lets go of the group's last
reference, or waits for Python's lock while the group is closed under it, the process aborts or
stands still, seldom and in a later test. So the group is never opened beside other tests, and never
closed at all: the process ends as it stands.
"""

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist


def run_alone(file: str, name: str, folder: Path, *arguments: str) -> None:
    """Call `name(*arguments)` of a file in the only rank of a group, in a new process.

    Raises:
        AssertionError: With what the process wrote, if the function raised.
    """
    command = [sys.executable, __file__, str(Path(folder) / "store"), file, name, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env=env, text=True, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert ended.returncode == 0, f"exit status {ended.returncode}: {ended.stdout[-3000:]}"


def _main(store: str, file: str, name: str, *arguments: str) -> None:
    sys.path[:0] = [str(Path(file).parent), str(Path(__file__).parent)]
    module = importlib.import_module(Path(file).stem)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    getattr(module, name)(*arguments)


if __name__ == "__main__":
    status = 0
    try:
        _main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
