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


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("\n\n".join(OWN), id="today"),
        pytest.param(FORMER, id="before", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("agent", "lr", "data", "budget"),
    [
        ("PolicyGradient", 0.01, "RolloutDataModule", ROLLOUTS),
        ("SoftQ", 0.001, "ReplayDataModule", REPLAY),
    ],
)
def test_own_agent_encoder_and_environment_learn_together(code, agent, lr, data, budget, tmp_path):
    assert len(OWN) == 6
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


@pytest.mark.slow
def test_own_policy_and_reward_are_one_line_each(tmp_path):
    (tmp_path / "my_module.py").write_text("\n\n".join(OWN))
    config = TRAIN.format(
        agent="rl_lightning.PPO",
        encoder="my_module.BagOfWords",
        lr=0.01,
        data="RolloutDataModule",
        budget=ROLLOUTS.replace(", ", "\n    ") + "\n    minibatch_size: 40\n    passes: 4",
    ).replace(
        "    lr: 0.01\n", "    network: {class_path: my_module.Floored, init_args: {floor: 0.1}}\n"
    )
    config = config.replace("wrappers: [", "wrappers: [{my_module.Tired: {cost: 0.5}}, ")
    assert "Tired" in config
    (tmp_path / "config.yaml").write_text(config)
    options = ["--model.optimizer=Adam", "--model.optimizer.lr=0.01"]
    done = run(["-m", "rl_lightning", "fit", "--config", "config.yaml", *options], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "best val/return 5:" in done.stdout  # ten right steps of 1 − 0.5
    (tmp_path / "ratio.py").write_text(
        "import torch, my_module\n"
        "from functools import partial\n"
        "from rl_lightning import PPO, EnvSpec, MLPEncoder\n"
        "import gymnasium as gym\n"
        "spec = EnvSpec(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(4), 'x')\n"
        "policy = my_module.Floored(spec, MLPEncoder, floor=0.4)\n"
        "x, mask = torch.randn(5, 3), torch.tensor([[True, False, True, True]]).repeat(5, 1)\n"
        "told = policy.inspect(x, mask=mask)['probabilities']\n"
        "assert torch.allclose(told.sum(1), torch.ones(5)) and (told[:, 1] == 0).all()\n"
        "assert (policy.inspect(x)['probabilities'] >= 0.1 - 1e-6).all()\n"
    )
    done = run(["ratio.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_named_metric_and_file_exists():
    root = Path(__file__).parents[1]
    code = "".join(path.read_text() for path in (root / "rl_lightning").rglob("*.py"))
    for name in re.findall(r"`((?:train|val|loss|policy|value|optim|time|llm)/\w+)`", README):
        metric = name.partition("/")[2]
        assert f'"{name}"' in code or f"/{metric}" in code, name
    for name in re.findall(r"`((?:configs|tests|benchmarks|rl_lightning)/[\w./-]+\.\w+)`", README):
        assert (root / name).exists(), name
