"""What the logs show of a reward that is hacked, and of one without spread.

    python benchmarks/hacked_rewards.py          # some minutes

The task of configs/grpo/strings.yaml with other rewards: right answers alone; right answers, and
twice as much for long ones; right answers, and twice as much for a form that most right ones do not
have; and a form that the model never writes. The table stands in docs/llm-finetuning.md.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from learning import scalars, versions
from preparing import cli, prepare
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "diagnosis" / "hacked_rewards.json"
CONFIG = "configs/grpo/strings.yaml"
RIGHT = {"class_path": "rl_lightning.ExactMatch"}
LONG = {"class_path": "rl_lightning.LengthReward", "init_args": {"target": 6, "weight": 2.0}}
SHORT = {
    "class_path": "rl_lightning.FormatReward",
    "init_args": {"pattern": r"\d\d?", "weight": 2.0},
}
NEVER = {"class_path": "rl_lightning.FormatReward", "init_args": {"pattern": "yes|no"}}
CASES = {
    "right answers": [RIGHT],
    "… and long ones": [RIGHT, LONG],
    "… and of at most two digits": [RIGHT, SHORT],
    "`yes` or `no`": [NEVER],
}
SHOWN = {
    "reward/total": 2,
    "reward/exact_match": 2,
    "completion/length": 1,
    "reward/std_in_group": 2,
    "reward/groups_without_spread": 2,
    "policy/entropy": 2,
}


def main() -> None:
    prepare("grpo-strings")
    found: dict[str, Any] = {}
    for name, rewards in tqdm(CASES.items(), unit="run"):
        found[name] = learn(rewards)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        rows = {"config": CONFIG, "cases": found, "versions": versions()}
        RESULTS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(table(found))


def learn(rewards: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What was logged at the beginning and at the end: means over a tenth of the run."""
    with tempfile.TemporaryDirectory() as folder:
        cli(
            "fit",
            f"--config={CONFIG}",
            f"--data.rewards={json.dumps(rewards)}",
            "--data.total_prompts=12800",
            f"--trainer.logger.init_args.save_dir={folder}",
            f"--checkpoint.dirpath={folder}/checkpoints",
        )
        history = scalars(Path(folder))
    out = {}
    for name in SHOWN:
        values = [value for _, value in history.get(name, [])]
        part = max(len(values) // 10, 1)
        if values:
            ends = values[:part], values[-part:]
            out[name] = [round(sum(end) / len(end), 4) for end in ends]
    return out


def table(cases: dict[str, dict[str, list[float]]]) -> str:
    """As Markdown: from the beginning to the end of each."""
    heads = [f"`{name}`" for name in SHOWN]
    rows = [f"| rewarded are | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name, told in cases.items():
        cells = [
            " → ".join(f"{value:.{digits}f}" for value in told[metric]) if metric in told else "–"
            for metric, digits in SHOWN.items()
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
