"""Pairs and best completions out of what `predict` has written."""

import json

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
