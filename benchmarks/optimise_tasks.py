"""The tasks whose world is a model: CPU seconds of an episode, and what their baselines score.

    python benchmarks/optimise_tasks.py                    # three minutes
    python benchmarks/optimise_tasks.py TrainingControl-v0 --tasks 100
    python benchmarks/learning.py configs/ppo/training-control.yaml --keep checkpoints/seeds
    python benchmarks/optimise_tasks.py TrainingControl-v0 \\
        --config configs/ppo/training-control.yaml

Baselines with something to choose (the rate of a schedule, the first step of an evolution strategy)
have it chosen by mean score on training tasks; all are judged on held-out ones, every baseline on
the same. Schedules are followed exactly, by continuous actions. With a configuration, tasks are
those of its environment, and the checkpoints that it left, one a seed, are judged beside the
baselines, acting as the configuration is evaluated (greedily, or sampling with `val_explore`):
their numbers are means over seeds, task by task. Means ± standard errors over
held-out tasks, and the difference of each to the best baseline on the same tasks; one thread. Each
task of PruneNet and QuantizeNet is a network that is trained first: give them few tasks. The
seconds of a search hold all its evaluations.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import yaml
from common import prepare_process
from tqdm import tqdm

JUMPS = {"actions": "continuous", "moves": "from_start"}
# By environment: arguments of training tasks, and, by the name of what is held out, of others.
TASKS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "TrainingControl-v0": (
        {"seed_range": [0, 1_000_000], "splits": [0, 100], "widths": [16, 32, 48]},
        {
            "seeds": {"seed_range": [1_000_000, 2_000_000]},
            "seeds, splits and width 24": {
                "seed_range": [1_000_000, 2_000_000],
                "splits": [100, 200],
                "widths": [24],
            },
        },
    ),
    "ParameterTuning-v0": (
        {"seed_range": [0, 1_000_000]},
        {"seeds": {"seed_range": [1_000_000, 2_000_000]}},
    ),
    "HyperparameterSearch-v0": (
        {"seed_range": [0, 1_000_000], "splits": [0, 100]},
        {"seeds and splits": {"seed_range": [1_000_000, 2_000_000], "splits": [100, 200]}},
    ),
    "PruneNet-v0": (
        {"widths": [12, 16], "splits": [0, 2]},
        {"width 14 and splits": {"widths": [14], "splits": [100, 200]}},
    ),
    "QuantizeNet-v0": (
        {"widths": [12, 16], "splits": [0, 2]},
        {"width 14 and splits": {"widths": [14], "splits": [300, 400]}},
    ),
}
# Arguments of a configuration's environment that are about how its agent acts, not about the task.
ACTING = ("actions", "factors", "max_factor", "levels", "moves")
AGENT = "agent, "
# What baselines are compared by, beside the return.
SCORE = {
    "TrainingControl-v0": "return",
    "ParameterTuning-v0": "best_accuracy",
    "HyperparameterSearch-v0": "best_accuracy",
    "PruneNet-v0": "test_accuracy",
    "QuantizeNet-v0": "test_accuracy",
}


def baselines(name: str, evaluations: int = 50) -> dict[str, tuple[dict[str, Any], Any]]:
    """By its name: arguments of the environment that it acts in, and candidates to choose from, or
    what chooses by an environment and tasks."""
    from rl_lightning.envs.optimise import baselines as b
    from rl_lightning.envs.optimise import compression_baselines as c
    from rl_lightning.envs.optimise.portfolio import choose_trials

    if name == "TrainingControl-v0":
        ways = {kind: ({"actions": "continuous"}, b.schedules(kind)) for kind in b.KINDS}
        return {**ways, "uniform": ({}, [b.Uniform()])}
    if name == "ParameterTuning-v0":
        return {
            "random walk": ({}, [b.Uniform()]),
            "hill climbing": ({}, [b.HillClimbing()]),
            "random search": (JUMPS, [b.Uniform()]),
            "(1+1)-ES": (JUMPS, [b.EvolutionStrategy(s) for s in (0.05, 0.1, 0.25)]),
            "gradient descent (sees gradients)": (
                JUMPS,
                [b.GradientDescent(lr) for lr in (0.3, 1.0, 3.0)],
            ),
        }
    if name == "PruneNet-v0":
        return {
            "uniform share": ({}, [c.UniformPruning()]),
            "global magnitude": ({}, [c.GlobalMagnitude()]),
            "global magnitude, normalised": ({}, [c.GlobalMagnitude(normalised=True)]),
            "random search": ({}, [c.RandomSearch(evaluations)]),
            "uniformly random": ({}, [b.Uniform()]),
        }
    if name == "QuantizeNet-v0":
        return {
            "uniform bits": ({}, [c.UniformBits()]),
            "greedy by sensitivity": ({}, [c.GreedyBits()]),
            "random search": ({}, [c.RandomSearch(evaluations)]),
            "uniformly random": ({}, [b.Uniform()]),
        }
    return {
        "random search": ({}, [b.Uniform()]),
        "random search, levels": ({"actions": "discrete"}, [b.Uniform()]),
        "TPE (Optuna)": ({}, [b.TPE()]),
        "fixed trials, chosen on training tasks": ({}, choose_trials),
    }


class Trained:
    """An agent from a checkpoint, as a baseline acts.

    Args:
        path: The checkpoint.
        explore: Sample actions, as a configuration with `val_explore` is evaluated.
        samples: Sampled episodes of a task to repeat the best of, by return; 0: none.
    """

    def __init__(self, path: Path, explore: bool, samples: int = 0) -> None:
        import rl_lightning

        self.agent = rl_lightning.Agent.load_from_checkpoint(path)
        self.explore, self.samples = explore, samples

    def begin(self, env: Any, task_seed: int) -> dict[str, Any]:
        import torch

        torch.manual_seed(task_seed)
        tried: list[tuple[float, list[Any]]] = []
        for _ in range(self.samples):
            obs, _ = env.reset(options={"task_seed": task_seed})
            total, actions, ended = 0.0, [], False
            while not ended:
                actions.append(self.agent.predict(obs, explore=True))
                obs, reward, terminated, truncated, _ = env.step(actions[-1])
                total, ended = total + float(reward), terminated or truncated
            tried.append((total, actions))
        best = max(tried, key=lambda one: one[0])[1] if tried else None
        self.plan = None if best is None else iter(best)
        return {}

    def act(self, obs: np.ndarray, info: Any) -> Any:
        if self.plan is not None:
            return next(self.plan)
        return self.agent.predict(obs, explore=self.explore)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of an environment's baselines, by what is held out."""
    from rl_lightning.envs import make_env
    from rl_lightning.envs.optimise.baselines import choose, play
    from rl_lightning.envs.optimise.tasks import check_disjoint

    training, held_out = TASKS[name]
    ways = baselines(name, args.evaluations)
    own = data_of(args.config).get("env_kwargs", {}) if args.config else {}
    world = {k: v for k, v in own.items() if k not in ACTING}
    acting = {k: v for k, v in own.items() if k in ACTING}
    seeds = range(1_000_000, 1_000_000 + args.tasks)
    found: dict[str, Any] = {}
    chosen = {}
    for way, (kwargs, candidates) in tqdm(ways.items(), desc=f"{name}, choosing"):
        env = make_env(name, {**training, **world, **kwargs})
        few = range(args.choose)
        if callable(candidates):
            chosen[way] = candidates(env, few)
        elif len(candidates) == 1:
            chosen[way] = candidates[0]
        else:
            chosen[way] = choose(env, candidates, few, score=SCORE[name])
    players = {way: (kwargs, [chosen[way]]) for way, (kwargs, _) in ways.items()}
    if args.config:
        players |= trained(args.config, args.checkpoints, acting)
        if args.sample:
            players |= trained(args.config, args.checkpoints, acting, args.evaluations)
    for what, others in held_out.items():
        check_disjoint({**training, **world}, others, list(others))
        rows: dict[str, Any] = {}
        for way, (kwargs, several) in tqdm(players.items(), desc=f"{name}, judging"):
            env = make_env(name, {**world, **others, **kwargs})
            for seed in seeds:  # what tasks share is loaded, or trained, before time is taken
                env.reset(options={"task_seed": seed})
            began = time.process_time()
            played = [[play(env, one, seed) for seed in seeds] for one in several]
            seconds = (time.process_time() - began) / len(seeds) / len(several)
            rows[way] = {
                "chosen": vars_of(several[0]),
                "cpu_seconds": round(seconds, 4),
                "episodes": [averaged(alike) for alike in zip(*played, strict=True)],
                "seeds": [
                    round(mean(episode[SCORE[name]] for episode in of_one), 4) for of_one in played
                ],
            }
        found[what] = rows
    return found


def data_of(config: Path) -> dict[str, Any]:
    """Arguments of a configuration's data module."""
    return yaml.safe_load(config.read_text())["data"]["init_args"]


def trained(
    config: Path, folder: Path, acting: dict[str, Any], samples: int = 0
) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """The agents of a configuration, as one of the ways: as they are, or the best of samples."""
    name = f"{config.parent.name}-{config.stem}"
    paths = sorted(folder.glob(f"{name}-*.ckpt"))
    if not paths:
        raise SystemExit(
            f"{folder} has no checkpoint of {config}: run benchmarks/learning.py {config} "
            f"--keep {folder}"
        )
    explore = data_of(config).get("val_explore", False)
    way = f"{AGENT}{len(paths)} × {name}" + (f", best of {samples}" if samples else "")
    return {way: (acting, [Trained(path, explore, samples) for path in paths])}


def averaged(episodes: tuple[dict[str, float], ...]) -> dict[str, float]:
    """Means over agents that played the same task."""
    return {key: mean(episode[key] for episode in episodes) for key in episodes[0]}


def vars_of(baseline: Any) -> dict[str, Any]:
    """What a baseline was constructed with, as far as it is plain."""
    plain = {k: v for k, v in vars(baseline).items() if k[0] != "_"}
    return {k: v for k, v in plain.items() if isinstance(v, int | float | str)}


def summed_up(name: str, rows: dict[str, Any], against: str | None = None) -> dict[str, Any]:
    """Means and standard errors over tasks, and differences to one way; None: the best baseline."""
    score = SCORE[name]
    if against is not None and against not in rows:
        raise SystemExit(f"--against {against}: there is {', '.join(rows)}")
    rivals = {w: r for w, r in rows.items() if not w.startswith(AGENT) and "gradient" not in w}
    best = against or max(rivals, key=lambda way: mean(e[score] for e in rivals[way]["episodes"]))
    out = {}
    for way, row in rows.items():
        episodes = row["episodes"]
        names = [n for n in ("return", "accuracy", "best_accuracy", "test_accuracy", "diverged",
                             "original_accuracy", "cost", "size")
                 if n in episodes[0]]  # fmt: skip
        gaps = [e[score] - b[score] for e, b in zip(episodes, rows[best]["episodes"], strict=True)]
        out[way] = {
            "chosen": row["chosen"],
            "cpu_seconds": row["cpu_seconds"],
            **{n: with_error([e[n] for e in episodes]) for n in names},
            f"{score} − {best}": with_error(gaps),
        }
        if len(row["seeds"]) > 1:
            out[way]["seeds"] = row["seeds"]
    return out


def with_error(values: list[float]) -> list[float]:
    """Mean and standard error."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [round(mean(values), 4), round(error, 4)]


def table(rows: dict[str, Any]) -> str:
    """As Markdown."""
    columns = [c for c in next(iter(rows.values())) if c not in ("chosen", "seeds")]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for way, row in rows.items():
        chosen = " ".join(str(v) for v in row["chosen"].values() if not isinstance(v, str | bool))
        cells = (
            f"{c[0]:.3f} ± {c[1]:.3f}" if isinstance(c, list) else f"{c:.3f}"
            for c in (row[column] for column in columns)
        )
        lines.append(f"| {way} {chosen} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("envs", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--tasks", type=int, default=50, help="held-out tasks")
    parser.add_argument("--choose", type=int, default=20, help="training tasks to choose on")
    parser.add_argument("--evaluations", type=int, default=50, help="of a task, by searches")
    parser.add_argument(
        "--sample", action="store_true", help="let agents repeat the best of as many samples, too"
    )
    parser.add_argument("--config", type=Path, help="whose environment and agents, for one of envs")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints/seeds"), help="folder of its agents"
    )
    parser.add_argument("--against", help="the way that differences are to; default: the best")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    args = parser.parse_args()
    if args.config and len(args.envs) != 1:
        parser.error("--config belongs to one environment: name it")
    prepare_process()
    results: dict[str, Any] = {}
    for name in args.envs:
        for what, rows in measure(name, args).items():
            summary = summed_up(name, rows, args.against)
            results.setdefault(name, {})[what] = summary
            print(f"\n{name}, held out: {what}; {args.tasks} tasks\n\n{table(summary)}", flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                numbers = {
                    "tasks": args.tasks,
                    "chosen on": args.choose,
                    "config": None if args.config is None else args.config.as_posix(),
                    "results": results,
                }
                args.out.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
