"""Episodes of several turns from a configuration: trained, evaluated without one, written down."""

import json

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from token_tools import characters

from rl_lightning.cli.command import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = characters(folder / "characters", positions=128)
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": "rl_lightning.GRPO",
            "init_args": {"model": model, "tune": "lora", "credit": "turn", "gamma": 0.9},
        },
        "data": {
            "class_path": "rl_lightning.EpisodeDataModule",
            "init_args": {
                "env": "talking:copying",
                "env_kwargs": {"ragged": True},
                "actions": ["a", "b"],
                "template": "{observation}:",
                "turn_template": "\n{observation}:",
                "max_new_tokens": 1,
                "rewards": [
                    {
                        "class_path": "rl_lightning.LengthReward",
                        "init_args": {"target": 1, "weight": 0.5},
                    }
                ],
                "prompts_per_step": 4,
                "group_size": 4,
                "steps_per_epoch": 2,
                "total_prompts": 16,
                "val_episodes": 6,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder / "logs"), "name": "run"},
            },
        },
        "checkpoint": {"dirpath": str(folder / "checkpoints")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path)])
    return folder


def test_curves_and_conversations_are_logged(trained):
    (events,) = (trained / "logs" / "run").glob("*/events*")
    found = EventAccumulator(str(events), size_guidance={"tensors": 0})
    found.Reload()
    for name in (
        "train/return", "train/success", "train/turns", "policy/illegal", "completion/cut",
        "reward/env", "reward/length_reward", "val/reward", "val/return", "val/success",
        "val/turns", "val/illegal", "val/cut",
    ):  # fmt: skip
        assert name in found.Tags()["scalars"], name
    (text,) = (tag for tag in found.Tags()["tensors"] if tag.startswith("val/completions"))
    table = found.Tensors(text)[-1].tensor_proto.string_val[0].decode()
    assert "completion" in table
    assert "a:" in table or "b:" in table


def test_a_checkpoint_says_what_was_played_and_may_not_say_what_is_called(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(trained / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--ckpt_path", checkpoint])
    assert ended.value.code == 2
    assert "by calling talking:copying: if you trust that package" in capsys.readouterr().err
    main(["validate", "--ckpt_path", checkpoint, "--trust", "talking"])
    assert "val/return" in capsys.readouterr().out


def test_a_checkpoint_cannot_have_anything_called(trained, tmp_path, capsys):
    known = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    known["datamodule_hyper_parameters"] |= {
        "env": "os:system",
        "env_kwargs": {"command": f"touch {tmp_path / 'ran'}"},
    }
    torch.save(known, tmp_path / "forged.ckpt")
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--ckpt_path", str(tmp_path / "forged.ckpt")])
    assert ended.value.code == 2
    assert not (tmp_path / "ran").exists()


def test_predictions_are_lines_with_turns(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = trained / "config.yaml", trained / "checkpoints" / "last.ckpt"
    main(["predict", "--config", str(config), "--ckpt_path", str(checkpoint)])
    (found,) = [*trained.rglob("completions.jsonl"), *tmp_path.rglob("completions.jsonl")]
    lines = [json.loads(line) for line in found.read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert {"prompt", "completion", "reward", "seed", "turns", "success"} <= set(line)
        first = line["turns"][0]
        assert {"wrote", "action", "illegal", "reward", "observation"} == set(first)
