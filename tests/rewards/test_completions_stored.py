"""Rewards of completions and sources of prompts: in configurations, in checkpoints, and back."""

import copy
import json
from collections.abc import Callable
from typing import Any

import completion_rules
import pytest
import torch
from jsonargparse import ArgumentParser

from rl_lightning.cli.explain import one_sentence
from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.signatures import signature_of
from rl_lightning.data.prompts import FilePrompts, Prompts, as_prompts
from rl_lightning.data.stored_module import StoredDataModule
from rl_lightning.rewards import completions
from rl_lightning.rewards.completions import (
    CompletionJudge,
    CompletionReward,
    ExactMatch,
    FormatReward,
    LabellerReward,
    LengthReward,
    RewardFunction,
)
from rl_lightning.rewards.labels import RuleLabeller


class Module(StoredDataModule):
    """Has what a data module of prompts has."""

    def __init__(
        self,
        prompts: str | list | Prompts,
        rewards: list[CompletionReward | Callable[..., Any]],
        val_prompts: str | list | Prompts | None = None,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.remember_arguments()
        self.prompts, self.judge = as_prompts(prompts), CompletionJudge(rewards)
        self.steps = steps


REWARDS = [
    ExactMatch("gold", pattern=r"<a>(.*?)</a>", weight=2.0),
    FormatReward(["a"], name="form"),
    RewardFunction(completion_rules.length, weight=0.1),
    LengthReward(most=10),
    completion_rules.near,
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"question": "1 + 1", "gold": 2}\n{"question": "1 + 2", "gold": 3}')
    return str(path)


def stored(path, *args, **kwargs):
    """A checkpoint that holds a module's arguments."""
    hyper = dict(Module(*args, **kwargs).hparams)
    save(path, hyper)
    return hyper


def save(path, hyper):
    torch.save({"state_dict": {}, Module.CHECKPOINT_HYPER_PARAMS_KEY: hyper}, path)


def test_checkpoints_hold_them_as_plain_data_and_build_them_again(file, tmp_path):
    path = tmp_path / "a.ckpt"
    hyper = stored(path, FilePrompts(file, column="question"), REWARDS, file)
    assert hyper["prompts"] == {
        "class_path": "rl_lightning.FilePrompts",
        "init_args": {"dataset": file, "column": "question"},
    }
    assert hyper["val_prompts"] == file
    match, form, length, penalty, near = hyper["rewards"]
    assert match == {
        "class_path": "rl_lightning.ExactMatch",
        "init_args": {"column": "gold", "pattern": r"<a>(.*?)</a>", "weight": 2.0},
    }
    assert form["init_args"] == {"tags": ["a"], "name": "form"}
    assert length["init_args"] == {"function": "completion_rules.length", "weight": 0.1}
    assert penalty["init_args"] == {"most": 10}
    assert near == "completion_rules.near"
    torch.load(path, weights_only=True)
    loaded = Module.load_from_checkpoint(path)
    assert loaded.prompts.batch([1]) == (["1 + 2"], {"gold": [3]})
    assert list(loaded.judge.rewards) == ["exact_match", "form", "length", "length_reward", "near"]
    assert loaded.judge.weights == CompletionJudge(REWARDS).weights
    assert loaded.judge.rewards["near"].function is completion_rules.near
    # What a loaded one was built with is described like the original.
    again = dict(loaded.hparams)
    assert again["rewards"][2]["init_args"]["function"] == "completion_rules.length"
    save(path, again)
    assert Module.load_from_checkpoint(path).judge.weights == loaded.judge.weights


def test_prompts_that_are_texts_or_a_file(file, tmp_path):
    path = tmp_path / "a.ckpt"
    chats = [[{"role": "user", "content": "a"}], "Say rl_lightning.PPO twice."]
    assert stored(path, chats, [completion_rules.length])["prompts"] == chats
    assert Module.load_from_checkpoint(path).prompts.prompt(1) == chats[1]
    (tmp_path / "b.jsonl").write_text('{"prompt": "b"}')
    stored(path, str(tmp_path / "b.jsonl"), [completion_rules.length])
    assert Module.load_from_checkpoint(path).prompts.prompt(0) == "b"


def test_what_cannot_be_described_is_asked_for_again(file, tmp_path):
    path = tmp_path / "a.ckpt"
    rewards = [RewardFunction(lambda prompts, completions: [], weight=0.5)]
    stored(path, as_prompts(["a"]), rewards)
    with pytest.raises(
        ConfigurationError, match=r"was a .* give it again.*(prompts|rewards)=\.\.\."
    ):
        Module.load_from_checkpoint(path)
    given = {"prompts": ["b"], "rewards": [completion_rules.length]}
    assert list(Module.load_from_checkpoint(path, **given).judge.rewards) == ["length"]


def test_whom_to_ask_is_not_in_the_file(tmp_path):
    path = tmp_path / "a.ckpt"
    stored(path, ["a"], [LabellerReward(RuleLabeller(len))])
    with pytest.raises(ConfigurationError, match=r"data\.rewards ask a labeller"):
        Module.load_from_checkpoint(path)
    own = [LabellerReward(RuleLabeller(len))]
    assert Module.load_from_checkpoint(path, rewards=own).judge.rewards["labeller_reward"] is own[0]


FORGED = {
    "os.system": "names os.system, which is no part",
    "rl_lightning.MLPEncoder": "cannot be built",
    "rl_lightning.rewards.completions.NoSuch": "NoSuch, which is not there",
    "antigravity.fly": "importing 'antigravity' would run its code",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_checkpoint_may_name_no_more(name, tmp_path):
    path = tmp_path / "a.ckpt"
    hyper = stored(path, ["a"], [ExactMatch()])
    given = {"class_path": name, "init_args": {}}
    function = {"class_path": "rl_lightning.RewardFunction", "init_args": {"function": name}}
    forged = [{"rewards": [given]}, {"prompts": given}]
    if name != "rl_lightning.MLPEncoder":
        forged += [{"rewards": [name]}, {"rewards": [function]}]
    for wrong in forged:
        save(path, {**hyper, **wrong})
        with pytest.raises(ConfigurationError, match=FORGED[name]):
            Module.load_from_checkpoint(path)


def parsed(rewards):
    parser = ArgumentParser(exit_on_error=False, parser_mode="omegaconf")
    parser.add_argument("--data.rewards", type=list[CompletionReward | Callable[..., Any]])
    text = json.dumps({"data": {"rewards": rewards}})
    return parser.instantiate(parser.parse_string(text)).data.rewards


def test_the_words_of_a_configuration():
    made = parsed(
        [
            {
                "class_path": "rl_lightning.rewards.completions.ExactMatch",
                "init_args": {"weight": 2},
            },
            {
                "class_path": "RewardFunction",
                "init_args": {"function": "completion_rules.length", "weight": 0.5, "name": "l"},
            },
            "completion_rules.near",
            {
                "class_path": "LabellerReward",
                "init_args": {
                    "labeller": {"class_path": "WordLabeller", "init_args": {"weights": {"a": 1}}}
                },
            },
        ]
    )
    judge = CompletionJudge(made)
    assert judge.weights == {"exact_match": 2.0, "l": 0.5, "near": 1.0, "labeller_reward": 1.0}
    found = judge.judge(["p"], ["1"], columns={"answer": [1]})
    assert found.total.tolist() == [3.5]


PATTERNS = [
    "#### (.*)",
    "[0-9]",
    "{a}",
    "null",
    "12",
    "<a>(.*)</a>",
    r"\\boxed\{(.*)\}$",
    "&a",
    "a: b",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_stay_what_they_are(pattern, tmp_path):
    """Though some are a comment, a list or nothing in YAML."""
    kinds = ("ExactMatch", "NumericAnswer", "RegexMatch", "FormatReward")
    made = parsed([{"class_path": kind, "init_args": {"pattern": pattern}} for kind in kinds])
    stored(tmp_path / "a.ckpt", ["a"], made)
    loaded = Module.load_from_checkpoint(tmp_path / "a.ckpt").judge.rewards.values()
    for rewards in (made, loaded):
        assert [one.pattern.pattern for one in rewards] == [pattern] * 4


MISTAKES = {
    "ExactMatch has no argument 'colum'; did you mean 'column'": ("ExactMatch", {"colum": "a"}),
    "data.rewards.most: expected int": ("LengthReward", {"most": "x"}),
    "RegexMatch needs pattern": ("RegexMatch", {}),
}


@pytest.mark.parametrize("told", MISTAKES)
def test_mistakes_are_one_sentence(told):
    name, given = MISTAKES[told]
    with pytest.raises(Exception, match=name) as raised:
        parsed([{"class_path": name, "init_args": given}])
    assert told in one_sentence(str(raised.value))


def test_all_rewards_have_weight_and_name():
    kinds = [getattr(completions, name) for name in completions.__all__]
    kinds = [one for one in kinds if isinstance(one, type) and issubclass(one, CompletionReward)]
    assert len(kinds) == 11
    for kind in kinds:
        assert {"weight", "name"} <= set(signature_of(kind).parameters)


class Gathers(Described):
    def __init__(self, first, *, second=2, **more):
        self.more = more


def test_what_is_described_remembers_its_call():
    made = Gathers(1, third=3)
    assert made.arguments == {"first": 1, "third": 3}
    assert copy.deepcopy(made).arguments == made.arguments
