"""Prompts out of lists, files, data sets and tasks; splits, fingerprints, the order of passes."""

import copy
import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

from rl_lightning import PromptDataModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.order import Order
from rl_lightning.data.prompts import (
    FilePrompts,
    PickedPrompts,
    ReasoningGymPrompts,
    RowPrompts,
    as_prompts,
    split_prompts,
)
from rl_lightning.rewards.completions import CompletionJudge, ReasoningGymReward

CHAT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}]
ROWS = [
    {"prompt": "1 + 1", "answer": 2, "chosen": "2", "rejected": "3"},
    {"prompt": CHAT, "answer": "2", "completion": "two"},
]
NAMES = ["answer", "chosen", "rejected", "completion"]
LAST = {"answer": "2", "chosen": None, "rejected": None, "completion": "two"}


def lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def content(prompts):
    return [(prompts.prompt(i), prompts.columns(i)) for i in range(len(prompts))]


# --- rows -----------------------------------------------------------------------------------------


def test_texts_chats_and_rows():
    prompts = as_prompts(["a", CHAT, ROWS[0]])
    assert len(prompts) == 3
    assert [prompts.prompt(i) for i in range(3)] == ["a", CHAT, "1 + 1"]
    assert prompts.columns(0) == {"answer": None, "chosen": None, "rejected": None}
    prompts = as_prompts(ROWS)
    assert prompts.names == NAMES
    assert content(prompts)[1] == (CHAT, LAST)
    assert prompts.batch([1, 0, 1]) == (
        [CHAT, "1 + 1", CHAT],
        {
            "answer": ["2", 2, "2"],
            "chosen": [None, "2", None],
            "rejected": [None, "3", None],
            "completion": ["two", None, "two"],
        },
    )
    assert as_prompts(prompts) is prompts
    asked = as_prompts([{"question": "q", "prompt": 3}], "question")
    assert content(asked) == [("q", {"prompt": 3})]


WRONG = {
    "data.prompts is empty": [],
    r"row 2 has no 'prompt', but text, n; say which .*FilePrompts\(dataset, column='text'\)": [
        {"prompt": "a"},
        {"text": "b", "n": 1},
    ],
    "row 1: a prompt is a text, or a list of messages.* not 3": [3],
    "row 2: a prompt is a text.* not None": ["a", {"prompt": None}],
    r"row 1: a prompt is a text.* not \[\]": [[]],
    r"row 1: a prompt is a text.* not \['a', 'b'\]": [["a", "b"]],
    "row 1: a prompt is a text.* not b'a'": [b"a"],
    "row 2: the prompt is empty": ["a", " \n"],
    "row 1: the role of a message must be one of system, .*not 'bot'": [
        [{"role": "bot", "content": "a"}]
    ],
    "row 1: the role of a message .*not None": [[{"content": "a"}]],
    "row 1: the content of a message must be a text, not None": [[{"role": "user"}]],
    r"row 1: the content of a message must be a text, not \[": [
        [{"role": "user", "content": [{"type": "text"}]}]
    ],
    r"row 2: the prompt holds '\\ud800' at 2, half of a character": ["a", "a\ud800"],
    r"row 1: the content of a message holds '\\udfff' at 1, half": [
        [{"role": "user", "content": "\udfff"}]
    ],
}


@pytest.mark.parametrize("told", WRONG)
def test_rows_that_are_no_prompts(told):
    with pytest.raises(ConfigurationError, match=told):
        as_prompts(WRONG[told])


@pytest.mark.parametrize("source", [3, None, object(), {"train": ["a"]}, iter(["a"])])
def test_sources_that_are_none(source):
    with pytest.raises(ConfigurationError, match=r"data\.prompts must be a file"):
        as_prompts(source)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    assert content(FilePrompts(str(path))) == content(as_prompts(ROWS))
    assert content(as_prompts(path)) == content(as_prompts(ROWS))


def test_an_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(["a", *ROWS]))
    assert content(FilePrompts(str(path))) == content(as_prompts(["a", *ROWS]))


FILES = {
    "there is no such file": ("none.jsonl", None),
    "cannot be read: No such file": ("none.json", None),
    "none.parquet: there is no such file": ("none.parquet", None),
    'line 2: {"prompt": is no JSON object': ("a.jsonl", '{"prompt": "a"}\n{"prompt": '),
    "line 1: 'prompt' stands there twice": ("a.jsonl", '{"prompt": "a", "prompt": "b"}'),
    "a.json: 'x' stands there twice": ("a.json", '[{"prompt": "a", "x": 1, "x": 2}]'),
    "a.jsonl is empty": ("a.jsonl", "\n \n"),
    "a.jsonl: row 1 has no 'prompt', but text": ("a.jsonl", '{"text": "a"}'),
    "a.json is no JSON": ("a.json", "[1,"),
    "a.json must hold a list of rows": ("a.json", '{"prompt": "a"}'),
    "a.json is empty": ("a.json", "[]"),
    "read from JSONL .* not from .csv files": ("a.csv", "prompt\na"),
    "no text in UTF-8": ("a.jsonl", b"\xff\xfe"),
}


@pytest.mark.parametrize("told", FILES)
def test_files_that_are_no_prompts(told, tmp_path):
    name, text = FILES[told]
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError, match=told):
        FilePrompts(str(tmp_path / name))


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra `tokens`)")
    arrow = sys.modules["pyarrow"]
    rows = [{"prompt": CHAT, "answer": 2}, {"prompt": CHAT[1:], "answer": None}]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    assert content(FilePrompts(str(path))) == content(as_prompts(rows))
    twice = arrow.table([arrow.array(["a"]), arrow.array(["b"])], names=["prompt", "prompt"])
    parquet.write_table(twice, path)
    with pytest.raises(ConfigurationError, match=r"a\.parquet: 'prompt' stands there twice"):
        FilePrompts(str(path))
    path.write_bytes(b"none")
    with pytest.raises(ConfigurationError, match="is no Parquet"):
        FilePrompts(str(path))


def test_data_sets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets (the extra `tokens`)")
    rows = [{"prompt": CHAT, "answer": 2}, {"prompt": CHAT[1:], "answer": 3}]
    made = datasets.Dataset.from_list(rows)
    assert content(as_prompts(made)) == content(as_prompts(rows))
    made.save_to_disk(str(tmp_path / "one"))
    assert content(FilePrompts(str(tmp_path / "one"))) == content(as_prompts(rows))
    both = datasets.DatasetDict({"train": made, "test": made.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    assert content(FilePrompts(str(tmp_path / "both"), split="test")) == content(
        as_prompts(rows[1:])
    )
    assert len(FilePrompts(str(tmp_path / "both"))) == 2
    with pytest.raises(ConfigurationError, match="no split 'val'; there are train, test"):
        FilePrompts(str(tmp_path / "both"), split="val")
    with pytest.raises(ConfigurationError, match="choose one of its splits, train, test"):
        as_prompts(both)
    with pytest.raises(ConfigurationError, match="a dataset with a length"):
        as_prompts(made.to_iterable_dataset())
    with pytest.raises(ConfigurationError, match="no folder that datasets has saved"):
        FilePrompts(str(tmp_path))


def test_the_hub_is_asked_for_what_is_no_file(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if name == "none":
            raise ConnectionError("no network")
        return [{"question": "q"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    prompts = FilePrompts("openai/gsm8k", "question", "test", "main")
    assert content(prompts) == [("q", {})]
    assert asked == [("openai/gsm8k", "main", "test")]
    with pytest.raises(ConfigurationError, match=r"none is no file and no folder.*no network"):
        FilePrompts("none")


@pytest.mark.parametrize("there", [True, False])
def test_a_slip_of_a_class_is_no_data_set(there, monkeypatch):
    def load_dataset(name, subset, split):
        raise ConnectionError("no network")

    datasets = SimpleNamespace(load_dataset=load_dataset) if there else None
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    for name, meant in (("StringTask", "StringTasks"), ("RankedPrompt", "RankedPrompts")):
        with pytest.raises(ConfigurationError, match=rf"no f.*\(did you mean {meant}\?\), and "):
            as_prompts(name)
    with pytest.raises(ConfigurationError, match="gsm8k is no f") as told:
        as_prompts("openai/gsm8k")
    assert "did you mean" not in str(told.value)


@pytest.mark.parametrize("name", ["openai/gsm8k", "folder", "a.parquet"])
def test_packages_that_are_missing(name, monkeypatch, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for package in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, package, None)
    package = "pyarrow" if name.endswith("parquet") else "datasets"
    with pytest.raises(ConfigurationError, match=rf"need.* the package {package} .*\[tokens\]"):
        FilePrompts(name)


# --- tasks ----------------------------------------------------------------------------------------


def test_a_task_makes_its_prompts():
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (the extra `tokens`)")
    prompts = ReasoningGymPrompts("leg_counting", 5, 3, {"max_animals": 4})
    again = ReasoningGymPrompts("leg_counting", 5, 3, {"max_animals": 4})
    assert len(prompts) == 5
    assert content(prompts) == content(again)
    assert [prompts.prompt(i) for i in (4, 0)] == [again.prompt(4), again.prompt(0)]
    columns = prompts.columns(2)
    assert sorted(columns) == sorted(prompts.names)
    assert (columns["dataset"], columns["config"]) == ("leg_counting", {"max_animals": 4})
    assert columns["answer"] == columns["entry"]["answer"]
    assert max(columns["entry"]["metadata"]["animals"].values()) >= 1
    asked, told = prompts.batch(range(5))
    said = [f"<answer>{answer}</answer>" for answer in told["answer"]]
    judged = CompletionJudge([ReasoningGymReward()]).judge(asked, said, columns=told)
    assert judged.total.tolist() == [1.0] * 5
    with pytest.raises(IndexError):
        prompts.prompt(5)
    for other in ({"seed": 4}, {"config": {"max_animals": 5}}, {"size": 6}):
        given = {"task": "leg_counting", "size": 5, "seed": 3, "config": {"max_animals": 4}}
        changed = ReasoningGymPrompts(**{**given, **other})
        assert changed.fingerprint != prompts.fingerprint
        if "size" not in other:
            assert [p for p, _ in content(changed)] != [p for p, _ in content(prompts)]
    assert again.fingerprint == prompts.fingerprint


def test_tasks_are_mixed():
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (the extra `tokens`)")
    rough = {"max_num_decimal_places": 1, "min_num_decimal_places": 1}
    mixed = [
        {"name": "leg_counting", "weight": 1.0},
        {"name": "decimal_arithmetic", "config": rough},
    ]
    prompts = ReasoningGymPrompts("composite", 20, config={"datasets": mixed})
    configs = {c["dataset"]: c["config"] for _, c in content(prompts)}
    assert configs == {"leg_counting": {}, "decimal_arithmetic": rough}
    assert mixed[1] == {"name": "decimal_arithmetic", "config": rough}
    asked, told = prompts.batch(range(20))
    judge = CompletionJudge([ReasoningGymReward("")])
    assert judge.judge(asked, told["answer"], columns=told).total.tolist() == [1.0] * 20
    with pytest.raises(ConfigurationError, match="config of composite must hold datasets"):
        ReasoningGymPrompts("composite")


def test_tasks_that_are_none():
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (the extra `tokens`)")
    with pytest.raises(ConfigurationError, match=r"no task 'leg_count'; nearest .*leg_counting"):
        ReasoningGymPrompts("leg_count")
    with pytest.raises(ConfigurationError, match=r"leg_counting does not take .*legs"):
        ReasoningGymPrompts("leg_counting", config={"legs": 4})
    with pytest.raises(ConfigurationError, match=r"leg_counting does not take .*max_animals"):
        ReasoningGymPrompts("leg_counting", config={"max_animals": -1})
    with pytest.raises(ConfigurationError, match="config holds 'seed'"):
        ReasoningGymPrompts("leg_counting", config={"seed": 1})
    with pytest.raises(ConfigurationError, match="size must be at least 1"):
        ReasoningGymPrompts("leg_counting", 0)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigurationError, match=r"pip install rl-lightning\[tokens\]"):
        ReasoningGymPrompts("leg_counting")


# --- splits and fingerprints ----------------------------------------------------------------------


def test_equal_prompts_are_on_one_side():
    rows = [{"prompt": p, "n": n} for n in range(3) for p in [*"abcdefghij", CHAT]]
    train, val = split_prompts(as_prompts(rows), 0.3, seed=1)
    sides = [{json.dumps(p) for p, _ in content(one)} for one in (train, val)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == round(0.3 * 11)
    assert len(train) + len(val) == len(rows)
    assert sorted(c["n"] for _, c in content(val)) == sorted([0, 1, 2] * len(sides[1]))
    again, other = (split_prompts(as_prompts(rows), 0.3, seed=s)[1] for s in (1, 2))
    assert content(again) == content(val)
    assert content(other) != content(val)


def test_shares_that_leave_nothing():
    prompts = as_prompts(["a", "a", "b"])
    assert [len(one) for one in split_prompts(prompts, 0.0)] == [3, 0]
    with pytest.raises(ConfigurationError, match=r"0.1 of 2 different .*none to validate by"):
        split_prompts(prompts, 0.1)
    with pytest.raises(ConfigurationError, match=r"of 1 different .*none to train on"):
        split_prompts(as_prompts(["a"]), 0.9)
    with pytest.raises(ConfigurationError, match=r"val_share must be between 0 and 0\.9"):
        split_prompts(prompts, 1.0)


def test_validation_prompts_of_ones_own():
    train, val = as_prompts(["a", "b"]), as_prompts(["c"])
    assert split_prompts(train, 0.5, val_prompts=val) == (train, val)
    with pytest.warns(UserWarning, match="1 of 2 prompts are trained on, too"):
        split_prompts(train, val_prompts=as_prompts(["b", "c"]))


def test_fingerprints_tell_contents_apart(tmp_path):
    prompts = as_prompts(ROWS)
    path = lines(tmp_path / "a.jsonl", *ROWS)
    assert FilePrompts(path).fingerprint == prompts.fingerprint == as_prompts(path).fingerprint
    assert len(prompts.fingerprint) == 32
    changed = copy.deepcopy(ROWS)
    changed[1]["answer"] = "3"
    others = [changed, ROWS[::-1], ROWS[:1], [*ROWS, ROWS[0]]]
    assert prompts.fingerprint not in {as_prompts(one).fingerprint for one in others}
    assert (
        PickedPrompts(prompts, [1, 0]).fingerprint
        == as_prompts([{n: r.get(n) for n in ["prompt", *NAMES]} for r in ROWS[::-1]]).fingerprint
    )


def test_fingerprints_of_names_that_have_no_order():
    rows = [{"prompt": "a", "by": {1: "x", "b": ["y", {2: 3, "z": 4}]}, 3: "n"}]
    turned = [{3: "n", "by": {"b": ["y", {"z": 4, 2: 3}], 1: "x"}, "prompt": "a"}]
    texts = [{"prompt": "a", "by": {"1": "x", "b": ["y", {2: 3, "z": 4}]}, 3: "n"}]
    one, other, third = (as_prompts(given).fingerprint for given in (rows, turned, texts))
    assert one == other != third


def test_values_that_hold_themselves():
    ring, deep = [], []
    ring.append(ring)
    for _ in range(100_000):
        deep = [deep]
    for value in (ring, deep, {1: ring, "a": 2}):
        prompts = as_prompts([{"prompt": "a"}, {"prompt": "b", "x": value}])
        with pytest.raises(ConfigurationError, match="prompt 2: a value holds itself, or is nest"):
            _ = prompts.fingerprint
        with pytest.raises(ConfigurationError, match="prompts: a value in it holds itself"):
            PromptDataModule([{"prompt": "b", "x": value}], rewards=[len])


def test_sources_are_copied(tmp_path):
    path = lines(tmp_path / "a.jsonl", *ROWS)
    for prompts in (RowPrompts(ROWS), FilePrompts(path)):
        for copied in (pickle.loads(pickle.dumps(prompts)), copy.deepcopy(prompts)):
            assert content(copied) == content(prompts)
    assert copy.deepcopy(FilePrompts(path)).arguments == {"dataset": path}


# --- the order of passes --------------------------------------------------------------------------


def test_each_pass_has_all_in_an_order_of_its_own():
    drawn = torch.cat([Order(10, 3)(first, 4) for first in range(0, 40, 4)])
    passes = drawn.view(4, 10).tolist()
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert Order(10, 3)(0, 40).tolist() == drawn.tolist()  # whatever it is cut into
    kept = Order(10, 3)
    assert [kept(first, 7).tolist() for first in (21, 0, 21)] == [
        drawn[21:28].tolist(),
        drawn[:7].tolist(),
        drawn[21:28].tolist(),
    ]
    assert Order(10, 4)(0, 10).tolist() != drawn[:10].tolist()
    assert Order(10, 3, 1)(0, 10).tolist() != drawn[:10].tolist()
    assert drawn.dtype == torch.int64


def test_more_than_several_passes_at_once():
    assert sorted(Order(3, 0)(1, 8).tolist()[2:8]) == [0, 0, 1, 1, 2, 2]
    assert Order(1, 0)(5, 3).tolist() == [0, 0, 0]
    assert Order(5, 0)(7, 0).tolist() == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_a_pass(ranks):
    order, alone = Order(12, 7), Order(12, 7)
    shares = [order(0, 12 // ranks, rank, ranks) for rank in range(ranks)]
    assert sorted(torch.cat(shares).tolist()) == list(range(12))
    for rank, share in enumerate(shares):
        assert share.tolist() == alone(0, 12)[rank::ranks].tolist()
    later = [order(18, 5, rank, ranks) for rank in range(ranks)]  # across the end of a pass
    together = torch.stack(later, 1).reshape(-1)
    assert together.tolist() == alone(18, 5 * ranks).tolist()


def test_nothing_to_pass_over():
    with pytest.raises(ConfigurationError, match="nothing to learn from"):
        Order(0, 1)
