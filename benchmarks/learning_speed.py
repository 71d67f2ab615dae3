"""How many frames each way of an experiment needs, over several seeds.

    python benchmarks/learning_speed.py benchmarks/comparisons/NAME.yaml --seeds 1 2 3 4 5
    python benchmarks/learning_speed.py benchmarks/comparisons/NAME.yaml --plot

A comparison names a `base` configuration and `arms`, each a piece of YAML that is laid over it:
mappings entry by entry, everything else replaced. One that is `like` another names its file, and a
`change` that is laid over the other's base: the same arms elsewhere. Every arm and seed is one
`rl-lightning fit` on one thread. What counts is the first validation that reaches `threshold`; a
run that never does counts as one that took longer than its budget. Results go to
`benchmarks/results/comparisons/NAME.json` as soon as a run is done, and the curves, their middle
and the quartiles of the seeds, to `docs/pictures/NAME.png`. Seeds that are there are not run again,
unless the arm has changed.
"""

import argparse
import copy
import json
import random
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from learning import RESULTS, RunError, cli, digest_of, render, scalars
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--arms", nargs="+", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--plot", action="store_true", help="run nothing, draw what is there")
    args = parser.parse_args()
    comparison = read(args.comparison)
    arms = comparison["arms"]
    if unknown := set(args.arms or ()) - set(arms):
        parser.error(f"--arms {sorted(unknown)}: the comparison has {sorted(arms)}")
    name = args.comparison.stem
    file = RESULTS / "comparisons" / f"{name}.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    digests = {arm: digest_of(configuration(comparison, arm)) for arm in arms}
    runs = [run for run in runs if run["digest"] == digests.get(run["arm"])]
    there = {(run["arm"], run["seed"]) for run in runs if "error" not in run}
    todo = [
        (arm, seed)
        for seed in args.seeds
        for arm in args.arms or arms
        if not args.plot and (arm, seed) not in there
    ]
    runs = [run for run in runs if (run["arm"], run["seed"]) not in todo]

    def one(job: tuple[str, int]) -> dict[str, Any]:
        return {"arm": job[0], "digest": digests[job[0]], **run_arm(comparison, *job)}

    file.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(todo), desc=name) as bar:
        for run in pool.map(one, todo):
            bar.update()
            if "error" in run:
                bar.write(f"{run['arm']}, seed {run['seed']}: {run['error']}", file=sys.stderr)
            runs = sorted([*runs, run], key=lambda r: (list(arms).index(r["arm"]), r["seed"]))
            file.write_text(render(result(name, comparison, runs)))
    final = result(name, comparison, runs)
    file.write_text(render(final))
    draw(final, PICTURES / f"{name}.png")
    print(table(final))
    sys.exit(1 if any("error" in run for run in runs) else 0)


def read(path: Path) -> dict[str, Any]:
    """A comparison, with what it takes over of the one that it is `like`."""
    comparison = yaml.safe_load(path.read_text())
    if "like" in comparison:
        return {**read(ROOT / comparison["like"]), **comparison}
    return comparison


def laid_over(base: Any, change: Any) -> Any:
    """`change` over `base`: mappings entry by entry, everything else replaced."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return copy.deepcopy(change)
    if "class_path" in change and change["class_path"] != base.get("class_path"):
        return copy.deepcopy(change)  # another class takes none of the former's arguments
    return {
        **copy.deepcopy(base),
        **{key: laid_over(base.get(key), value) for key, value in change.items()},
    }


def configuration(comparison: dict[str, Any], arm: str) -> dict[str, Any]:
    """The whole configuration of an arm."""
    base = yaml.safe_load((ROOT / comparison["base"]).read_text())
    base = laid_over(base, comparison.get("change", {}))
    return laid_over(base, comparison["arms"][arm] or {})


def run_arm(comparison: dict[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """Train one arm with one seed; its curves, and the frames until the threshold."""
    metric, threshold = comparison["metric"], comparison["threshold"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(configuration(comparison, arm), sort_keys=False))
        try:
            out = cli(
                "fit",
                f"--config={path}",
                f"--seed_everything={seed}",
                f"--trainer.logger.init_args.save_dir={folder / 'logs'}",
                f"--checkpoint.dirpath={folder / 'checkpoints'}",
            )
        except RunError as error:
            return {"seed": seed, "error": str(error)}
        found = scalars(folder / "logs")
    curve = found[metric]
    trained = re.search(r"trained ([\d,]+) of", out)
    assert trained is not None, out[-300:]
    run = {
        "seed": seed,
        "frames": int(trained[1].replace(",", "")),
        "reached": next((step for step, value in curve if value >= threshold), None),
        "final": curve[-1][1],
        "curve": curve,
    }
    more = {tag: thinned(found[tag]) for tag in comparison.get("also", ()) if tag in found}
    return {**run, **({"also": more} if more else {})}


def thinned(curve: list[tuple[int, float]], most: int = 60) -> list[tuple[int, float]]:
    """At most this many points of a curve, the last one among them."""
    step = -(-len(curve) // most)
    return curve[::-1][::step][::-1]


def result(name: str, comparison: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All that is kept: the statistics of each arm, then the runs."""
    return {
        "name": name,
        "base": comparison["base"],
        "metric": comparison["metric"],
        "threshold": comparison["threshold"],
        "arms": statistics(runs, list(comparison["arms"])),
        "runs": runs,
    }


def statistics(runs: list[dict[str, Any]], arms: list[str]) -> dict[str, Any]:
    """Frames until the threshold, by arm.

    Returns:
        For each arm: `seeds`, `reached` (how many did), `frames` (the median; None where half of
        the seeds never did), `interval` (95 %, percentile bootstrap of the median), and `ratio`
        to the first arm's median.
    """
    out: dict[str, Any] = {}
    for arm in arms:
        own = [run for run in runs if run["arm"] == arm and "error" not in run]
        if not own:
            continue
        taken = [run["reached"] if run["reached"] is not None else float("inf") for run in own]
        middle = median(taken)
        draws = random.Random(0)
        medians = sorted(median(draws.choices(taken, k=len(taken))) for _ in range(2_000))
        first = out[arms[0]]["frames"] if out else middle
        out[arm] = {
            "seeds": len(own),
            "reached": sum(t < float("inf") for t in taken),
            "frames": finite(middle),
            "interval": [finite(medians[50]), finite(medians[-51])],
            "ratio": finite(middle / first) if first and first < float("inf") else None,
            "final": median(run["final"] for run in own),
        }
    return out


def finite(value: float) -> float | None:
    return value if value < float("inf") else None


def table(found: dict[str, Any]) -> str:
    """As Markdown."""

    def frames(value: float | None) -> str:
        return "never" if value is None else f"{value / 1000:.0f} k"

    lines = [
        f"| arm | median frames to {found['metric'].removeprefix('val/')} {found['threshold']} "
        "| 95 % interval | ratio | seeds that did | final |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for arm, row in found["arms"].items():
        low, high = map(frames, row["interval"])
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"| {arm} | {frames(row['frames'])} | {low} … {high} | {ratio} "
            f"| {row['reached']}/{row['seeds']} | {row['final']:.2f} |"
        )
    return "\n".join(lines)


def carried_on(curve: list[tuple[int, float]], length: int) -> list[float]:
    """The values of a curve, the last one repeated where a run was stopped early."""
    values = [value for _, value in curve]
    return values + values[-1:] * (length - len(values))


def draw(found: dict[str, Any], path: Path) -> None:
    """Median and quartiles of the seeds of each arm, over frames."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for index, arm in enumerate(found["arms"]):
        curves = [r["curve"] for r in found["runs"] if r["arm"] == arm and "error" not in r]
        longest = max(curves, key=len)
        frames = np.array([step for step, _ in longest]) / 1000
        values = np.array([carried_on(curve, len(longest)) for curve in curves])
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        axes.plot(frames, middle, label=f"{arm} ({len(curves)})", color=f"C{index}")
        axes.fill_between(frames, low, high, alpha=0.2, color=f"C{index}", linewidth=0)
    axes.axhline(found["threshold"], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="frames / 1000", ylabel=found["metric"], title=found["name"])
    axes.legend(fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
