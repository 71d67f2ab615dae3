"""Whether this tree and another one learn the same, to the last bit.

    git worktree add ../before some-revision
    python benchmarks/same_weights.py --before ../before     # a quarter of an hour

Each configuration is trained for a few epochs by the command line of each tree, in a process of its
own, with one thread and the same seed; compared are the digests of all that its last checkpoint
holds of weights, optimizer and frames.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

RUNS = {  # configuration: what to make smaller
    "ppo/cartpole": ["--data.total_frames=20480"],
    "ppo/cartpole-recurrent": ["--data.total_frames=12288"],
    "a2c/cartpole": ["--data.total_frames=20000"],
    "dqn/cartpole-rainbow": ["--data.total_frames=4000"],
    "sac/pendulum": ["--data.total_frames=2500"],
    "dqn/bitflip-her": ["--data.total_frames=4000"],
    "ppo/textmaze": ["--data.total_frames=4096"],
    "ppo/textmaze-random-lora": ["--data.total_frames=2048"],
}


def digest(value: object) -> str:
    """Of tensors, in the order of their names, whatever holds them."""
    found = hashlib.sha256()

    def feed(part: object) -> None:
        if isinstance(part, torch.Tensor):
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                found.update(str(key).encode())
                feed(part[key])
        elif isinstance(part, list | tuple):
            for entry in part:
                feed(entry)
        else:
            found.update(repr(part).encode())

    feed(value)
    return found.hexdigest()[:16]


def learn(tree: Path, config: str, options: list[str], folder: Path) -> str:
    """Train in a tree; the digest of its last checkpoint."""
    command = [sys.executable, "-m", "rl_lightning", "fit"]
    command += ["--config", str(tree / "configs" / f"{config}.yaml"), *options]
    command += [f"--checkpoint.dirpath={folder}", "--trainer.logger=false"]
    command += ["--trainer.enable_progress_bar=false", "--data.val_episodes=2"]
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{config} in {tree} failed:\n{done.stderr[-3000:]}")
    checkpoint = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)
    return digest({key: checkpoint[key] for key in ("state_dict", "optimizer_states", "frames")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    trees = [args.before.resolve(), Path(__file__).resolve().parents[1]]
    differ = []
    with tqdm(total=2 * len(args.runs), unit="run") as bar:
        for config in args.runs:
            found = []
            for tree in trees:
                with tempfile.TemporaryDirectory() as folder:
                    found.append(learn(tree, config, RUNS[config], Path(folder)))
                bar.update()
            same = found[0] == found[1]
            differ += [] if same else [config]
            tqdm.write(f"{config}: {'the same' if same else 'DIFFERENT'} ({', '.join(found)})")
    raise SystemExit(f"different: {', '.join(differ)}" if differ else 0)


if __name__ == "__main__":
    main()
