"""Train configurations over several seeds and measure the final policy, as they evaluate it.

    python benchmarks/learning.py configs/ppo/cartpole.yaml --seeds 1 2 3 4 5
    python benchmarks/learning.py --tables

Each seed is one `rl-lightning fit` on one thread and one `rl-lightning validate` of its last
checkpoint, never of its best. Results go to `benchmarks/results/<agent>-<config>.json` and into the
second line of the configuration, as soon as a seed is done; runs that failed stay in them, and so
do other seeds of the same configuration. `--tables` brings README and agents' pages up to date.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from preparing import RunError, cli, prepare
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
RANDOM = RESULTS / "baseline" / "random.json"  # written by random_policy.py
PACKAGES = ("torch", "lightning", "gymnasium", "minigrid", "transformers", "peft", "numpy")
TABLE = """\
| configuration | environment | frames | random | threshold | mean ± std | worst seed | solved |
|---|---|--:|--:|--:|--:|--:|--:|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--episodes", type=int, help="final evaluation; default: val_episodes")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--results", type=Path, help=f"folder to write to; default: {RESULTS.name}")
    parser.add_argument("--keep", type=Path, help="folder for the last checkpoint of every seed")
    parser.add_argument("--tables", action="store_true", help="bring all tables up to date")
    args = parser.parse_args()
    if missing := [str(path) for path in args.configs if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    if wrong := [item for item in args.overrides if "=" not in item]:
        parser.error(f"--set {wrong[0]}: expected key=value")
    if not args.configs and not args.tables:
        parser.error("give configurations to run, or --tables")
    # What was run with changes is not a result of the configuration: shown, but kept nowhere else
    # than where it is asked for.
    folder = args.results or (None if args.overrides else RESULTS)
    failed = False
    for path in args.configs:
        for result in run_config(
            path, args.seeds, args.jobs, args.episodes, args.overrides, folder, args.keep
        ):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{result['name']}.json").write_text(render(result))
            if folder == RESULTS:
                quote(path, summary(result))
        print(summary(result))
        failed |= any("error" in run for run in result["runs"])
    if args.tables:
        for page in pages():
            page.write_text(with_table(page))
            print(page)
    sys.exit(1 if failed else 0)


def run_config(
    path: Path,
    seeds: list[int],
    jobs: int,
    episodes: int | None,
    overrides: list[str],
    folder: Path | None = None,
    keep: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Run one configuration with every seed; yields the result so far after each.

    Args:
        path: Of the configuration.
        seeds: To be run.
        jobs: Runs at a time.
        episodes: Of the final evaluation; None: the configuration's.
        overrides: Changes, `key=value`.
        folder: Of earlier results: other seeds of exactly this configuration stay; None: of none.
        keep: Folder for last checkpoints, `<name>-<seed>.ckpt`; None: they go.
    """
    config = yaml.safe_load(path.read_text())
    name = f"{path.parent.name}-{path.stem}"
    metric, threshold = judged(path)
    prepare(name)
    result = {
        "name": name,
        "config": path.as_posix(),
        "digest": digest(path),
        "overrides": overrides,
        "agent": config["model"]["class_path"].rpartition(".")[2],
        "env": played(config),
        "metric": metric,
        "threshold": threshold,
    }
    file = None if folder is None else folder / f"{name}.json"
    earlier = json.loads(file.read_text()) if file is not None and file.exists() else {"runs": []}
    same = all(earlier.get(key) == result[key] for key in ("digest", "overrides"))
    runs = [run for run in earlier["runs"] if same and run["seed"] not in seeds]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(seeds), desc=name, unit="seed") as bar:
        for run in pool.map(lambda seed: run_seed(path, seed, episodes, overrides, keep), seeds):
            bar.update()
            if "error" in run:
                bar.write(f"{name}, seed {run['seed']}: {run['error']}", file=sys.stderr)
            else:
                bar.set_postfix_str(f"seed {run['seed']}: {metric} {run[metric]:.4g}")
            runs = sorted([*runs, run], key=lambda run: run["seed"])
            yield {
                **result,
                "aggregate": aggregate([run[metric] for run in runs if metric in run], threshold),
                "runs": runs,
                "versions": {"python": sys.version.split()[0], **versions()},
            }


def run_seed(
    path: Path,
    seed: int,
    episodes: int | None,
    overrides: list[str],
    keep: Path | None = None,
) -> dict[str, Any]:
    """Train with one seed, then play evaluation episodes with the last checkpoint."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def command(verb: str, *more: str) -> str:
            logs = f"--trainer.logger.init_args.save_dir={folder / verb}"
            checkpoints = f"--checkpoint.dirpath={folder / 'checkpoints'}"
            own = [f"--{item}" for item in overrides]
            return cli(verb, f"--config={path}", f"--seed_everything={seed}", *own, logs, *more,
                       checkpoints)  # fmt: skip

        play = [] if episodes is None else [f"--data.init_args.val_episodes={episodes}"]
        try:
            began = time.perf_counter()
            out = command("fit")
            wall = time.perf_counter() - began
            trained = re.search(
                r"trained ([\d,]+) of .* at ([\d,]+) (frames|updates|prompts)/s", out
            )
            if trained is None:
                raise RunError(f"fit did not say what it trained: {out[-300:]}")
            done, speed = (int(number.replace(",", "")) for number in trained.groups()[:2])
            unit = trained.group(3)
            last = folder / "checkpoints" / "last.ckpt"
            command("validate", f"--ckpt_path={last}", *play)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(last, keep / f"{path.parent.name}-{path.stem}-{seed}.ckpt")
        except RunError as error:
            return {"seed": seed, "error": str(error)}
        history, final = scalars(folder / "fit"), scalars(folder / "validate")
        run = {"seed": seed, **scores(final)}
        run |= {unit: done, "seconds": done / max(speed, 1), "wall_seconds": wall}
        curve = history.get("val/return", history.get("val/pass@1", []))
        run |= {f"{unit}_per_second": speed, "curve": curve}
        run |= {tag: history[tag][-1][1] for tag in history if tag.startswith("llm/")}
        return run


def scores(tags: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    """What an evaluation came to, of what it logged."""
    names = ("return", "success", "reward", "pass@1")
    return {name: tags[f"val/{name}"][-1][1] for name in names if f"val/{name}" in tags}


def played(config: dict[str, Any]) -> str:
    """The environment of a configuration, or what its prompts ask."""
    data = config["data"]["init_args"]
    if "env" in data:
        return data["env"]
    prompts = data.get("val_prompts") or data["prompts"]
    return str(prompts["init_args"]["task"]) if isinstance(prompts, dict) else Path(prompts).name


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All `(frames, value)` of the TensorBoard files below a folder, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.rglob("events.out.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    return found


def judged(path: Path) -> tuple[str, float | None]:
    """What a configuration is judged by, as a comment of it says, and from where it is solved."""
    said = re.search(
        r"^# judged by (return|success|pass@1)(?:, solved from (\S+))?", path.read_text(), re.M
    )
    if said is None:
        return "return", None
    return said[1], None if said[2] is None else float(said[2])


def digest(path: Path) -> str:
    """Of what a configuration says, without its comments: tells results of an older one."""
    return digest_of(yaml.safe_load(path.read_text()))


def digest_of(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def quote(path: Path, line: str) -> None:
    """Make `line` the second line of a configuration, below the command that runs it."""
    command, *rest = path.read_text().splitlines()
    if re.match(r"# \d+ seeds?:", rest[0]):
        del rest[0]
    path.write_text("\n".join([command, line, *rest]) + "\n")


def render(result: dict[str, Any]) -> str:
    """As JSON with a line for each entry and each run, so that differences can be read."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        if isinstance(value, dict):
            return {key: rounded(v) for key, v in value.items()}
        return [rounded(v) for v in value] if isinstance(value, list | tuple) else value

    def line(value: Any) -> str:
        return json.dumps(rounded(value), ensure_ascii=False)

    runs = ",\n".join(f"  {line(run)}" for run in result["runs"])
    entries = [
        f' "{key}": ' + (f"[\n{runs}\n ]" if key == "runs" else line(value))
        for key, value in result.items()
    ]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def aggregate(values: list[float], threshold: float | None) -> dict[str, Any]:
    """Statistics over seeds; IQM is the mean of the middle half (Agarwal et al. 2021)."""
    if not values:
        return {}
    cut = len(values) // 4
    out = {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "iqm": mean(sorted(values)[cut : len(values) - cut]),
    }
    if threshold is None:
        return out
    # A share of 0.9 is a little less in float32; four digits are what is kept.
    return {**out, "solved": sum(round(v, 4) >= threshold for v in values)}


def summary(result: dict[str, Any]) -> str:
    """One line, as it stands in the configuration."""
    done = [run for run in result["runs"] if "error" not in run]
    if not done:
        return f"# {len(result['runs'])} seeds: every run failed"
    a = result["aggregate"]
    data = yaml.safe_load((RESULTS.parents[1] / result["config"]).read_text())["data"]["init_args"]
    sampled = data.get("val_explore") or data.get("val_temperature", data.get("val_samples", 1) > 1)
    how = "sampled" if sampled else "greedy"
    return (
        f"# {len(done)} seeds: {spell(result, a['mean'])} ± {spell(result, a['std'])} {how} "
        f"{result['metric']} (worst {spell(result, a['min'])}) after {amount(done[0])}"
    )


def amount(run: dict[str, Any]) -> str:
    """How much a run was trained, in its own unit."""
    unit = unit_of(run)
    return f"{run[unit]} {unit}" if run[unit] < 1000 else f"{run[unit] / 1000:.0f} k {unit}"


def unit_of(run: dict[str, Any]) -> str:
    return next(unit for unit in ("prompts", "updates", "frames") if unit in run)


def spell(result: dict[str, Any], value: float) -> str:
    """A number of a result, with as many digits as its mean needs."""
    large = result["metric"] == "return" and abs(result["aggregate"].get("mean", 0.0)) >= 2
    return f"{value:.{1 if large else 3}f}"


def pages() -> list[Path]:
    """The Markdown files that show results."""
    root = RESULTS.parents[1]
    return [root / "README.md", *sorted((root / "docs" / "agents").glob("*.md"))]


def with_table(page: Path) -> str:
    """The text of a page with today's results in its table: all, or its agent's."""
    text = page.read_text()
    heading = re.escape(TABLE.splitlines()[0])
    if page.name == "README.md":
        new = table(RESULTS)
    else:
        new = table(RESULTS, text.splitlines()[0].removeprefix("# "), "../../")
    text = re.sub(rf"^{heading}\n(\|.*\n)+", lambda _: new + "\n", text, flags=re.M)
    return re.sub(
        r"^(<!-- curves?: (.+) -->\n)(\|.*\n)*",
        lambda m: m[1] + curves(*m[2].split()),
        text,
        flags=re.M,
    )


def curves(*names: str) -> str:
    """What evaluations came to while training, as a Markdown table: of every seed of one
    configuration, or means over the seeds of several that were trained and evaluated alike."""
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]
    random, first = json.loads(RANDOM.read_text()), results[0]
    done = [[run for run in result["runs"] if "error" not in run] for result in results]
    before = random[first["config"]]["return" if first["metric"] == "success" else first["metric"]]
    if len(results) == 1:
        heads = [f"seed {run['seed']}" for run in done[0]]
        columns = [run["curve"] for run in done[0]]
    else:
        heads = [f"{result['agent']} {Path(result['config']).stem}" for result in results]
        columns = [
            [
                (points[0][0], mean(value for _, value in points))
                for points in zip(*(run["curve"] for run in runs), strict=True)
            ]
            for runs in done
        ]
    rows = [f"| {unit_of(done[0][0])} | {' | '.join(heads)} |", f"|--:|{'--:|' * len(heads)}"]
    digits = 1 if "return" in done[0][0] else 3
    start = "random actions" if "return" in done[0][0] else "0"
    rows.append(f"| {start} |{f' {before:.{digits}f} |' * len(heads)}")
    for points in zip(*columns, strict=True):
        values = " | ".join(f"{value:.{digits}f}" for _, value in points)
        rows.append(f"| {points[0][0]:,} | {values} |")
    return "\n".join(rows) + "\n"


def table(folder: Path, agent: str | None = None, root: str = "") -> str:
    """The results of a folder as a Markdown table.

    Args:
        folder: Of the result files.
        agent: Whose; None: of all.
        root: From the page to the configurations' root.
    """
    rows, random = [TABLE], json.loads(RANDOM.read_text())
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        if agent not in (None, result["agent"]):
            continue
        runs, a = result["runs"], result["aggregate"]
        done = [run for run in runs if "error" not in run]
        link = f"[{result['agent']} {Path(result['config']).stem}]({root}{result['config']})"
        if not done:
            rows.append(f"| {link} | {result['env']} | | | | failed | | 0/{len(runs)} |")
            continue
        goal = "–" if result["threshold"] is None else f"{result['threshold']:g}"
        unit = "" if result["metric"] == "return" else f" {result['metric']}"
        solved = "–" if "solved" not in a else f"{a['solved']}/{len(runs)}"
        rows.append(
            f"| {link} | {result['env']} | {amount(done[0]).removesuffix(' frames')} | "
            f"{spell(result, random[result['config']][result['metric']])} | {goal}{unit} | "
            f"{spell(result, a['mean'])} ± {spell(result, a['std'])} | {spell(result, a['min'])} | "
            f"{solved} |"
        )
    return "\n".join(rows)


def versions(*more: str) -> dict[str, str]:
    """Of the packages that results depend on, and of others, as far as they are installed."""
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return {name: metadata.version(name) for name in (*PACKAGES, *more) if name in installed}


if __name__ == "__main__":
    main()
