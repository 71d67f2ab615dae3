"""PPO on CartPole by two ranks that send each other small gradients: bytes and what is learned.

    python benchmarks/gradient_compression.py                  # three seeds of each
    python benchmarks/gradient_compression.py --seeds 1 --frames 20480 --methods none onebit

Two processes on this machine (gloo), a thread and half the environments each, in every run. Bytes
are those that one rank hands to collectives, counted where it does so, as the mean of all updates
of a run; the return is that of 20 greedy episodes, the same ones for all. Seconds say what
compressing costs where nothing is gained by it: between processes of one machine, sending is free.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common import prepare_process, quiet_trainer, run_apart, timed
from tqdm import tqdm

METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "fp16": {"method": "fp16"},
    "bf16": {"method": "bf16"},
    "powersgd": {"method": "powersgd", "rank": 2},
    "topk": {"method": "topk", "share": 0.01},
    "onebit": {"method": "onebit"},
}
NAMES = {"powersgd": "powersgd, rank 2", "topk": "topk, 1 %"}


def train(name: str, frames: int, seed: int) -> dict[str, float] | None:
    """One run; what rank 0 saw of it, and None in other ranks."""
    from functools import partial

    import lightning as L
    import torch
    from onpolicy import SETTINGS, evaluate

    from rl_lightning import PPO, CompressGradients, RolloutDataModule

    setting = SETTINGS["8 x 128"]
    L.seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        setting["env"],
        num_envs=setting["num_envs"] // 2,  # of each rank
        rollout_steps=setting["steps"],
        minibatch_size=setting["minibatch"] // 2,
        passes=setting["passes"],
        total_frames=frames,
    )
    agent = PPO(
        data.spec,
        optimizer=partial(torch.optim.Adam, lr=setting["lr"], eps=1e-5, fused=True),
        gamma=0.99,
        gae_lambda=0.95,
        entropy_coef=setting["entropy"],
    )
    compress = CompressGradients(**METHODS[name])
    trainer = quiet_trainer(strategy="ddp", devices=2, gradient_clip_val=0.5, callbacks=[compress])
    took, _ = timed(lambda: trainer.fit(agent, data))
    compressor = compress.compressor
    assert compressor is not None
    if not trainer.is_global_zero:
        return None
    agent.eval()
    return {
        "bytes": compressor.channel.bytes / compressor.updates,
        "full": float(compressor.full_bytes),
        "updates": float(compressor.updates),
        "return": float(evaluate(setting, agent.predict)),
        **took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=102_400, help="of both ranks")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        name, frames, seed = args.run
        prepare_process()
        told = train(name, int(frames), int(seed))
        if told is not None:
            print(json.dumps(told), flush=True)
        return
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in args.methods}
    with tqdm(total=len(rows) * args.seeds, unit="run") as bar:
        for seed in range(1, args.seeds + 1):
            for name, runs in rows.items():
                runs.append(run_apart(__file__, name, args.frames, seed))
                bar.update()
    print("| method | bytes an update | times smaller | return | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for name, runs in rows.items():
        sent = statistics.mean(run["bytes"] for run in runs)
        full = statistics.mean(run["full"] for run in runs)
        returns = [run["return"] for run in runs]
        spread = statistics.stdev(returns) if len(returns) > 1 else 0.0
        seconds = statistics.median(run["seconds"] for run in runs)
        print(
            f"| {NAMES.get(name, name)} | {sent:,.0f} | {full / sent:.1f} | "
            f"{statistics.mean(returns):.0f} ± {spread:.0f} | {seconds:.1f} |"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: METHODS[name] for name in rows}
        told = {"frames": args.frames, "settings": settings, "runs": rows}
        args.out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
