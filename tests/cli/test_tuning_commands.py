"""`rl-lightning` tunes language models: where it begins, is interrupted, goes on and is wrong."""

import json
import re
import shutil

import pytest
import torch
from token_tools import characters, make
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_lightning import Agent
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.sampling import Sampling

ROWS = [
    {"prompt": f"{i}:", "answer": f"a{i}", "completion": f"ab{i}", "chosen": "a", "rejected": "b"}
    for i in range(10)
]
FUNCTION = "token_tools.letters_in"
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def grpo(model, **data):
    sizes = {"prompts_per_step": 4, "group_size": 4, "steps_per_epoch": 2, "total_prompts": 16}
    return {
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "model": model,
                "tune": "full",
                "optimizer": ADAM,
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                "prompts": "prompts.jsonl",
                "rewards": [FUNCTION],
                "max_new_tokens": 5,
                "val_share": 0.2,
                **sizes,
                **data,
            },
        },
    }


def sft(model, kind="SFT"):
    return {
        "model": {"class_path": kind, "init_args": {"model": model, "tune": "full"}},
        "data": {
            "class_path": "CompletionDataModule",
            "init_args": {
                "prompts": "prompts.jsonl",
                "batch_size": 4,
                "max_new_tokens": 5,
                "val_share": 0.2,
                "updates_per_epoch": 2,
                "total_updates": 4,
            },
        },
    }


@pytest.fixture
def run(folder, typed):
    def call(command, config, *args, to="run", status=None):
        """The command with a configuration, or without one, and what it said."""
        words = [command]
        if config is not None:
            quiet = {
                "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
                "checkpoint": {"dirpath": to},
            }
            (folder / "config.json").write_text(json.dumps({**config, **quiet}))
            words += ["--config", "config.json"]
        words += args
        return typed(*words, status=status)

    return call


def state(path):
    return torch.load(path, weights_only=True)


def same_weights(a, b):
    first, second = state(a)["state_dict"], state(b)["state_dict"]
    tensors = [key for key, value in first.items() if isinstance(value, torch.Tensor)]
    assert tensors
    return all(first[key].equal(second[key]) for key in tensors)


# --- prompts, as they stand in a configuration ------------------------------------------------

TEXTS = ["1", "007", "Q: a", "yes", "null", "[2]", "1e3", "a: {b}", "- c"]


@pytest.mark.parametrize("kind", ["texts", "rows"])
def test_inline_prompts_are_the_texts_they_are(kind, model, run, folder):
    """Also those that YAML reads as something else."""
    listed = TEXTS if kind == "texts" else [{"prompt": t, "answer": t} for t in TEXTS]
    given = {"prompts": listed, "val_prompts": listed, "val_batch": 9, "max_new_tokens": 3}
    run("fit", grpo(model, **given, total_prompts=8))
    for config in (None, grpo(model, **given)):
        words = () if config else ("--trust", "token_tools", "--trainer.logger=false")
        run("predict", config, "--ckpt_path", "run/last.ckpt", *words)
        lines = [json.loads(line) for line in (folder / "completions.jsonl").open()]
        assert [line["prompt"] for line in lines] == TEXTS


def test_inline_prompts_on_the_command_line(model, run):
    words = ["--data.prompts", '["Q: a", "2", "yes"]', "--data.val_share", "0"]
    assert "trained 16 of 16 prompts" in run("fit", grpo(model), *words)


# --- rewards ----------------------------------------------------------------------------------

REWARDS = {
    "a name": "ExactMatch",
    "a class": {"class_path": "ExactMatch", "init_args": {"weight": 0.5}},
    "its path": {"class_path": "rl_lightning.rewards.completions.ExactMatch"},
    "a function": FUNCTION,
    "a function with a weight": {
        "class_path": "RewardFunction",
        "init_args": {"function": FUNCTION, "weight": 2.0, "name": "letters"},
    },
}


@pytest.mark.parametrize("how", REWARDS)
def test_rewards_are_written_in_many_ways_and_stand_in_checkpoints(how, model, run):
    run("fit", grpo(model, rewards=[REWARDS[how]], total_prompts=4))
    said = run("validate", None, "--ckpt_path", "run/last.ckpt", "--trust", "token_tools",
               "--trainer.logger=false")  # fmt: skip
    name = {"a function": "letters_in", "a function with a weight": "letters"}.get(how)
    assert f"val/reward_{name or 'exact_match'}" in said


WRONG_REWARDS = {
    "ExactMach": "no class 'ExactMach'.*there are ExactMatch",
    "token_tools.nothing": "token_tools has no nothing",
    "RNDBonus": "RNDBonus is no reward of completions",
    "(": {"class_path": "RegexMatch", "init_args": {"pattern": "("}},
    "nowhere.ckpt": {"class_path": "RewardModelReward", "init_args": {"ckpt_path": "nowhere.ckpt"}},
    "heavy": {"class_path": "ExactMatch", "init_args": {"weight": "heavy"}},
    "'gold'": {"class_path": "ExactMatch", "init_args": {"column": "gold"}},
}
SAID = {
    "(": r"pattern: '\(' is no regular expression",
    "nowhere.ckpt": "nowhere.ckpt: the file does not exist",
    "heavy": "weight: expected float, not heavy",
    "'gold'": "needs a column 'gold' beside the prompts, and there are answer",
}


@pytest.mark.parametrize("name", WRONG_REWARDS)
def test_what_is_wrong_with_a_reward_is_said(name, model, run):
    given = WRONG_REWARDS[name] if name in SAID else {"class_path": name}
    if "." in name and name not in SAID:
        given = name
    said = run("fit", grpo(model, rewards=[given]), status=2)
    assert_said(SAID.get(name, WRONG_REWARDS[name]), said)


def assert_said(pattern, said):
    (line,) = [one for one in said.splitlines() if one.startswith("rl-lightning: error: ")]
    assert re.search(pattern, line), line


def test_a_reward_of_the_wrong_length_fails_the_run(model, run):
    said = run("fit", grpo(model, rewards=["completion_engines.one_number"]), status=1)
    assert "one_number returned 1 numbers for 16 completions" in said


SOURCES = {
    "nowhere.jsonl: there is no such file": {"dataset": "nowhere.jsonl"},
    "row 1 has no 'question', but prompt, answer": {
        "dataset": "prompts.jsonl",
        "column": "question",
    },
    "FilePrompts has no argument 'colum'; did you mean 'column'": {"colum": "prompt"},
}


@pytest.mark.parametrize("argument", ["prompts", "val_prompts"])
@pytest.mark.parametrize("told", SOURCES)
def test_what_is_wrong_with_a_source_of_prompts_is_said(told, argument, model, run):
    source = {"class_path": "FilePrompts", "init_args": SOURCES[told]}
    assert told in run("fit", grpo(model, **{argument: source}), status=2)


def test_no_such_source_of_prompts(model, run):
    said = run("fit", grpo(model, prompts={"class_path": "FilePromts"}), status=2)
    assert "data.prompts: no class 'FilePromts' can be imported" in said
    assert "FilePrompts" in said.partition("there are")[2]


def test_a_slip_of_a_source_is_no_data_set(model, run):
    said = run("fit", grpo(model, prompts="StringTask"), status=2)
    assert "StringTask is no file" in said
    assert "(did you mean StringTasks?)" in said


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_of_no_prompts_is_refused(command, model, run):
    run("fit", grpo(model, total_prompts=4, val_share=0.0))
    words = ("--ckpt_path", "run/last.ckpt")
    said = run(command, grpo(model, val_share=0.0), *words, status=2)
    assert f"error: {command}: there are no prompts for it; give data.val_prompts" in said


def test_a_prediction_that_is_ended_keeps_what_it_has_written(model, run, folder):
    engine = {"class_path": "completion_engines.Interrupted", "init_args": {"calls_left": "left"}}
    config = grpo(model, generator=engine, val_prompts="prompts.jsonl", val_batch=3)
    config["data"]["init_args"]["record"] = "x.jsonl"
    (folder / "left").write_text("2")
    run("predict", config, status=143)
    assert not (folder / "left").exists()
    written = [json.loads(line) for line in (folder / "x.jsonl").open()]
    assert [line["prompt"] for line in written] == [row["prompt"] for row in ROWS[:6]]
    (folder / "x.jsonl").write_text((folder / "x.jsonl").read_text()[:-9])
    said = run("predict", config)
    assert "10 completions, mean reward" in said
    assert "x.jsonl, which holds 15\n" in said


def test_no_reward_chooses_among_recorded_completions(model, run):
    said = run("fit", sft(model), "--model.min_reward", "0.5", status=2)
    assert "error: model.min_reward: 0.5, and recorded completions have no rewards" in said


def test_prompts_of_reasoning_gym(model, run):
    pytest.importorskip("reasoning_gym", reason="needs rl-lightning[tokens]")
    source = {"class_path": "ReasoningGymPrompts", "init_args": {"task": "spell_backward"}}
    run("fit", grpo(model, prompts=source, rewards=["ReasoningGymReward"]))


# --- pairs of agents and data -----------------------------------------------------------------

ENV = {"env": "CartPole-v1"}
PAIRS = {
    "GRPO on rollouts": ("GRPO", "RolloutDataModule", ENV, "give --data PromptDataModule"),
    "GRPO on replay": ("GRPO", "ReplayDataModule", ENV, "give --data PromptDataModule"),
    "DPO on rollouts": ("DPO", "RolloutDataModule", ENV, "give --data CompletionDataModule"),
    "DPO on prompts": ("DPO", "PromptDataModule", {}, "--data CompletionDataModule"),
    "RLOO on completions": ("RLOO", "CompletionDataModule", {}, "--data PromptDataModule"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_wrong_pair_names_the_right_data_module(pair, model, run):
    agent, data, given, told = PAIRS[pair]
    config = sft(model, agent) if data == "CompletionDataModule" else grpo(model)
    config["model"] = {"class_path": agent, "init_args": {"model": model, "tune": "full"}}
    if given:
        config["data"] = {"class_path": data, "init_args": given}
    said = run("fit", config, status=2)
    assert f"{agent} does not learn from" in said
    assert told in said


# --- from one to the other --------------------------------------------------------------------


def greedy(backbone, text, count):
    prompt = backbone.tokens.whole([text])[0]
    written = TransformersGenerator()(backbone, [prompt], 1, Sampling(count, 0.0), 0)
    return prompt, written.ids[0, : written.length[0]].tolist()


@pytest.mark.parametrize("given", [{}, {"layers": 1}, {"tune": "lora", "layers": 1}])
def test_sft_is_exported_and_grpo_begins_there(given, model, run, folder):
    config = sft(model)
    config["model"]["init_args"] |= {**given, "optimizer": ADAM}
    assert "trained 4 of 4 updates" in run("fit", config, to="warm")
    run("export", None, "--ckpt_path", "warm/last.ckpt", "--out", "merged")
    agent = Agent.load_from_checkpoint(folder / "warm" / "last.ckpt")
    prompt, own = greedy(agent.backbone, "3:", 5)
    assert own != greedy(make("SFT", model, **given).backbone, "3:", 5)[1]  # it has learned
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    assert merged.config.num_hidden_layers == given.get("layers", 2)
    ids = AutoTokenizer.from_pretrained(folder / "merged")("3:", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == prompt
    out = merged.generate(ids, max_new_tokens=5, do_sample=False)[0, len(prompt) :]
    assert out.tolist() == own
    assert "trained 16 of 16 prompts" in run("fit", grpo("merged"), to="tuned")
    tuned = state(folder / "tuned" / "last.ckpt")["state_dict"]
    assert any(".layers.1." in name for name in tuned) == ("layers" not in given)


# --- interruptions ----------------------------------------------------------------------------


def interrupted(model, agent="GRPO", **given):
    engine = {"class_path": "completion_engines.Interrupted", "init_args": {"calls_left": "left"}}
    config = grpo(model, generator=engine, passes=2, minibatch_prompts=2)
    config["model"]["class_path"] = agent
    config["model"]["init_args"] |= given
    return config


AGENTS = {
    "full": ("GRPO", {}),
    "lora with a reference": ("GRPO", {"tune": "lora", "lora_rank": 2, "kl_coef": 0.1}),
    "critic": ("TokenPPO", {}),
}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("calls", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_ended_while_it_writes_goes_on_as_if_it_had_not_been(
    calls, agent, model, run, folder
):
    """It writes for two steps and an evaluation; what an epoch began with, it ends with."""
    name, given = AGENTS[agent]
    config = interrupted(model, name, **given)
    run("fit", config, to="whole")
    (folder / "left").write_text(str(calls))
    said = run("fit", config, to="parts", status=143)
    assert not (folder / "left").exists()
    assert "stopped early; the same command with --ckpt_path last goes on" in said
    assert "trained 8 of 16 prompts" in said
    shutil.copy("parts/last.ckpt", "half.ckpt")
    said = run("fit", config, "--ckpt_path", "last", to="parts")
    assert "trained 16 of 16 prompts" in said
    assert same_weights("parts/last.ckpt", "whole/last.ckpt")
    assert not same_weights("half.ckpt", "whole/last.ckpt")


def test_a_checkpoint_of_another_engine_is_validated_alone(model, run):
    run("fit", interrupted(model))
    said = run("validate", None, "--ckpt_path", "run/last.ckpt", "--trust", "token_tools",
               "--trainer.logger=false")  # fmt: skip
    assert "val/reward" in said


def test_what_is_no_generator_is_named(model, run):
    given = {"class_path": "completion_engines.NoGenerator"}
    said = run("fit", grpo(model, generator=given), status=2)
    assert "data.generator: completion_engines.NoGenerator is no generator" in said


@pytest.mark.parametrize(
    "given",
    ["TransformersGenerator", {"class_path": "TransformersGenerator", "init_args": {}}],
)
def test_generators_have_short_names(given, model, run):
    said = run("validate", grpo(model, generator=given))
    assert "val/reward" in said
    said = run("validate", grpo(model, generator="VLLMGenerater"), status=2)
    assert "data.generator: no class 'VLLMGenerater'" in said
    assert "there are VLLMGenerator, TransformersGenerator" in said
