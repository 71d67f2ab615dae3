"""Models and checkpoints from elsewhere: without ends of texts, or with names that lead astray."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from token_tools import characters, letters_in, make, prompts, recorded
from training import fit, make_trainer

from rl_lightning import CompletionDataModule, PromptDataModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.rewards.completions import RewardFunction


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


@pytest.fixture(scope="module")
def endless(model, tmp_path_factory):
    """The model, with a tokenizer that has neither end nor padding."""
    folder = tmp_path_factory.mktemp("endless") / "characters"
    shutil.copytree(model, folder)
    for name in ("tokenizer_config", "config", "generation_config"):
        file = Path(folder) / f"{name}.json"
        known = json.loads(file.read_text())
        kept = {k: v for k, v in known.items() if k not in ("eos_token", "pad_token")}
        none = {"eos_token_id": None, "pad_token_id": None} if name != "tokenizer_config" else {}
        file.write_text(json.dumps({**kept, **none}))
    return str(folder)


@pytest.mark.parametrize("name", ["GRPO", "TokenPPO"])
def test_a_model_without_an_end_is_ended_by_the_limit_or_a_text(name, endless):
    agent = make(name, endless)
    tokenizer = agent.backbone.tokens.tokenizer
    assert tokenizer.eos_token_id is None
    assert tokenizer.pad_token_id is None
    for stop, cut in (((), True), (("a", "b", "c", "1", "2", " "), False)):
        data = prompts(stop=stop, total_prompts=4, steps_per_epoch=1, max_new_tokens=30)
        trainer = make_trainer(log_every_n_steps=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(make(name, endless), data)
        told = trainer.callback_metrics
        assert (float(told["completion/cut"]) == 1.0) == cut
        assert (float(told["completion/length_min"]) == 30.0) == cut


def test_recorded_completions_of_a_model_without_an_end_are_what_they_are(endless):
    data = recorded()
    agent = fit(make("SFT", endless), data)
    assert agent.updates == 10
    batch = data.batch("train", [0])
    text = agent.backbone.tokens.tokenizer.decode(batch["ids"][0, 0, : batch["length"][0, 0]])
    assert text == data.cut("train").table.columns(0)["completion"]
    rows = [{"prompt": "1:", "completion": ""}]
    nothing = CompletionDataModule(rows, val_share=0.0, max_new_tokens=6)
    with pytest.raises(ConfigurationError, match="0 tokens"):
        fit(make("SFT", endless), nothing)


def test_a_completion_may_be_its_end_alone(model):
    rows = [{"prompt": "1:", "completion": ""}, {"prompt": "2:", "completion": "ab"}]
    sizes = {"max_new_tokens": 6, "total_updates": 150, "updates_per_epoch": 150}
    data = CompletionDataModule(rows, val_prompts=rows, rewards=[letters_in], **sizes)
    agent = fit(make("SFT", model), data)
    (lines,) = make_trainer().predict(agent, data)
    assert [line["completion"] for line in lines] == ["", "ab"]
    assert [(line["tokens"], line["ended"]) for line in lines] == [(1, True), (3, True)]


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """A checkpoint of a short run."""
    path = tmp_path_factory.mktemp("stored") / "last.ckpt"
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = prompts(rewards=[RewardFunction("token_tools.letters_in")], total_prompts=4)
        trainer.fit(make("GRPO", model, optimizer=torch.optim.Adam), data)
    trainer.save_checkpoint(path)
    return path


def forged(stored, path, **given):
    checkpoint = torch.load(stored, weights_only=True)
    checkpoint["datamodule_hyper_parameters"] |= given
    torch.save(checkpoint, path)
    return path


ASTRAY = [
    "os.system",
    "torch.os.system",
    "torch.hub.load",
    "rl_lightning.cli.command.os.system",
    "rl_lightning.data.prompt_module.resource.setrlimit",
    "rl_lightning.cli.main",
    "rl_lightning.llm.load.load_backbone",
    "gymnasium.make",
    "antigravity.fly",
]


@pytest.mark.parametrize("path", ASTRAY)
def test_no_name_in_a_checkpoint_leads_to_a_function_of_others(path, stored, tmp_path):
    named = {"class_path": "rl_lightning.RewardFunction", "init_args": {"function": path}}
    astray = [
        {"rewards": [path]},
        {"rewards": [named]},
        {"rewards": [{"class_path": path}]},
        {"prompts": {"class_path": path, "init_args": {}}},
        {"val_prompts": {"class_path": path, "init_args": {}}},
        {"generator": {"class_path": path, "init_args": {}}},
    ]
    for given in astray:
        with pytest.raises(ConfigurationError, match=r"the checkpoint (names|asks for)"):
            PromptDataModule.load_from_checkpoint(forged(stored, tmp_path / "a.ckpt", **given))


def test_what_a_checkpoint_may_name_it_names(stored, tmp_path):
    path = forged(stored, tmp_path / "a.ckpt", rewards=["token_tools.letters_in"])
    loaded = PromptDataModule.load_from_checkpoint(path)
    assert list(loaded.judge.rewards) == ["letters_in"]
