"""`rl-lightning` tunes a language model by rewards, says how good it is, and hands it on."""

import json

import pytest
import torch
import yaml
from token_tools import characters
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_lightning import Agent
from rl_lightning.cli import main
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.sampling import Sampling


def config(folder, **model):
    return {
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "model": str(folder / "characters"),
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003}},
                "lora_rank": 4,
                **model,
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                "prompts": str(folder / "prompts.jsonl"),
                "rewards": [
                    {"class_path": "rl_lightning.ExactMatch", "init_args": {"weight": 0.5}},
                    {
                        "class_path": "rl_lightning.RewardFunction",
                        "init_args": {"function": "token_tools.letters_in"},
                    },
                ],
                "prompts_per_step": 4,
                "group_size": 4,
                "max_new_tokens": 5,
                "val_share": 0.2,
                "success_threshold": 0.5,
                "steps_per_epoch": 2,
                "total_prompts": 16,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder / "logs")},
            },
        },
        "checkpoint": {"dirpath": str(folder / "ckpt")},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    characters(folder / "characters")
    rows = [{"prompt": f"{i}:", "answer": f"a{i}"} for i in range(10)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
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


def test_fit_validate_predict_and_export(run, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = run("fit", "--config", "config.yaml")
    assert "trained 16 of 16 prompts" in said
    assert "best val/reward" in said
    (events,) = (folder / "logs").rglob("version_0/events*")
    found = EventAccumulator(str(events)).Reload()
    names = set(found.Tags()["scalars"])
    assert {"val/reward", "val/pass@1", "reward/exact_match", "reward/letters_in"} <= names
    assert any("val/completions" in name for name in found.Tags()["tensors"])

    said = run("validate", "--ckpt_path", "ckpt/last.ckpt", "--trust", "token_tools")
    assert "val/pass@1" in said
    said = run("predict", "--config", "config.yaml", "--ckpt_path", "ckpt/last.ckpt")
    assert "2 completions, mean reward" in said
    (path,) = folder.rglob("completions.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(lines[0]["rewards"]) == {"exact_match", "letters_in"}

    said = run("export", "--ckpt_path", "ckpt/last.ckpt", "--out", "merged")
    assert "wrote merged" in said
    agent = Agent.load_from_checkpoint(folder / "ckpt" / "last.ckpt")
    prompt = agent.backbone.tokens.whole(["3:"])[0]
    own = TransformersGenerator()(agent.backbone, [prompt], 1, Sampling(5, 0.0), 0)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    ids = tokenizer("3:", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == prompt
    out = merged.generate(ids, max_new_tokens=5, do_sample=False)[0, len(prompt) :]
    assert out.tolist() == own.ids[0, : own.length[0]].tolist()
    with torch.no_grad():
        exact = agent.backbone.model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, exact, rtol=1e-4, atol=1e-5)
    assert "is there already" in run("export", "--ckpt_path", "ckpt/last.ckpt", "--out", "merged",
                                     status=2)  # fmt: skip
    # What was exported is where another run begins.
    run("fit", "--config", "config.yaml", "--model.model", "merged", "--data.total_prompts", "8",
        "--checkpoint.dirpath", "ckpt2")  # fmt: skip


@pytest.mark.parametrize("function", ["os.system", "subprocess.run", "builtins.exec"])
def test_a_checkpoint_names_no_function_that_is_not_trusted(run, folder, function):
    run(
        "fit",
        "--config",
        "config.yaml",
        "--data.total_prompts",
        "4",
        "--checkpoint.dirpath",
        "evil",
    )
    path = folder / "evil" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    rewards = checkpoint["datamodule_hyper_parameters"]["rewards"]
    rewards[1]["init_args"]["function"] = function
    torch.save(checkpoint, path)
    said = run("validate", "--ckpt_path", str(path), status=2)
    assert function.partition(".")[0] in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data.group_size", "1"], "data.group_size: 1, and GRPO compares"),
        (["--data.chat", "true"], "has no chat template"),
        (["--data.max_new_tokens", "62"], "there is room for 2"),
        (["--data.prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.prompts", "broken.jsonl"], "line 2"),
        (["--model.loss_type", "ppo"], "loss_type"),
        (["--model", "DPO"], "DPO does not learn from completions"),
        (["--model.tune", "frozen"], "nothing would be learned"),
        (["--model.model", "nowhere/model"], "nowhere/model"),
    ],
)
def test_a_mistake_is_one_sentence(run, folder, given, message):
    (folder / "broken.jsonl").write_text('{"prompt": "1:"}\n{"prompt": \n')
    said = run("fit", "--config", "config.yaml", *given, status=2)
    assert message in said
    assert "Traceback" not in said
