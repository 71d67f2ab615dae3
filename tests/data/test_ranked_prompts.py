"""Pairs and best completions out of what `predict` has written."""

import json
import warnings

import pytest

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.prompts import RankedPrompts

CHAT = [{"role": "user", "content": "1 + 1"}]


def write(path, *rows):
    """Rows `(prompt, completion, reward)`."""
    lines = [
        json.dumps({"prompt": p, "completion": c, "reward": r, "sample": 0}) for p, c, r in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


ROWS = [
    ("a", "good", 1.0),
    (CHAT, "two", 0.5),
    ("a", "bad", -1.0),
    ("b", "x", 0.0),
    ("a", "middle", 0.0),
    ("b", "y", 0.0),
    (CHAT, "three", 0.25),
]


def test_the_best_and_the_worst_of_each_prompt(tmp_path):
    prompts = RankedPrompts(write(tmp_path / "x.jsonl", *ROWS))
    assert [prompts.prompt(i) for i in range(len(prompts))] == ["a", CHAT]  # b's are equal
    assert prompts.columns(0) == {
        "completion": "good",
        "chosen": "good",
        "rejected": "bad",
        "margin": 2.0,
    }
    assert prompts.columns(1)["chosen"] == "two"
    assert prompts.columns(1)["rejected"] == "three"


def test_margins_and_rewards_that_are_asked_for(tmp_path):
    path = write(tmp_path / "x.jsonl", *ROWS)
    assert len(RankedPrompts(path, least_margin=0.25)) == 2
    assert [RankedPrompts(path, least_margin=0.3).prompt(0)] == ["a"]
    assert len(RankedPrompts(path, least_margin=0.3)) == 1
    assert len(RankedPrompts(path, least_reward=0.5)) == 2
    assert len(RankedPrompts(path, least_reward=0.6)) == 1


def test_the_first_of_equal_ones(tmp_path):
    rows = [("a", "one", 1.0), ("a", "two", 1.0), ("a", "three", 0.0), ("a", "four", 0.0)]
    columns = RankedPrompts(write(tmp_path / "x.jsonl", *rows)).columns(0)
    assert (columns["chosen"], columns["rejected"]) == ("one", "three")


def test_nothing_that_differs(tmp_path):
    path = write(tmp_path / "x.jsonl", ("a", "one", 1.0), ("b", "two", 0.0))
    with pytest.raises(ConfigurationError, match=r"none of its 2 prompts .* data.val_samples"):
        RankedPrompts(path)
    path = write(tmp_path / "y.jsonl", *ROWS)
    with pytest.raises(ConfigurationError, match="the best of 3 are below least_reward"):
        RankedPrompts(path, least_reward=2.0)


@pytest.mark.parametrize(
    ("row", "said"),
    {
        "text": ({"reward": "1"}, "row 1: its reward must be a number, not '1'"),
        "nan": ({"reward": float("nan")}, "its reward must be a number, not nan"),
        "bool": ({"reward": True}, "its reward must be a number, not True"),
        "completion": ({"completion": 3}, "its completion must be a text, not 3"),
        "prompt": ({"prompt": ""}, "the prompt is empty"),
        "large": ({"reward": 10**401}, r"row 1: its reward is 1000.*…, too much for float32"),
        "endless": ({"reward": float("-inf")}, "its reward is -inf, too much for float32"),
        "far": ({"reward": 1e308}, "its reward is 1e.308, too much for float32"),
        "half": ({"completion": "a\ud800"}, r"row 1: its completion holds '\\ud800' at 2, half"),
        "half asked": ({"prompt": "a\ud800"}, r"the prompt holds '\\ud800' at 2, half"),
        "ended": ({"ended": "no"}, "row 1: ended must be true or false, not 'no'"),
        "columns": ({"columns": ["a"]}, r"row 1: columns must be values by name, not \['a'\]"),
        "turns": ({"turns": []}, r"row 1 is a conversation \(turns\), .* the environment's words"),
    }.values(),
)
def test_lines_that_are_none(tmp_path, row, said):
    path = tmp_path / "x.jsonl"
    whole = {"prompt": "a", "completion": "b", "reward": 1.0, **row}
    other = {"prompt": whole["prompt"], "completion": "c", "reward": 0.0}
    path.write_text(json.dumps(whole) + "\n" + json.dumps(other))
    with pytest.raises(ConfigurationError, match=said):
        RankedPrompts(str(path))


def test_a_line_without_a_reward(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ConfigurationError, match=r"line 1: .* 'reward'"):
        RankedPrompts(str(path))


def test_what_was_cut_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [
        {"prompt": "a", "completion": "cut", "reward": 2.0, "ended": False},
        {"prompt": "a", "completion": "good", "reward": 1.0, "ended": True},
        {"prompt": "a", "completion": "bad", "reward": 0.0},
        {"prompt": "a", "completion": "worst", "reward": -1.0, "ended": False},
        {"prompt": "b", "completion": "whole", "reward": 1.0},
        {"prompt": "b", "completion": "half", "reward": 0.0, "ended": False},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="3 of 6 completions were cut .* keep_cut: true") as told:
        prompts = RankedPrompts(str(path))
    assert len(told) == 1
    assert len(prompts) == 1
    columns = prompts.columns(0)
    assert [columns[name] for name in ("completion", "chosen", "rejected")] == [
        "good",
        "good",
        "bad",
    ]
    assert columns["margin"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every = RankedPrompts(str(path), keep_cut=True)
    assert [every.columns(i)["rejected"] for i in range(2)] == ["worst", "half"]
    assert every.columns(0)["chosen"] == "cut"
    path.write_text("\n".join(json.dumps({**row, "ended": False}) for row in rows))
    with pytest.raises(
        ConfigurationError, match=r"of its 2 prompts .*; 6 of 6 completions were cut"
    ):
        RankedPrompts(str(path))


def test_one_text_is_not_better_than_itself(tmp_path):
    """However it was judged."""
    rows = [("a", "one", 1.0), ("a", "one", -1.0), ("a", "two", 0.0), ("a", "three", 0.5),
            ("b", "same", 1.0), ("b", "same", 0.0), ("c", "x", 1.0), ("c", "x", 0.0),
            ("c", "y", 1.0)]  # fmt: skip
    prompts = RankedPrompts(write(tmp_path / "x.jsonl", *rows))
    assert [prompts.prompt(i) for i in range(len(prompts))] == ["a"]
    columns = prompts.columns(0)
    assert (columns["chosen"], columns["rejected"], columns["margin"]) == ("one", "two", 1.0)
    with pytest.raises(ConfigurationError, match="none of its 1 prompts"):
        RankedPrompts(write(tmp_path / "y.jsonl", ("b", "same", 1.0), ("b", "same", 0.0)))


def test_columns_of_the_data_are_there_again(tmp_path):
    path = tmp_path / "x.jsonl"
    known = {"answer": ["2"], "completion": "gold", "margin": 9, "prompt": "other"}
    rows = [
        {"prompt": "a", "completion": "good", "reward": 1.0, "columns": known},
        {"prompt": "a", "completion": "bad", "reward": 0.0, "columns": {"answer": "3"}},
        {"prompt": "b", "completion": "x", "reward": 1.0},
        {"prompt": "b", "completion": "y", "reward": 0.0},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    prompts = RankedPrompts(str(path))
    assert [prompts.prompt(i) for i in range(2)] == ["a", "b"]
    assert [prompts.columns(i)["answer"] for i in range(2)] == [["2"], None]
    assert (prompts.columns(0)["completion"], prompts.columns(0)["margin"]) == ("good", 1.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"file": 5}, "file must be the name of a JSONL file, not 5"),
        ({"file": ["x.jsonl"]}, r"file must be the name of a JSONL file, not \['x.jsonl'\]"),
        ({"least_reward": "0.5"}, "least_reward must be a finite number, not '0.5'"),
        ({"least_reward": float("nan")}, "least_reward must be a finite number, not nan"),
        ({"least_margin": "0.5"}, "least_margin must be a number, not '0.5'"),
    ],
)
def test_arguments_that_are_none(tmp_path, given, said):
    path = write(tmp_path / "x.jsonl", *ROWS)
    with pytest.raises(ConfigurationError, match=said):
        RankedPrompts(**{"file": path, **given})
