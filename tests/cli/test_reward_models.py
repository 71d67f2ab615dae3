"""`rl-lightning fit` learns a reward, `validate` judges it, another run is rewarded by it."""

import json

import pytest
import yaml
from preference_tools import record_mazes

from rl_lightning.cli import main


def config(folder, **data):
    return {
        "model": {
            "class_path": "RewardModel",
            "init_args": {
                "encoder": {"class_path": "preference_tools.Words"},
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "PreferenceDataModule",
            "init_args": {
                "dataset": str(folder / "mazes.hdf5"),
                "labeller": {
                    "class_path": "rl_lightning.rewards.WordLabeller",
                    "init_args": {"weights": {"near": 1.0, "far": -1.0}},
                },
                "pairs": 300,
                "val_share": 0.2,
                "updates_per_epoch": 30,
                "total_updates": 60,
                **data,
            },
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
        "checkpoint": {"dirpath": str(folder / "ckpt"), "monitor": "val/accuracy"},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    record_mazes(folder / "mazes.hdf5", episodes=8)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(folder)))
    return folder


@pytest.fixture
def run(folder, monkeypatch, capfd):
    def call(*args, status=None):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["rl-lightning", *args])
        if status is None:
            main(list(args))
        else:
            with pytest.raises(SystemExit) as ended:
                main(list(args))
            assert ended.value.code == status
        return "".join(capfd.readouterr())

    return call


def test_fit_validate_and_use(folder, run):
    told = run("fit", "--config", "config.yaml")
    assert "trained 60 of 60 updates" in told
    assert "best val/accuracy" in told
    told = run("validate", "--config", "config.yaml", "--ckpt_path", "best")
    assert "val/accuracy" in told
    told = run("fit", "--config", "config.yaml", "--ckpt_path", "last", "--data.total_updates=90")
    assert "trained 90 of 90 updates" in told
    reward = f"{{ckpt_path: {folder / 'ckpt' / 'best.ckpt'}, weight: 0.5}}"
    told = run(
        *("fit", "--model", "PPO", "--model.encoder", "preference_tools.Words"),
        *("--data", "RolloutDataModule", "--data.env", "TextMaze-v0", "--data.total_frames=64"),
        *("--data.num_envs=2", "--data.rollout_steps=16", "--trainer.accelerator=cpu"),
        *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
        *("--checkpoint.dirpath", str(folder / "ppo"), "--trainer.logger=false"),
        f"--data.rewards=[{{class_path: rl_lightning.rewards.LearnedReward, init_args: {reward}}}]",
    )
    assert "trained 64 of 64 frames" in told


def test_the_best_is_that_of_the_least_loss_unless_it_is_said(folder, run):
    silent = config(folder)
    del silent["checkpoint"]["monitor"]
    (folder / "silent.yaml").write_text(yaml.safe_dump(silent))
    ours = ("--config", "silent.yaml", "--checkpoint.dirpath", str(folder / "silent"))
    assert "best val/loss" in run("fit", *ours)
    told = run("fit", *ours, "--checkpoint.monitor=val/accuracy")
    assert "best val/accuracy" in told


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--data.labeller", "Labeller"], "Labeller is what others are derived from"),
        (["--data.labeller", "WordLabler"], "WordLabeller"),
        (["--data.dataset", "none.hdf5"], "none.hdf5"),
        (["--data.val_share", "2"], "data.val_share must be between 0 and 0.9, not 2"),
        (["--model.objective", "rank"], "objective"),
        (["--data.batch_size", "1e2", "--data.pairs", "1"], "data.pairs must be at least 2"),
    ],
)
def test_mistakes_get_a_sentence(run, args, sentence):
    told = run("fit", "--config", "config.yaml", *args, status=2)
    assert sentence in told
    assert "Traceback" not in told


def test_a_file_of_comparisons(folder, run):
    near, far = "The exit is near north.", "The exit is far north."
    pairs = [{"a": f"{far} {k}", "b": f"{near} {k}", "label": 1} for k in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    lines = ("--data.dataset", "pairs.jsonl", "--data.labeller=null", "--checkpoint.dirpath=lines")
    told = run("fit", "--config", "config.yaml", *lines)
    assert "best val/accuracy 1" in told
    told = run("fit", "--config", "config.yaml", *lines, "--model.inputs=transition", status=2)
    assert "inputs: transition judges steps, and pairs.jsonl holds texts" in told


def test_predict_is_refused(run):
    assert "a reward model plays none" in run("predict", "--config", "config.yaml", status=2)
