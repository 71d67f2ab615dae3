"""The learned rewards of `benchmarks/comparisons/textmaze-judges.yaml`, and the control of them.

    python benchmarks/textmaze_judges.py

Records an untrained policy in mazes of all kinds, trains a reward model on preferences by words
(`configs/reward/textmaze-distance.yaml`), and another one on the same comparisons with their labels
shuffled among them: `datasets/textmaze-exact-shuffled.jsonl`.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from preparing import cli

from rl_lightning.data.preferences.questions import Questions
from rl_lightning.data.preferences.recorded import RecordedSteps
from rl_lightning.rewards import WordLabeller

CONFIG = "configs/reward/textmaze-distance.yaml"
BASE = "benchmarks/comparisons/base/textmaze-sparse.yaml"
SHUFFLED = Path("datasets/textmaze-exact-shuffled.jsonl")
CHECKPOINTS = (
    "checkpoints/reward-textmaze-distance",
    "checkpoints/reward-textmaze-distance-shuffled",
)


def main() -> None:
    data = yaml.safe_load(Path(CONFIG).read_text())["data"]["init_args"]
    recorded = data["dataset"]
    for folder in CHECKPOINTS:  # a second run into it would leave the first one's files in place
        shutil.rmtree(folder, ignore_errors=True)
    if not Path(recorded).exists():
        Path(recorded).parent.mkdir(exist_ok=True)
        cli("predict", f"--config={BASE}", "--data.env_kwargs.seed_range=[0,1000000]",
            "--data.val_explore=true", "--data.val_episodes=300",
            f"--data.record={recorded}")  # fmt: skip
    print(cli("fit", f"--config={CONFIG}").splitlines()[-2])
    labeller = WordLabeller(**data["labeller"]["init_args"])
    source = RecordedSteps(recorded, "next_obs", None)
    drawn = source.questions(data["pairs"], data["val_share"], 2, 0)
    rows = shuffled([row for part in drawn for row in labelled(source, part, labeller)])
    SHUFFLED.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(cli("fit", f"--config={CONFIG}", f"--data.dataset={SHUFFLED}", "--data.labeller=null",
              f"--checkpoint.dirpath={CHECKPOINTS[1]}").splitlines()[-2])  # fmt: skip


def labelled(source: Any, questions: Questions, labeller: Any) -> list[dict[str, Any]]:
    """Comparisons with their answers, as lines of a file."""
    pairs = [(source.text(a), source.text(b)) for a, b in questions.items]
    answers = labeller(pairs)
    return [{"a": a, "b": b, "label": y} for (a, b), y in zip(pairs, answers, strict=True)]


def shuffled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same comparisons, and the same labels in another order."""
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    return [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]


if __name__ == "__main__":
    main()
