"""What `rl-lightning` does of itself where a configuration of language models says nothing."""

import json

import pytest
from token_tools import characters

from rl_lightning import Agent
from rl_lightning.cli import main
from rl_lightning.core.errors import RunError
from rl_lightning.llm.export import save_merged

ROWS = [{"prompt": f"{i}:", "completion": "ab", "chosen": "ab", "rejected": "b"} for i in range(8)]
REWARDS = ["token_tools.letters_in"]
PROMPTS = {"prompts_per_step": 4, "group_size": 2, "steps_per_epoch": 2, "total_prompts": 16}
RECORDED = {"batch_size": 4, "updates_per_epoch": 2, "total_updates": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


@pytest.fixture
def run(tmp_path, monkeypatch, typed, model):
    monkeypatch.chdir(tmp_path)

    def call(command, agent, data, *args, status=None, **given):
        config = {
            "model": {"class_path": agent, "init_args": {"model": model, "tune": "full"}},
            "data": {
                "class_path": data,
                "init_args": {"prompts": ROWS, "max_new_tokens": 5, "val_share": 0.25, **given},
            },
            "trainer": {
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "logs"},
                },
            },
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        words = [command, "--config", "config.json", *args]
        return typed(*words, status=status)

    return call


@pytest.mark.parametrize(
    ("agent", "data", "given", "judged"),
    [
        ("GRPO", "PromptDataModule", {**PROMPTS, "rewards": REWARDS}, "val/reward"),
        ("SFT", "PromptDataModule", {**PROMPTS, "rewards": REWARDS}, "val/reward"),
        ("SFT", "CompletionDataModule", RECORDED, "val/loss"),
        ("SFT", "CompletionDataModule", {**RECORDED, "rewards": REWARDS}, "val/reward"),
        (
            "DPO",
            "CompletionDataModule",
            {**RECORDED, "rewards": REWARDS, "val_prompts": ["1:", "2:"]},
            "val/reward",
        ),
    ],
)
def test_the_best_checkpoint_is_by_what_is_logged(agent, data, given, judged, run, tmp_path):
    assert f"best {judged}" in run("fit", agent, data, **given)
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_a_monitor_of_ones_own_stays(run):
    said = run("fit", "SFT", "CompletionDataModule", "--checkpoint.monitor", "val/length",
               **RECORDED, rewards=REWARDS)  # fmt: skip
    assert "best val/length" in said


def test_every_update_from_prompts_is_logged_unless_told_otherwise(run, tmp_path):
    def points(*args):
        run("fit", "GRPO", "PromptDataModule", *args, **PROMPTS, rewards=REWARDS)
        newest = max(
            (tmp_path / "logs").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime
        )
        head, *rows = (line.split(",") for line in newest.read_text().splitlines())
        return sum(row[head.index("reward/total")] != "" for row in rows)

    assert points() == 4
    assert points("--trainer.log_every_n_steps", "2") == 2


def test_a_model_that_was_never_trained_is_told_of(run):
    given = {**PROMPTS, "rewards": REWARDS}
    for command in ("validate", "test", "predict"):
        assert "the model as it begins" in run(command, "GRPO", "PromptDataModule", **given)
    run("fit", "GRPO", "PromptDataModule", **given)
    said = run("validate", "GRPO", "PromptDataModule", "--ckpt_path", "last", **given)
    assert "as it begins" not in said


def test_an_export_is_whole_or_not_there(run, tmp_path, monkeypatch, capfd):
    run("fit", "GRPO", "PromptDataModule", **PROMPTS, rewards=REWARDS)
    backbone = Agent.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt").backbone
    tokenizer = type(backbone.tokens.tokenizer)
    whole = tokenizer.save_pretrained

    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(RunError, match=r"out cannot be written: .*No space left"):
        save_merged(backbone, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    monkeypatch.setattr(tokenizer, "save_pretrained", whole)
    (tmp_path / "out").mkdir()  # empty
    save_merged(backbone, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    with pytest.raises(RunError, match="out cannot be written"):
        save_merged(backbone, tmp_path / "out")
    kept = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(SystemExit):
        main(["export", "--ckpt_path", "checkpoints/last.ckpt", "--out", "nowhere/../out"])
    assert "is there already" in capfd.readouterr().err
    assert (tmp_path / "out" / "config.json").read_bytes() == kept
