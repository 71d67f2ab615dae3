"""CPU seconds per frame of this tree against those of another one, in turn, pair by pair.

    git worktree add ../before some-revision
    python benchmarks/before_after.py --before ../before     # twelve pairs, half an hour

A pair is one process of each tree, with one thread each, that live side by side and train in turn,
a few seconds at a time: a machine that grows slower by the minute then slows both, and what chance
does to a process (where things lie in memory) is drawn anew for each pair. Of each side the
quickest call of `fit` counts, in CPU seconds, so that other work on the machine matters less.
Printed are the median of the ratios after / before over the pairs and its 95 % interval, from the
order of the pairs' ratios alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from tqdm import tqdm

SETTINGS = {  # frames of each fit
    "PPO CartPole 8 x 128": 10_240,
    "PPO CartPole 64 x 32 native": 40_960,
    "DQN CartPole": 2_000,
    "PPO pixels 84 x 84": 512,
}
FITS = 3  # of each side of a pair


def interval(ratios: list[float], level: float = 0.95) -> tuple[float, float]:
    """Order statistics that hold the median with at least this confidence, whatever the
    distribution."""
    ordered, n = sorted(ratios), len(ratios)
    outside, k = 0.0, 0
    while k < n // 2 and outside + 2 * comb(n, k) / 2**n <= 1 - level:
        outside += 2 * comb(n, k) / 2**n
        k += 1
    return ordered[max(k - 1, 0)], ordered[n - max(k, 1)]


def _fit(setting: str, frames: int) -> dict[str, Any]:
    import resource
    import warnings
    from functools import partial

    import gymnasium as gym
    import lightning as L
    import numpy as np
    import torch
    from common import prepare_process, quiet_trainer

    import rl_lightning
    from rl_lightning import DQN, PPO, NatureCNN, QNetwork, ReplayDataModule, RolloutDataModule

    class Pixels(gym.Env):
        """84 × 84 frames that cost nothing to make."""

        observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        action_space = gym.spaces.Discrete(4)
        frames = np.random.default_rng(0).integers(0, 256, (64, 84, 84, 4), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.frames[0], {}

        def step(self, action):
            self.t += 1
            return self.frames[self.t % 64], float(action == 1), self.t == 200, False, {}

    gym.registry.pop("Pixels-v0", None)
    gym.register("Pixels-v0", entry_point=Pixels)
    prepare_process()
    warnings.simplefilter("ignore")
    L.seed_everything(1, verbose=False)
    if setting.startswith("DQN"):
        data: Any = ReplayDataModule(
            "CartPole-v1", total_frames=frames, warmup_frames=500, frames_per_epoch=500
        )
        agent: Any = DQN(data.spec, network=partial(QNetwork, hidden=(64, 64)))
    elif "pixels" in setting:
        data = RolloutDataModule(
            "Pixels-v0", num_envs=8, rollout_steps=32, minibatch_size=64, passes=2,
            total_frames=frames,
        )  # fmt: skip
        agent = PPO(data.spec, encoder=NatureCNN)
    else:
        native = "native" in setting
        data = RolloutDataModule(
            "CartPole-v1",
            num_envs=64 if native else 8,
            rollout_steps=32 if native else 128,
            vectorization="native" if native else "sync",
            minibatch_size=512 if native else 256,
            passes=4,
            total_frames=frames,
            rollouts_per_epoch=10,
        )
        agent = PPO(data.spec)
    trainer = quiet_trainer()
    before = resource.getrusage(resource.RUSAGE_SELF)
    trainer.fit(agent, data)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    weights = torch.cat([p.detach().flatten().double() for p in agent.policy.parameters()])
    return {
        "tree": str(Path(rl_lightning.__file__).parents[1]),
        "cpu_us_per_frame": 1e6 * used / data.frames,
        "weights": float(weights.abs().sum()),
    }


class Side:
    """A process that trains with the code of a tree, each time it is asked."""

    def __init__(self, tree: Path, setting: str) -> None:
        here = Path(__file__).resolve()
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tree), str(here.parent)]),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(here), "--serve", setting]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=tree
        )
        self.tree = tree

    def fit(self) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print("fit", file=stdin, flush=True)
        for line in stdout:
            if line.startswith("{"):
                found = json.loads(line)
                if Path(found.pop("tree")) != self.tree:
                    raise SystemExit(f"{self.tree} was to be measured, another tree was")
                return found
        raise SystemExit(f"the process of {self.tree} ended with {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(trees: Mapping[str, Path], setting: str, order: Sequence[str]) -> dict[str, Any]:
    """The quickest fit of each tree, of several in turn."""
    sides = {name: Side(trees[name], setting) for name in order}
    try:
        for side in sides.values():
            side.fit()  # what is done once in a process
        fits = [{name: sides[name].fit() for name in order} for _ in range(FITS)]
    finally:
        for side in sides.values():
            side.close()
    return {name: min((fit[name] for fit in fits), key=_cost) for name in trees}


def _cost(found: dict[str, Any]) -> float:
    return found["cpu_us_per_frame"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        for _ in sys.stdin:
            print(json.dumps(_fit(args.serve, SETTINGS[args.serve])), flush=True)
        return
    trees = {"before": args.before.resolve(), "after": Path(__file__).resolve().parents[1]}
    rows: dict[str, Any] = {}
    with tqdm(total=args.pairs * len(args.settings), unit="pair") as bar:
        for setting in args.settings:
            pairs = []
            for index in range(args.pairs):
                order = ["before", "after"] if index % 2 == 0 else ["after", "before"]
                pairs.append(measure(trees, setting, order))
                bar.update()
            used = [(_cost(pair["before"]), _cost(pair["after"])) for pair in pairs]
            ratios = [after / before for before, after in used]
            low, high = interval(ratios)
            rows[setting] = {
                "ratio": statistics.median(ratios),
                "interval": [low, high],
                "before": statistics.median(before for before, _ in used),
                "after": statistics.median(after for _, after in used),
                "same_weights": all(p["before"]["weights"] == p["after"]["weights"] for p in pairs),
                "pairs": pairs,
            }
            row = rows[setting]
            tqdm.write(
                f"{setting}: after / before {row['ratio']:.3f} ({low:.3f} … {high:.3f}), "
                f"{row['before']:.1f} → {row['after']:.1f} µs a frame, weights "
                f"{'the same' if row['same_weights'] else 'DIFFER'}"
            )
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
