"""Running one measurement in a process of its own."""

import json
import logging
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm


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


def compare(
    script: str,
    settings: Mapping[str, tuple[object, ...]],
    pairs: int,
    keep: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, dict[str, Any]]:
    """Run both libraries in turn, pair by pair, and take medians over the pairs.

    Args:
        script: Runs one of them: `script --run LIBRARY ARGUMENTS SEED`, see `run_apart`.
        settings: Name → arguments.
        pairs: Pairs of runs, with seeds from 1.
        keep: Is given the rows so far after each pair.
    """
    rows: dict[str, dict[str, Any]] = {}
    with tqdm(total=2 * pairs * len(settings), unit="run") as bar:
        for name, arguments in settings.items():
            runs = []
            for seed in range(1, pairs + 1):
                pair = {}
                order = ("rl_lightning", "sb3")  # in turn: whatever slows the machine hits both
                for library in order if seed % 2 else reversed(order):
                    pair[library] = run_apart(script, library, *arguments, seed)
                    bar.update()
                runs.append(pair)
                rows[name] = {"pairs": runs, **summary(runs)}
                keep(rows)
    return rows


def summary(pairs: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Medians over the pairs."""
    ratios = [p["rl_lightning"]["fps"] / p["sb3"]["fps"] for p in pairs]
    median = statistics.median
    own = [p["rl_lightning"]["products"] for p in pairs if "products" in p["rl_lightning"]]
    return {
        **({"products": median(own)} if own else {}),
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours": median(p["rl_lightning"]["fps"] for p in pairs),
        "theirs": median(p["sb3"]["fps"] for p in pairs),
        "return": statistics.mean(p["rl_lightning"]["return"] for p in pairs),
        "their_return": statistics.mean(p["sb3"]["return"] for p in pairs),
    }
