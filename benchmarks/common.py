"""Running one measurement in a process of its own."""

import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


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


def quiet_trainer(**arguments: Any) -> Any:
    """A trainer on the CPU that does nothing but train: no bar, logger, checkpoint, validation."""
    import lightning as L

    quiet: dict[str, Any] = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**quiet, **arguments})


def timed(call: Callable[[], T]) -> tuple[dict[str, float], T]:
    """What a call took, `seconds` by the clock and `cpu` seconds, and what it returned."""
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    took = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return took, result


def compare(
    script: str,
    settings: Mapping[str, tuple[object, ...]],
    pairs: int,
    keep: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
    earlier: Mapping[str, list[dict[str, Any]]] | None = None,
    together: bool = False,
    against: str = "sb3",
) -> dict[str, dict[str, Any]]:
    """Run two libraries in turn, pair by pair, and take medians over the pairs.

    Args:
        script: Runs one of them: `script --run LIBRARY ARGUMENTS SEED`, see `run_apart`.
        settings: Name → arguments.
        pairs: Pairs of runs; seeds are the numbers of the pairs.
        keep: Is given the rows so far after each pair.
        earlier: Name → pairs measured before, which these are added to.
        together: Run the two of a pair at the same time, where there are two cores for them: half
            the time, for returns. It says nothing of speed.
    """
    rows: dict[str, dict[str, Any]] = {}
    with tqdm(total=2 * pairs * len(settings), unit="run") as bar:
        for name, arguments in settings.items():
            runs = list((earlier or {}).get(name, ()))
            for seed in range(len(runs) + 1, len(runs) + pairs + 1):
                order = ["rl_lightning", against]  # in turn: whatever slows the machine hits both
                if seed % 2 == 0:
                    order.reverse()
                play = partial(run_apart, script)
                if together:
                    with ThreadPoolExecutor() as pool:
                        jobs = [pool.submit(play, k, *arguments, seed) for k in order]
                        results = [job.result() for job in jobs]
                else:
                    results = [play(k, *arguments, seed) for k in order]
                bar.update(len(order))
                pair: dict[str, Any] = dict(zip(order, results, strict=True))
                runs.append({**pair, "together": True} if together else pair)
                rows[name] = {"pairs": runs, **summary(runs)}
                keep(rows)
    return rows


def other_library(pair: Mapping[str, Any]) -> str:
    """The one of a pair that is not ours."""
    (name,) = set(pair) - {"rl_lightning", "together"}
    return name


def summary(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the pairs that ran in turn, if any did; means and spreads of all returns."""
    timed = [p for p in pairs if not p.get("together")]
    other = other_library(pairs[0])
    row = {}
    if timed:
        ratios = [p["rl_lightning"]["fps"] / p[other]["fps"] for p in timed]
        own = [p["rl_lightning"]["products"] for p in timed if "products" in p["rl_lightning"]]
        cpu = [p[other]["cpu"] / p["rl_lightning"]["cpu"] for p in timed if "cpu" in p[other]]
        row = {
            **({"products": statistics.median(own)} if own else {}),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            **({"cpu_ratio": statistics.median(cpu)} if cpu else {}),
            "ours": statistics.median(p["rl_lightning"]["fps"] for p in timed),
            "theirs": statistics.median(p[other]["fps"] for p in timed),
        }
    for name, library in (("return", "rl_lightning"), ("their_return", other)):
        returns = [p[library]["return"] for p in pairs]
        row[name] = statistics.mean(returns)
        row[f"{name}_std"] = statistics.stdev(returns) if len(returns) > 1 else 0.0
    return row
