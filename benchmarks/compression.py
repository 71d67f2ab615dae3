"""What is left of a policy that is made smaller: return, bytes, latency, parameters.

    python benchmarks/compression.py configs/ppo/cartpole.yaml --tune 32768 \\
        --student configs/distill/cartpole.yaml --out benchmarks/results/compression/cartpole.json

Each seed trains the configuration, then makes its policy smaller in every way of `ARMS` by the
commands of a user (`compress`, `fit`, `fit` of a student), and validates each. Returns are of the
greedy policy in `--episodes` episodes. Bytes are those of a file of the policy's weights alone. The
latency is that of `agent.act` on one observation and on 64, as loaded in a fresh process, on one
thread; weights in few bits are computed in float32. Agreement is what `compress` prints at the last
step: with the policy before that step, without any training after it.
"""

import argparse
import io
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import prepare_process, run_apart
from preparing import cli
from tqdm import tqdm

TUNE = "tune"
ARMS: dict[str, tuple[str, ...]] = {
    "full": (),
    "weights 50 %": ("prune-weights --share 0.5",),
    "weights 80 %": ("prune-weights --share 0.8",),
    "weights 90 %": ("prune-weights --share 0.9",),
    "weights 50 %, tuned": ("prune-weights --share 0.5", TUNE),
    "weights 80 %, tuned": ("prune-weights --share 0.8", TUNE),
    "weights 90 %, tuned": ("prune-weights --share 0.9", TUNE),
    "nodes 50 %": ("prune-nodes --share 0.5",),
    "nodes 50 %, tuned": ("prune-nodes --share 0.5", TUNE),
    "nodes 80 %, tuned": ("prune-nodes --share 0.8", TUNE),
    "nodes 90 %, tuned": ("prune-nodes --share 0.9", TUNE),
    "int8": ("quantise --bits 8",),
    "int4": ("quantise --bits 4",),
    "ternary": ("quantise --bits 2",),
    "binary": ("quantise --bits 1",),
    "int4, trained": ("quantise-aware --bits 4", TUNE, "harden"),
    "ternary, trained": ("quantise-aware --bits 2", TUNE, "harden"),
    "binary, trained": ("quantise-aware --bits 1", TUNE, "harden"),
    "nodes 50 %, tuned, int8": ("prune-nodes --share 0.5", TUNE, "quantise --bits 8"),
}


def measure(checkpoint: str, episodes: int) -> None:
    """One policy, in this process; prints one line of JSON."""
    prepare_process()
    import lightning as L
    import numpy as np
    import torch

    from rl_lightning import Agent
    from rl_lightning.cli.compress import watch
    from rl_lightning.core.tree import rows
    from rl_lightning.data import RLDataModule

    agent: Any = Agent.load_from_checkpoint(checkpoint).eval()
    data: Any = RLDataModule.load_from_checkpoint(
        checkpoint, val_episodes=episodes, val_num_envs=min(50, episodes)
    )
    x = watch(agent, data, 64)[0].x
    sizes = {}
    with torch.no_grad():
        for count in (1, 64):
            batch = rows(x, np.arange(count) % min(50, episodes))
            times = []
            for _ in range(200):
                began = time.perf_counter()
                agent.act(batch, explore=False)
                times.append(time.perf_counter() - began)
            sizes[count] = statistics.median(times)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    (found,) = trainer.validate(agent, data, verbose=False)
    contents = io.BytesIO()
    state = agent.policy.state_dict()
    torch.save(dict(state), contents)
    named = {key: value for key, value in state.items() if not key.endswith("mask")}
    result = {
        "return": found["val/return"],
        "success": found.get("val/success"),
        "bytes": contents.tell(),
        "numbers": sum(value.numel() for value in named.values()),
        "nonzero": sum(int((value != 0).sum()) for value in named.values()),
        "milliseconds": 1e3 * sizes[1],
        "milliseconds_64": 1e3 * sizes[64],
    }
    print(json.dumps(result))


def arm(steps: tuple[str, ...], full: str, config: str, tune: int, folder: Path) -> dict[str, Any]:
    """Make a policy smaller; its checkpoint, and how much `compress` said agrees at last."""
    path, agreed = full, None
    for number, step in enumerate(steps):
        out = folder / f"{number}.ckpt"
        if step == TUNE:
            frames = _frames(path) + tune
            cli(
                *("fit", "--config", config, "--ckpt_path", path),
                *("--data.total_frames", str(frames), "--trainer.logger", "false"),
                *("--checkpoint.dirpath", str(folder / f"{number}")),
            )
            path = str(folder / f"{number}" / "last.ckpt")
            continue
        said = cli("compress", "--ckpt_path", path, "--out", str(out), "--method", *step.split())
        share = re.search(r"([\d.]+)% of [\d,]+ actions agree", said)
        assert share is not None, said
        path, agreed = str(out), float(share[1]) / 100
    return {"checkpoint": path, "agreement": agreed}


def _frames(path: str) -> int:
    from rl_lightning.core.checkpoints import read_checkpoint

    return read_checkpoint(path)["frames"]


def run(arguments: Any) -> dict[str, Any]:
    """All arms of all seeds, each run one row."""
    result: dict[str, Any] = {"config": arguments.config, "tune": arguments.tune, "runs": []}
    names = [name for name in ARMS if not arguments.arms or name in arguments.arms]
    names += ["distilled"] if arguments.student else []
    with (
        tempfile.TemporaryDirectory(prefix="compression-") as place,
        tqdm(total=len(arguments.seeds) * len(names), unit="policy") as bar,
    ):
        for seed in arguments.seeds:
            home = Path(place) / str(seed)
            common = ("--seed_everything", str(seed), "--trainer.logger", "false")
            where = ("--checkpoint.dirpath", str(home / "trained"))
            cli("fit", "--config", arguments.config, *common, *where)
            full = str(home / "trained" / "last.ckpt")
            for name in names:
                bar.set_postfix_str(f"seed {seed}: {name}")
                folder = home / re.sub(r"\W+", "-", name)
                folder.mkdir()
                if name == "distilled":
                    teacher = ("--model.init_args.teacher", full)
                    where = ("--checkpoint.dirpath", str(folder))
                    cli("fit", "--config", arguments.student, *common, *teacher, *where)
                    made = {"checkpoint": str(folder / "last.ckpt"), "agreement": None}
                else:
                    made = arm(ARMS[name], full, arguments.config, arguments.tune, folder)
                row = run_apart(__file__, made["checkpoint"], arguments.episodes)
                result["runs"].append(
                    {"seed": seed, "arm": name, "agreement": made["agreement"], **row}
                )
                bar.update()
                if arguments.out:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """Means over seeds, in Markdown."""
    success = result["runs"][0]["success"] is not None
    lines = [
        f"| policy | {'success' if success else 'return'} | worst | agrees | bytes | × | numbers "
        "| ms, 1 | ms, 64 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    names = list(dict.fromkeys(row["arm"] for row in result["runs"]))
    whole = statistics.mean(row["bytes"] for row in result["runs"] if row["arm"] == "full")
    for name in names:
        rows = [row for row in result["runs"] if row["arm"] == name]
        worth = [row["success" if success else "return"] for row in rows]
        spread = statistics.stdev(worth) if len(worth) > 1 else 0.0
        digits = 3 if success else 1
        agreed = [row["agreement"] for row in rows if row["agreement"] is not None]
        told = f"{statistics.mean(agreed):.1%}" if agreed else ""
        size = statistics.mean(row["bytes"] for row in rows)
        lines.append(
            f"| {name} | {statistics.mean(worth):.{digits}f} ± {spread:.{digits}f} "
            f"| {min(worth):.{digits}f} | {told} | {size:,.0f} | {size / whole:.2f} "
            f"| {statistics.mean(row['nonzero'] for row in rows):,.0f} "
            f"| {statistics.median(row['milliseconds'] for row in rows):.2f} "
            f"| {statistics.median(row['milliseconds_64'] for row in rows):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="configuration to train and make smaller")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--tune", type=int, default=32_768, help="frames of training afterwards")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--student", help="configuration of Distill, to be taught by each seed")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only these")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="print what --out holds, and stop")
    parser.add_argument("--run", nargs=2, metavar=("CHECKPOINT", "EPISODES"))
    arguments = parser.parse_args()
    if arguments.run:
        measure(arguments.run[0], int(arguments.run[1]))
        return
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return
    if arguments.config is None:
        parser.error("name a configuration")
    print(table(run(arguments)))


if __name__ == "__main__":
    main()
