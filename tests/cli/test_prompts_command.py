"""`rl-lightning` tunes a language model by rewards, says how good it is, and hands it on."""

import json
import re

import pytest
import torch
import yaml
from token_tools import characters
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_lightning import Agent
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
def run(folder, monkeypatch, typed):
    monkeypatch.chdir(folder)
    return typed


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

    write = ("predict", "--config", "config.yaml", "--ckpt_path", "ckpt/last.ckpt",
             "--data.val_samples", "4", "--data.record", "pairs/written.jsonl")  # fmt: skip
    said = run(*write)
    assert re.search(r"8 completions, mean reward \S+: pairs/written.jsonl, which holds 8\n", said)
    with pytest.warns(UserWarning, match="pairs/written.jsonl holds completions, and new ones"):
        assert "pairs/written.jsonl, which holds 16\n" in run(*write)
    written = [json.loads(line) for line in (folder / "pairs/written.jsonl").open()]
    assert len(written) == 16
    assert written[:8] == written[8:]  # the same model under the same seed
    assert "as JSON lines, to a file such as" in run(*write[:-1], "pairs.hdf5", status=2)
    (folder / "full").mkdir()
    (folder / "full/x.jsonl").mkdir()
    assert "full/x.jsonl cannot be written" in run(*write[:-1], "full/x.jsonl", status=2)
    (folder / "full/y.jsonl").symlink_to("/dev/full")
    assert "could not be written to full/y.jsonl: No sp" in run(
        *write[:-1], "full/y.jsonl", status=1
    )
    assert {frozenset(line["columns"]) for line in written} == {frozenset(["answer"])}

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


def test_a_model_tuned_as_a_whole_is_exported_and_generates_the_same(run, folder):
    full = config(folder, tune="full")
    full["model"]["init_args"].pop("lora_rank")
    (folder / "full.yaml").write_text(yaml.safe_dump(full))
    run("fit", "--config", "full.yaml", "--checkpoint.dirpath", "full")
    run("export", "--ckpt_path", "full/last.ckpt", "--out", "whole")
    agent = Agent.load_from_checkpoint(folder / "full" / "last.ckpt")
    exported = AutoModelForCausalLM.from_pretrained(folder / "whole").eval()
    start = AutoModelForCausalLM.from_pretrained(folder / "characters").eval()
    ids = AutoTokenizer.from_pretrained(folder / "whole")("3:", return_tensors="pt")["input_ids"]
    own = TransformersGenerator()(agent.backbone, ids.tolist(), 1, Sampling(8, 0.0), 0)
    out = exported.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert out.tolist() == own.ids[0, : own.length[0]].tolist()
    with torch.no_grad():
        logits = exported(input_ids=ids).logits
        assert logits.equal(agent.backbone.model(input_ids=ids).logits)
        assert not torch.allclose(logits, start(input_ids=ids).logits, atol=1e-3)


def test_recorded_completions_are_imitated_and_compared(run, folder):
    rows = [
        {"prompt": f"{i}:", "completion": f"a{i}", "chosen": "a", "rejected": "b"}
        for i in range(10)
    ]
    (folder / "recorded.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in ("SFT", "DPO"):
        made = config(folder)
        made["model"]["class_path"] = kind
        data = made["data"]["init_args"]
        made["data"] = {
            "class_path": "CompletionDataModule",
            "init_args": {
                "prompts": str(folder / "recorded.jsonl"),
                "rewards": data["rewards"][1:],
                "batch_size": 4,
                "updates_per_epoch": 2,
                "total_updates": 4,
                "max_new_tokens": 5,
                "val_share": 0.2,
            },
        }
        (folder / "recorded.yaml").write_text(yaml.safe_dump(made))
        assert "trained 4 of 4 updates" in run(
            "fit", "--config", "recorded.yaml", "--checkpoint.dirpath", kind
        )
        said = run("validate", "--ckpt_path", f"{kind}/last.ckpt", "--trust", "token_tools")
        assert "val/loss" in said
        assert "val/reward" in said
    said = run("fit", "--config", "recorded.yaml", "--model", "GRPO", status=2)
    assert "GRPO does not learn from recorded completions" in said
    assert "Traceback" not in said


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
        (
            ["--data.prompts", "long.jsonl", "--data.val_share", "0"],
            "prompt 1 has 71 tokens, and there is room for 59",
        ),
        (["--data.val_prompts", "long.jsonl"], "data.val_prompts: prompt 1 has 71 tokens"),
        (["--model.tune", "frozen"], "nothing would be learned"),
        (["--model.model", "nowhere/model"], "nowhere/model"),
    ],
)
def test_a_mistake_is_one_sentence(run, folder, given, message):
    (folder / "broken.jsonl").write_text('{"prompt": "1:"}\n{"prompt": \n')
    (folder / "long.jsonl").write_text(f'{{"prompt": "{"1" * 70}"}}\n{{"prompt": "1:"}}')
    said = run("fit", "--config", "config.yaml", *given, status=2)
    assert message in said
    assert "Traceback" not in said
