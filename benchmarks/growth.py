"""What a long run gathers: resident memory, open files and threads, once buffers are full.

    python benchmarks/growth.py          # 300 k frames of PPO and of DQN, 200 k new texts

Prints the growth per 100 k frames (or texts) of the last two thirds, fitted by least squares.
"""

import argparse
import json
import os
import random
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from common import prepare_process, quiet_trainer, run_apart


def usage() -> dict[str, float]:
    """Resident memory in MB, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """Slopes per 100 k, over the last two thirds."""
    import numpy as np

    late = [s for s in samples if s["count"] >= samples[-1]["count"] / 3]
    x = np.array([s["count"] for s in late]) / 1e5
    slopes = {k: float(np.polyfit(x, [s[k] for s in late], 1)[0]) for k in usage()}
    return {**slopes, "last_rss_mb": late[-1]["rss_mb"], "samples": len(late)}


def train(kind: str, frames: int) -> list[dict[str, float]]:
    """Train, and look at the process after each epoch."""
    import lightning as L

    from rl_lightning import DQN, PPO, QNetwork, ReplayDataModule, RolloutDataModule

    samples: list[dict[str, float]] = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            samples.append({"count": pl_module.frames, **usage()})

    common = {"total_frames": frames, "val_episodes": 4}
    if kind == "PPO":
        data: Any = RolloutDataModule(
            "CartPole-v1", minibatch_size=256, passes=2, rollouts_per_epoch=5, **common
        )
        agent: Any = PPO(data.spec)
    else:
        data = ReplayDataModule(
            "CartPole-v1",
            buffer_frames=20_000,
            frames_per_epoch=5_000,
            collect_frames=4,
            **common,
        )
        agent = DQN(data.spec, network=partial(QNetwork, hidden=(32,)))
    quiet_trainer(limit_val_batches=1.0, callbacks=[Watch()]).fit(agent, data)
    return samples


def read(texts: int) -> list[dict[str, float]]:
    """Show a frozen language model endlessly new texts through a cache of 1,000."""
    import gymnasium as gym

    from rl_lightning import EnvSpec, LLMEncoder

    spec = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(2), "texts")
    encoder = LLMEncoder(spec, layers=1, max_length=16, cache_size=1_000)
    draw, samples = random.Random(1), []
    words = [f"{a}{b}" for a in ("north", "east", "south", "west") for b in ("", "ern", "ward")]
    for count in range(0, texts, 500):
        batch = [" ".join(draw.choices(words, k=8)) + f" {count + i}" for i in range(500)]
        encoder.preprocess(batch)
        if count % 5_000 == 0:
            samples.append({"count": count, **usage()})
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=300_000)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=2)
    args = parser.parse_args()
    if args.run:
        prepare_process()
        warnings.simplefilter("ignore")
        kind, count = args.run[0], int(args.run[1])
        samples = read(count) if kind == "texts" else train(kind, count)
        print(json.dumps({"growth": growth(samples), "samples": samples}))
        return
    rows = {}
    for kind, count in {"PPO": args.frames, "DQN": args.frames, "texts": args.texts}.items():
        rows[kind] = run_apart(__file__, kind, count)
        found = rows[kind]["growth"]
        print(
            f"{kind}, {count:,}: memory {found['rss_mb']:+.3f} MB, files {found['files']:+.3f}, "
            f"threads {found['threads']:+.3f} per 100 k; {found['last_rss_mb']:.0f} MB at the end"
        )
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
