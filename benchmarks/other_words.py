"""Whether agents have learned what words mean: mazes that they never saw, told in other words.

    python benchmarks/other_words.py configs/ppo/textmaze.yaml configs/ppo/textmaze-words.yaml \
        --frames 71680 --seeds 1 2 3

Each seed is one `rl-lightning fit` on one thread and, of its last checkpoint, one `rl-lightning
validate` for each wording: of observations, by the wrapper `Reword`, and of actions, where a
language model scores them. Results go to `benchmarks/results/generalization/other_words.json`;
those of other configurations stay in it.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from learning import RESULTS, digest, scalars
from preparing import cli, prepare
from tqdm import tqdm

FILE = RESULTS / "generalization" / "other_words.json"
# Of observations: what TextMaze says, and what is said instead.
WORDINGS: dict[str, dict[str, str]] = {
    "as in training": {},
    "exit: goal": {"exit": "goal"},
    "wall: barrier": {"wall": "barrier"},
    "near: close, far: distant": {"near": "close", "far": "distant"},
    "all of these": {"exit": "goal", "wall": "barrier", "near": "close", "far": "distant"},
}
# Of actions, in the environment's order.
ACTIONS: dict[str, list[str]] = {
    "actions: go north, …": ["go north", "go east", "go south", "go west"],
    "actions: up, right, …": ["up", "right", "down", "left"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, help="of TextMaze")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--frames", type=int, help="to train for; default: as configured")
    args = parser.parse_args()
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    for path in args.configs:
        name = f"{path.parent.name}-{path.stem}"
        prepare(name)
        runs = []
        for seed in tqdm(args.seeds, desc=name, unit="seed"):
            runs.append(run(path, seed, args.frames))
            results[name] = {
                "config": path.as_posix(),
                "digest": digest(path),
                "frames": args.frames,
                "seeds": args.seeds[: len(runs)],
                "success": {
                    wording: [round(one[wording], 4) for one in runs] for wording in runs[0]
                },
            }
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """Mean success by wording and configuration, as Markdown; – where nobody was asked."""
    wordings = list(dict.fromkeys(w for result in results.values() for w in result["success"]))
    lines = [f"| | {' | '.join(results)} |", f"|---|{'--:|' * len(results)}"]
    for wording in wordings:
        found = (result["success"].get(wording) for result in results.values())
        cells = ("–" if runs is None else f"{mean(runs):.3f}" for runs in found)
        lines.append(f"| {wording} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(path: Path, seed: int, frames: int | None) -> dict[str, float]:
    """Train with one seed, and play held-out mazes in each wording: success by its name."""
    config = yaml.safe_load(path.read_text())
    budget = [] if frames is None else [f"--data.total_frames={frames}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def command(verb: str, logs: Path, *more: str) -> dict[str, list[tuple[int, float]]]:
            cli(verb, f"--config={path}", f"--seed_everything={seed}", *budget,
                f"--trainer.logger.init_args.save_dir={logs}",
                f"--checkpoint.dirpath={folder / 'checkpoints'}", *more)  # fmt: skip
            return scalars(logs)

        command("fit", folder / "fit")
        checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
        found = {}
        for wording, change in wordings(config).items():
            played = command("validate", folder / "validate" / str(len(found)), checkpoint, *change)
            found[wording] = played["val/success"][-1][1]
        return found


def wordings(config: dict[str, Any]) -> dict[str, list[str]]:
    """Arguments of `rl-lightning validate` that change what is said, by the name of the change."""
    changes = {
        name: [f"--data.wrappers={json.dumps([{'Reword': {'words': words}}])}"] if words else []
        for name, words in WORDINGS.items()
    }
    encoder = config["model"]["init_args"]["encoder"]
    if isinstance(encoder, dict) and "actions" in encoder["init_args"]:
        option = "--model.init_args.encoder.init_args.actions"
        changes |= {name: [f"{option}={json.dumps(texts)}"] for name, texts in ACTIONS.items()}
    return changes


if __name__ == "__main__":
    main()
