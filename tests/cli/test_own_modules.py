"""Classes of one's own on the command line: found where one stands, and told why if not."""

import subprocess
import sys

import pytest

from rl_lightning.cli.command import main

OWN = """
from rl_lightning import PPO

class Mine(PPO):
    pass
"""
RUN = ["--data=RolloutDataModule", "--data.env=CartPole-v1", "--trainer.logger=false"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_agent.Typo", "own_agent has no Typo"),
        ("own_agent.Mino", "did you mean own_agent.Mine?"),
        ("broken_agent.Any", "No module named 'not_installed' (broken_agent.py:1)"),
        ("nowhere_at_all.Any", "No module named 'nowhere_at_all'"),
    ],
)
@pytest.mark.parametrize("argument", ["--model", "--model.encoder"])
def test_why_a_class_cannot_be_had(argument, path, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_agent.py").write_text(OWN)
    (tmp_path / "broken_agent.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = [] if argument == "--model" else ["--model=PPO"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *before, f"{argument}={path}", *RUN])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["validate", "--ckpt_path", "missing.ckpt"], False),
        (["validate", "--ckpt_path", "missing.ckpt", "--trust", "own_agent"], True),
        (["validate", "--config", "missing.yaml", "--ckpt_path", "missing.ckpt"], True),
        (["fit", "--config", "missing.yaml"], True),
    ],
)
def test_a_checkpoint_alone_does_not_bring_its_folder(arguments, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed = [path for path in sys.path if path]
    monkeypatch.setattr(sys, "path", list(installed))
    with pytest.raises(SystemExit):
        main(arguments)
    assert sys.path == installed + [str(tmp_path)] * found  # behind what is installed


def test_the_command_finds_modules_in_the_folder_where_it_is_run(tmp_path):
    """The installed script's own folder is first on Python's path, not this one."""
    (tmp_path / "own_agent.py").write_text(OWN)
    script = "import sys; sys.path.pop(0); from rl_lightning.__main__ import main; main()"
    arguments = ["fit", "--model=own_agent.Mine", *RUN, "--data.total_frames=64"]
    arguments += ["--data.num_envs=2", "--data.rollout_steps=16", "--data.minibatch_size=32"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--data.val_episodes=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "trained 64 of 64 frames" in done.stdout
