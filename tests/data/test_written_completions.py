"""What `predict` writes down of completions, as soon as it is there."""

import datetime
import json
import math
import os
from types import SimpleNamespace

import pytest
from token_tools import characters, make, prompts, recorded
from training import fit, make_trainer

from rl_lightning import RankedPrompts
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data.prompts import RowPrompts
from rl_lightning.data.prompts.lines import LinesWriter, count_lines, only_json
from rl_lightning.rewards.completions import CompletionJudge

LINE = '{"prompt": "a", "completion": "b", "reward": 1.0}'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- batch by batch ---------------------------------------------------------------------------


def test_what_was_written_before_a_failure_stays(model, tmp_path):
    path, calls = tmp_path / "new" / "x.jsonl", []

    def fails(prompts, completions):
        calls.append(len(lines(path)))
        if len(calls) == 3:
            raise OSError("the judge is gone")
        return [0.5] * len(prompts)

    asked = [f"{i}:" for i in range(8)]
    data = prompts(val_prompts=asked, val_batch=2, rewards=[fails], record=str(path))
    with pytest.raises(RunError, match="the judge is gone"):
        make_trainer().predict(make("GRPO", model), data)
    assert calls == [0, 2, 4]
    assert [line["prompt"] for line in lines(path)] == asked[:4]
    again = prompts(val_prompts=asked, val_batch=2, record=str(path))
    with pytest.warns(UserWarning, match="x.jsonl holds completions, and new ones come behind"):
        found = make_trainer(limit_predict_batches=3).predict(make("GRPO", model), again)
    assert lines(path)[4:] == [line for batch in found for line in batch]
    assert [line["prompt"] for line in lines(path)] == asked[:4] + asked[:6]


def test_nothing_else_writes_to_the_record(model, tmp_path):
    path = tmp_path / "x.jsonl"
    data, trainer = prompts(record=str(path)), make_trainer(limit_val_batches=1.0)
    fit(make("GRPO", model), data, limit_val_batches=1.0)
    trainer.validate(make("GRPO", model), data, verbose=False)
    assert not path.exists()
    data.trainer = make_trainer()
    data.trainer.strategy.connect(make("GRPO", model))
    assert data.predict_dataloader() is data.predict_dataloader()
    assert path.read_text() == ""


def test_ranks_cannot_write_to_one_record(model, tmp_path):
    data = prompts(record=str(tmp_path / "x.jsonl"))
    ranks = {"world_size": 2, "global_rank": 1, "lightning_module": make("GRPO", model)}
    data.trainer = SimpleNamespace(**ranks, state=SimpleNamespace(fn="predict"))
    with pytest.raises(ConfigurationError, match=r"data.record: 2 ranks cannot .*devices: 1"):
        data.predict_dataloader()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_sentence(model, tmp_path):
    path = tmp_path / "x.jsonl"
    path.symlink_to("/dev/full")
    data = prompts(record=str(path))
    with pytest.raises(RunError, match=r"not be written to .*x.jsonl: No space left .* stays"):
        make_trainer().predict(make("GRPO", model), data)


def test_half_a_batch_that_a_disk_took_is_mended(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    writer = LinesWriter(str(path))
    writer([{"n": 1}])
    opened = type(path).open

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, text):
            with opened(path, "ab") as file:
                file.write(text[:-4])
            raise OSError(28, "No space left on device")

    def full(self, mode):
        return Full() if mode == "ab" else opened(self, mode)

    monkeypatch.setattr(type(path), "open", full)
    with pytest.raises(RunError, match="No space left on device; what it held before stays"):
        writer([{"n": 2}, {"n": 3}])
    monkeypatch.undo()
    assert lines(path) == [{"n": 1}, {"n": 2}]


# --- the end of a record ----------------------------------------------------------------------

LONG = json.dumps({"prompt": "a" * 100_000})
ENDS = {
    "whole": (f"{LINE}\n{LINE}\n", f"{LINE}\n{LINE}\n", 0),
    "without its end": (f"{LINE}\n{LINE}", f"{LINE}\n{LINE}\n", 0),
    "alone": (LINE, f"{LINE}\n", 0),
    "half": (f"{LINE}\n{LINE[:20]}", f"{LINE}\n", 20),
    "half alone": (LINE[:20], "", 20),
    "long": (f"{LINE}\n{LONG}", f"{LINE}\n{LONG}\n", 0),
    "half of a long one": (f"{LINE}\n{LONG[:-1]}", f"{LINE}\n", len(LONG) - 1),
    "empty lines": ("\n\n", "\n\n", 0),
    "none": ("", "", 0),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_record_goes_on_behind_whole_lines(kind, tmp_path, recwarn):
    before, after, cut = ENDS[kind]
    path = tmp_path / "x.jsonl"
    path.write_text(before)
    writer = LinesWriter(str(path))
    assert path.read_text() == after
    told = [str(one.message) for one in recwarn if "half-written" in str(one.message)]
    assert len(told) == (cut > 0)
    assert all(f"x.jsonl was half-written, {cut} bytes" in one for one in told)
    writer([{"n": 1}, {"n": math.nan}])
    assert path.read_text() == after + '{"n": 1}\n{"n": null}\n'
    assert count_lines(path) == after.replace("\n\n", "").count("\n") + 2


def test_half_a_character_at_the_end_is_cut_off(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\xc3\xa9"}\n{"a": "\xc3')
    with pytest.warns(UserWarning, match="8 bytes that are no JSON"):
        LinesWriter(str(path))
    assert path.read_bytes() == b'{"a": "\xc3\xa9"}\n'


# --- columns ----------------------------------------------------------------------------------


def test_columns_are_written_as_far_as_json_holds_them(model, tmp_path):
    path, ring = tmp_path / "x.jsonl", []
    ring.append(ring)
    held = {"answer": "2", "by": {"a": [1, None]}}
    rows = [
        {"prompt": "1:", **held, "day": datetime.date(2025, 1, 1), "odd": math.nan, "ring": ring},
        {"prompt": "2:"},
    ]
    data = prompts(val_prompts=RowPrompts(rows), val_samples=2, record=str(path))
    make_trainer().predict(make("GRPO", model), data)
    written = lines(path)
    assert [line["columns"] for line in written[:2]] == [held] * 2
    nothing = dict.fromkeys([*held, "day", "odd", "ring"])
    assert [line["columns"] for line in written[2:]] == [nothing] * 2
    bare = prompts(val_prompts=["1:"])
    (found,) = make_trainer().predict(make("GRPO", model), bare)
    assert "columns" not in found[0]
    assert only_json({"a": {1, 2}, "b": (1, 2)}) == {"b": (1, 2)}


def test_rewards_of_what_was_written_have_their_columns_again(model, tmp_path):
    path, asked = tmp_path / "x.jsonl", []

    def right(completions, answer):
        asked.extend(answer)
        return [len(set(text)) / 10 for text in completions]

    rows = [{"prompt": f"{i}:", "answer": f"a{i}"} for i in range(6)]
    given = {"val_prompts": rows, "val_samples": 4, "rewards": [right], "record": str(path)}
    make_trainer().predict(make("GRPO", model), prompts(**given, max_new_tokens=30))
    ranked = RankedPrompts(str(path), keep_cut=True)
    asked.clear()
    data = recorded(rewards=[right], val_prompts=ranked, max_new_tokens=32)
    make_trainer(limit_val_batches=1.0).validate(make("DPO", model), data, verbose=False)
    assert asked == [f"a{ranked.prompt(i)[0]}" for i in range(len(ranked))]


@pytest.mark.parametrize("name", ["self", 3])
def test_columns_that_no_reward_can_be_given(name):
    def some(prompts, completions, **columns):
        return [0.0] * len(prompts)

    judge = CompletionJudge([some])
    with pytest.raises(ConfigurationError, match=f"a column is called {name!r}, by which"):
        judge.judge(["a"], ["b"], columns={name: [1]})


def test_a_chat_behind_texts_is_named_where_there_is_no_template(model):
    asked = ["1:", "2:", [{"role": "user", "content": "3:"}]]
    data = prompts(val_prompts=asked)
    with pytest.raises(ConfigurationError, match=r"val_prompts: prompt 3 is a chat, but this mod"):
        fit(make("GRPO", model), data, limit_val_batches=1.0)
