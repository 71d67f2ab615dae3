"""The README's Python is run, not believed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
TRAIN = """
model:
  class_path: {agent}
  init_args:
    encoder: {encoder}
    lr: {lr}
data:
  class_path: {data}
  init_args:
    env: my_module:Light-v0
    wrappers: [{{Describe: {{describer: my_module.describe}}}}]
    num_envs: 8
    val_episodes: 4
    {budget}
trainer: {{accelerator: cpu, logger: false, enable_model_summary: false}}
"""


def run(arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_library_example_runs_and_is_short(tmp_path):
    block = next(b for b in BLOCKS if "load_from_checkpoint" in b)
    assert len([line for line in block.splitlines() if line.strip()]) < 15
    done = run(["-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^([01])\n\[\1 \1 \1\]$", done.stdout, re.M)


ROLLOUTS = "rollout_steps: 20, total_frames: 24_000, rollouts_per_epoch: 25"
REPLAY = "total_frames: 4_000, warmup_frames: 200"


OWN = [block for block in BLOCKS if "load_from_checkpoint" not in block]
# What the README of the version before said: it runs for one more version.
FORMER = (Path(__file__).parent / "former_readme.txt").read_text()


@pytest.mark.parametrize("code", ["\n\n".join(OWN), FORMER], ids=["today", "before"])
@pytest.mark.parametrize(
    ("agent", "lr", "data", "budget"),
    [
        ("PolicyGradient", 0.01, "RolloutDataModule", ROLLOUTS),
        ("SoftQ", 0.001, "ReplayDataModule", REPLAY),
    ],
)
def test_own_agent_encoder_and_environment_learn_together(code, agent, lr, data, budget, tmp_path):
    assert len(OWN) == 4
    (tmp_path / "my_module.py").write_text(code)
    config = TRAIN.format(
        agent=f"my_module.{agent}",
        encoder="my_module.BagOfWords",
        lr=lr,
        data=data,
        budget=budget.replace(", ", "\n    "),
    )
    (tmp_path / "config.yaml").write_text(config)
    done = run(["-m", "rl_lightning", "fit", "--config", "config.yaml"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "best val/return 10:" in done.stdout  # ten steps, all of them right
    assert ("FormerWarning" in done.stderr) == (code == FORMER)


def test_every_named_metric_and_file_exists():
    root = Path(__file__).parents[1]
    code = "".join(path.read_text() for path in (root / "rl_lightning").rglob("*.py"))
    for name in re.findall(r"`((?:train|val|loss|policy|value|optim|time|llm)/\w+)`", README):
        metric = name.partition("/")[2]
        assert f'"{name}"' in code or f"/{metric}" in code, name
    for name in re.findall(r"`((?:configs|tests|benchmarks|rl_lightning)/[\w./-]+\.\w+)`", README):
        assert (root / name).exists(), name
