"""Labellers asked for texts: answers as they stand, in old files and in new ones."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from llm_tiny import tiny_model
from test_endpoint import make, serving

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.llm.load import load_backbone
from rl_lightning.rewards import (
    FileLabeller,
    OptionLabeller,
    RuleLabeller,
    SimilarityLabeller,
    WordLabeller,
    WritingLabeller,
)
from rl_lightning.rewards.labels.questions import digest

ASKED = []


def goals(question):
    """Goals out of the words of a question; a number where there is none."""
    ASKED.append(question)
    return {"door": "- open it\n- close it", "nothing": None}.get(question, 7)


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    ASKED.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_texts_come_as_they_stand_and_are_asked_for_once():
    labeller = RuleLabeller(goals)
    assert labeller.texts(["door", "nothing", "door", "wall"]) == [
        "- open it\n- close it",
        None,
        "- open it\n- close it",
        None,
    ]
    assert ASKED == ["door", "nothing", "wall"]
    assert labeller.counts == {"asked": 3, "remembered": 0, "unreadable": 2, "failed": 0}
    assert labeller(["wall", "door"]) == [7.0, None]  # the same answers, read as numbers
    assert len(ASKED) == 3


def test_a_number_is_no_text():
    with pytest.raises(RunError, match=r"the answer 7 is no text; .* set on_unreadable to skip$"):
        RuleLabeller(goals, on_unreadable="stop").texts(["wall"])
    assert RuleLabeller(goals, on_unreadable=0.5).texts(["wall"]) == [None]


def test_the_cache_keeps_texts_and_old_files_are_read(tmp_path):
    cache = str(tmp_path / "answers.jsonl")
    first = RuleLabeller(goals, cache=cache)
    key = digest(first.identity(), "old")
    Path(cache).write_text(json.dumps({"key": key, "question": "old", "answer": 0.25}) + "\n")
    assert first(["old"]) == [0.25]
    assert first.texts(["door"]) == ["- open it\n- close it"]
    ASKED.clear()
    again = RuleLabeller(goals, cache=cache)
    assert again.texts(["door", "old"]) == ["- open it\n- close it", None]
    assert again(["old"]) == [0.25]
    assert not ASKED
    assert FileLabeller(cache).texts(["door"]) == ["- open it\n- close it"]


def test_an_endpoint_says_what_it_says():
    with serving("1. Open the door\n2. Go", "B") as (server, url):
        labeller = make(url)
        assert labeller.texts(["a", "a"]) == ["1. Open the door\n2. Go"] * 2
        assert labeller.texts(["b"]) == ["B"]
        assert labeller(["b"]) == [1.0]
        assert len(server.requests) == 2


def test_who_answers_with_numbers_says_so():
    for labeller in (
        WordLabeller({"a": 1.0}),
        OptionLabeller("none"),
        SimilarityLabeller("goal", model="none"),
    ):
        with pytest.raises(ConfigurationError, match=r"answers with numbers: .* RuleLabeller"):
            labeller.texts(["a"])


# --- a model that writes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(kind, root / kind) for kind in ("gpt2", "llama", "t5", "bert")}


SHORT = {"max_length": 64, "max_new_tokens": 6}
PROMPTS = ["go to the red ball", "a", "You see a wall 2 steps forward and a key", "the door"]


def greedy(model, prompt, most):
    """Token after token, each read with all before it; a prompt may come in parts."""
    loaded, tokenizer = load_backbone(model, head=True)
    parts = [prompt] if isinstance(prompt, str) else prompt
    ids = [token for part in parts for token in tokenizer(part)["input_ids"]]
    begin = len(ids)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(loaded(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[begin:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_batched_equals_single_and_by_hand(models, kind):
    texts = WritingLabeller(models[kind], batch_size=3, **SHORT).texts(PROMPTS)
    assert texts == [greedy(models[kind], prompt, 6) for prompt in PROMPTS]
    assert any(texts)
    single = WritingLabeller(models[kind], batch_size=1, **SHORT)
    assert [single.texts([prompt])[0] for prompt in PROMPTS] == texts


def test_the_template_the_length_and_what_stops(models):
    plain = WritingLabeller(models["gpt2"], **SHORT).texts(["a wall"])[0]
    asked = WritingLabeller(models["gpt2"], "You see {text}. Now:", **SHORT).texts(["a wall"])[0]
    assert asked == greedy(models["gpt2"], "You see a wall. Now:", 6) != plain
    longer = WritingLabeller(models["gpt2"], max_length=64, max_new_tokens=9).texts(["a wall"])[0]
    assert longer.startswith(plain)
    assert len(longer) > len(plain)
    end = longer[3:5]
    stopped = WritingLabeller(models["gpt2"], stop=[end], max_length=64).texts(["a wall"])[0]
    assert stopped == longer[: longer.find(end)].strip()
    fewer = WritingLabeller(models["gpt2"], layers=1, **SHORT).texts(["a wall"])[0]
    assert fewer != plain
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert WritingLabeller(models["gpt2"], **SHORT).texts([chat])[0] == greedy(
        models["gpt2"], "system: s\nuser: u\nassistant:", 6
    )
    assert isinstance(WritingLabeller(models["t5"], **SHORT).texts(["a wall"])[0], str)


def test_a_prompt_may_be_a_users_message(tmp_path):
    model = tiny_model("gpt2", tmp_path / "chatty")
    _, tokenizer = load_backbone(model, head=True)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[I]{% endif %}"
    )
    tokenizer.save_pretrained(model)
    (text,) = WritingLabeller(model, "Now {text}", chat=True, **SHORT).texts(["a wall"])
    assert text == greedy(model, ["[user] ", "Now a wall", " [I]"], 6)
    assert text != WritingLabeller(model, "Now {text}", **SHORT).texts(["a wall"])[0]


def test_a_prompt_that_is_too_long_loses_its_beginning(models):
    labeller = WritingLabeller(models["gpt2"], max_length=3, max_new_tokens=6)
    with pytest.warns(UserWarning, match="cut to max_length=3"):
        (text,) = labeller.texts(["go to the red ball"])
    _, tokenizer = load_backbone(models["gpt2"], head=True)
    end = tokenizer.decode(tokenizer("go to the red ball")["input_ids"][-3:])
    assert text == greedy(models["gpt2"], end, 6)


def test_a_writer_reads_as_told(models):
    writer = WritingLabeller(models["gpt2"], dtype="bfloat16", batch_size=3, **SHORT).write_on
    assert writer.backbone.source["dtype"] == "bfloat16"
    assert writer.batch_size == 3
    with pytest.raises(RunError, match="is no number"):
        WritingLabeller(models["gpt2"], on_unreadable="stop", **SHORT)(["a wall"])
    named = WritingLabeller(models["gpt2"], pattern="(?s).*", values={"": 3.0}, parse=None, **SHORT)
    assert named.read("") == 3.0


def test_what_was_written_can_be_read_as_a_number(models):
    labeller = WritingLabeller(models["gpt2"], parse=len, **SHORT)
    assert labeller(["a wall"]) == [float(len(labeller.texts(["a wall"])[0]))]
    assert WritingLabeller(models["gpt2"], pattern=".", values={}, **SHORT)(["a"]) == [None]


def test_the_writer_is_loaded_when_asked_and_answers_are_kept(models, tmp_path):
    cache = str(tmp_path / "a.jsonl")
    labeller = WritingLabeller(models["gpt2"], cache=cache, **SHORT)
    assert "write_on" not in vars(labeller)
    first = labeller.texts(["a wall"])
    again = pickle.loads(pickle.dumps(labeller))
    assert "write_on" not in vars(again)
    again.write_on = None
    assert again.texts(["a wall"]) == first


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("gpt2", {"max_length": 252}, "max_length=252 and max_new_tokens=6 are more than the 256"),
        ("gpt2", {"chat": True}, "no chat template"),
        ("bert", {}, "bert"),
        ("gpt2", {"stop": [""]}, "stop must be texts"),
        ("gpt2", {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ("gpt2", {"batch_size": 0}, "batch_size must be at least 1"),
        ("gpt2", {"template": "{a}"}, r"has no \{text\}"),
    ],
)
def test_wrong_arguments_of_a_writer_get_a_sentence(models, kind, arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        WritingLabeller(models[kind], **{**SHORT, **arguments}).texts(["a"])
