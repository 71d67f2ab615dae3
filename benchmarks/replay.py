"""The replay buffer: bytes per transition, time per prioritised sample, resident memory on disk.

    python benchmarks/replay.py --out benchmarks/results/speed/replay.json

Bytes are counted against the naive layout (both observations and a float of padding for each flag)
and against the arrays that Stable-Baselines3's ReplayBuffer allocates, plain and with
`optimize_memory_usage`. Times are medians; what counts is how they grow with the buffer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import prepare_process, quiet_trainer

FRAMES = 20_000


def fill(buffer: Any, space: gym.Space, observe: Any, length: int = 200) -> None:
    """Random transitions of one environment, in episodes of `length`."""
    rng = np.random.default_rng(0)
    zeros, one = np.zeros(1, bool), np.ones(1, bool)
    buffer.begin(observe(rng, True))
    for step in range(1, FRAMES + 1):
        over = step % length == 0
        reward = rng.random(1, np.float32)
        buffer.act(torch.zeros(1, dtype=torch.int64), reward, one if over else zeros, zeros)
        buffer.push(observe(rng, False))
        if over:
            buffer.begin(observe(rng, True))


def memory() -> list[dict[str, Any]]:
    """Bytes per transition of three kinds of observation."""
    from stable_baselines3.common.buffers import ReplayBuffer as Theirs

    from rl_lightning.data.replay.buffer import ReplayBuffer

    discrete = gym.spaces.Discrete(4)
    stack = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)

    def frames(rng: Any, begins: bool) -> torch.Tensor:
        nonlocal stack
        new = torch.from_numpy(rng.integers(0, 256, (1, 1, 84, 84), np.uint8))
        stack = new.expand(1, 4, 84, 84).clone() if begins else torch.cat([stack[:, 1:], new], 1)
        return stack

    # As in TextMaze: 8 k distinct texts among all, 384 features of a frozen language model.
    features = torch.randn(8_000, 384)
    cases: dict[str, Any] = {
        "CartPole vectors": (
            lambda rng, _: torch.from_numpy(rng.random((1, 4), np.float32)),
            {},
            gym.spaces.Box(-1, 1, (4,), np.float32),
        ),
        "84×84 frames, stacks of 4": (
            frames,
            {"stack": 4},
            gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
        ),
        "text, 384 features, float16": (
            lambda rng, _: features[rng.integers(len(features), size=1)],
            {"repeats": True, "dtype": np.float16},
            gym.spaces.Box(-1, 1, (384,), np.float32),
        ),
    }
    rows = []
    for name, (observe, options, space) in cases.items():
        buffer = ReplayBuffer(FRAMES + 200, 1, action_dtype=np.uint8, **options)
        fill(buffer, space, observe)
        theirs = {}
        for lean in (False, True):
            made = Theirs(
                64,
                space,
                discrete,
                "cpu",
                optimize_memory_usage=lean,
                handle_timeout_termination=not lean,
            )
            names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
            arrays = [getattr(made, n, None) for n in names]
            theirs[lean] = sum(a.nbytes for a in arrays if a is not None) / 64
        size = int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize
        rows.append(
            {
                "observations": name,
                "ours": buffer.bytes_per_frame,
                "naive": 2 * size + 8 + 4 + 4 + 4,
                "sb3": theirs[False],
                "sb3_lean": theirs[True],
            }
        )
    return rows


def priorities(batch: int = 128, repeats: int = 300) -> list[dict[str, Any]]:
    """Time of one prioritised sample and update of a batch, in µs."""
    from rl_lightning.data.replay.sum_tree import SumTree

    rows = []
    for size in (10_000, 100_000, 1_000_000):
        tree, rng = SumTree(size), np.random.default_rng(0)
        tree.load(rng.random(size))
        times = []
        for _ in range(repeats):
            uniform, new = rng.random(batch), rng.random(batch)
            began = time.perf_counter()
            tree.update(tree.sample(uniform), new)
            times.append(time.perf_counter() - began)
        rows.append({"items": size, "batch": batch, "us": 1e6 * statistics.median(times)})
    return rows


def disk_run() -> dict[str, float]:
    """Train from a buffer on disk; resident and buffer size in MB, of this process."""
    import lightning as L

    from rl_lightning import DQN, MLPEncoder, ReplayDataModule

    torch.manual_seed(0)
    data = ReplayDataModule(
        "benchmark_wide:Wide-v0",
        num_envs=8,
        buffer_frames=100_000,
        warmup_frames=90_000,
        collect_frames=8,
        gradient_steps=4,
        frames_per_epoch=800,
        total_frames=98_000,
        storage="disk",
    )
    agent = DQN(data.spec, encoder=MLPEncoder)
    peak = 0.0

    class Watch(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            nonlocal peak
            peak = max(peak, resident())

    trainer = quiet_trainer(callbacks=[Watch()])
    before = resident()
    trainer.fit(agent, data)
    assert data.buffer is not None
    size = data.buffer.bytes_per_frame * len(data.buffer) / 2**20
    return {"buffer_mb": size, "before_mb": before, "peak_mb": peak, "grown_mb": peak - before}


def resident() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--disk", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    prepare_process()
    if args.disk:
        print(json.dumps(disk_run()))
        return
    result: dict[str, Any] = {"memory": memory(), "priorities": priorities()}
    done = subprocess.run(
        [sys.executable, __file__, "--disk"], capture_output=True, text=True, check=True
    )
    result["disk"] = json.loads(done.stdout.splitlines()[-1])
    print("| observations | bytes per transition | naive | SB3 | SB3, optimize_memory_usage |")
    print("|---|--:|--:|--:|--:|")
    for row in result["memory"]:
        print(
            f"| {row['observations']} | {row['ours']:,.0f} | {row['naive']:,.0f} | "
            f"{row['sb3']:,.0f} | {row['sb3_lean']:,.0f} |"
        )
    for row in result["priorities"]:
        print(f"{row['items']:>9,} items: {row['us']:.0f} µs per sample + update of {row['batch']}")
    disk = result["disk"]
    print(
        f"on disk: a buffer of {disk['buffer_mb']:,.0f} MB; resident memory grew by "
        f"{disk['grown_mb']:,.0f} MB while training"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
