"""Labellers: questions in, numbers out, each question once."""

import json
import math
import multiprocessing
import pickle
import re

import pytest

from rl_lightning.core.answer_file import AnswerFile
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.rewards import FileLabeller, Labeller, RuleLabeller, WordLabeller
from rl_lightning.rewards.labels import UnreadableError, Verdict
from rl_lightning.rewards.labels.questions import as_data, digest, fill

ASKED = []


def longer(question):
    """Which of two texts is the longer one; how long a text is."""
    ASKED.append(question)
    if isinstance(question, str):
        return len(question)
    a, b = map(len, question)
    return 0.5 if a == b else float(b > a)


def fails(question):
    if question == "bad":
        raise KeyError("nothing")
    return 1.0


@pytest.fixture(autouse=True)
def _forget():
    ASKED.clear()


# --- questions ----------------------------------------------------------------------------------


def test_templates_take_texts_as_they_are():
    assert fill("<{text}>", "a {text} {b}") == "<a {text} {b}>"
    assert fill("1 {b} 2 {a} {x}", ("{b}", "{a}")) == "1 {a} 2 {b} {x}"
    with pytest.raises(ConfigurationError, match=r"has no \{b\}, where a question of a pair"):
        fill("{a}", ("x", "y"))
    with pytest.raises(ConfigurationError, match=r"\{text\}, where a question of one text"):
        fill("{a} {b}", "x")


@pytest.mark.parametrize("question", [3, ("a",), ("a", "b", "c"), [{"role": "user"}], [], ("a", 1)])
def test_what_is_no_question_is_refused(question):
    with pytest.raises(ConfigurationError, match="a question is a text, a pair"):
        as_data(question)


def test_digests_tell_questions_apart():
    chat = [{"role": "user", "content": "a"}]
    keys = {digest(as_data(q)) for q in ("a", ("a", "b"), ("b", "a"), chat, "\ud800")}
    assert len(keys) == 5


# --- the protocol -------------------------------------------------------------------------------


def test_answers_come_in_order_and_each_question_is_asked_once():
    labeller = RuleLabeller(longer)
    questions = ["abc", "a", "abc", ("a", "bb"), ("bb", "a"), "a", ("x", "y")]
    assert labeller(questions) == [3.0, 1.0, 3.0, 1.0, 0.0, 1.0, 0.5]
    assert ASKED == ["abc", "a", ("a", "bb"), ("bb", "a"), ("x", "y")]
    assert labeller.counts == {"asked": 5, "remembered": 0, "unreadable": 0, "failed": 0}
    assert labeller(["a", "new"]) == [1.0, 3.0]  # remembered from the first call
    assert labeller.metrics()["labels/remembered"] == 1.0
    assert ASKED[-1] == "new"


def test_a_second_run_asks_nothing(tmp_path):
    cache = str(tmp_path / "deep" / "answers.jsonl")
    first = RuleLabeller(longer, cache=cache)(["a", ("a", "bb")])
    ASKED.clear()
    again = RuleLabeller(longer, cache=cache)
    assert again([("a", "bb"), "a"]) == first[::-1]
    assert not ASKED
    assert again.counts["remembered"] == 2
    assert RuleLabeller(fails, cache=cache)(["a"]) == [1.0]  # of another rule nothing is taken


def test_a_rule_that_fails_stops_or_is_skipped():
    with pytest.raises(RunError, match=r"test_labellers\.fails failed on 'bad': KeyError"):
        RuleLabeller(fails)(["good", "bad"])
    labeller = RuleLabeller(fails, on_failure="skip")
    with pytest.warns(UserWarning, match="1 of 2 questions have no answer"):
        assert labeller(["bad", "good"]) == [None, 1.0]
    assert labeller.counts["failed"] == 1


def test_unreadable_answers_are_counted_and_handled_as_told():
    def text(question):
        return "no idea"

    labeller = RuleLabeller(text)
    assert labeller(["a"]) == [None]
    assert labeller.counts["unreadable"] == 1
    assert RuleLabeller(text, on_unreadable=0.5)(["a"]) == [0.5]
    with pytest.raises(RunError, match="'no idea' is no number"):
        RuleLabeller(text, on_unreadable="stop")(["a"])
    assert RuleLabeller(lambda q: None)(["a"]) == [None]
    assert RuleLabeller(lambda q: math.nan)(["a"]) == [None]


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"on_failure": "wait"}, "on_failure must be 'stop' or 'skip'"),
        ({"on_unreadable": math.inf}, "on_unreadable"),
        ({"on_unreadable": "ignore"}, "on_unreadable"),
        ({"cache": "."}, "is a folder"),
    ],
)
def test_wrong_arguments_get_a_sentence(kwargs, told):
    with pytest.raises(ConfigurationError, match=told):
        RuleLabeller(longer, **kwargs)


def test_bases_say_that_they_are():
    with pytest.raises(NotImplementedError):
        Labeller()(["a"])


# --- answers on disk ----------------------------------------------------------------------------


def test_a_torn_line_costs_itself_alone(tmp_path):
    path = tmp_path / "answers.jsonl"
    file = AnswerFile(path)
    file.keep("k1", "q1", 1.0)
    with path.open("ab") as raw:
        raw.write(b'{"key": "k2", "ques')  # killed here
    other = AnswerFile(path)
    other.refresh()
    assert other.known == {"k1": 1.0}
    other.keep("k3", "q3", 3.0)
    last = AnswerFile(path)
    with pytest.warns(UserWarning, match="1 lines of .* are no answers"):
        last.refresh()
    assert last.known == {"k1": 1.0, "k3": 3.0}


def test_the_first_of_two_answers_stands(tmp_path):
    one, two = AnswerFile(tmp_path / "a"), AnswerFile(tmp_path / "a")
    assert one.keep("k", "q", "first") == "first"
    assert two.keep("k", "q", "second") == "first"
    assert len((tmp_path / "a").read_text().splitlines()) == 1


def _write(path, name):
    file = AnswerFile(path)
    for number in range(40):
        file.keep(f"{name}-{number}", "q" * 50, number)


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    file = AnswerFile(path)
    file.refresh()
    assert len(file.known) == 120
    assert len(path.read_text().splitlines()) == 120


# --- words and files ----------------------------------------------------------------------------


def test_words():
    labeller = WordLabeller({"near": 1.0, "far north": -2.0}, margin=0.5)
    assert labeller(
        ["Near, near. A nearby far north", ("near", "x"), ("x", "x near"), ("a", "b")]
    ) == [
        0.0,
        0.0,
        1.0,
        0.5,
    ]
    assert WordLabeller({"near": 1.0}, margin=1.0)([("near", "x")]) == [0.5]
    for weights in ({}, {"": 1.0}, {"a": math.nan}):
        with pytest.raises(ConfigurationError, match="weights"):
            WordLabeller(weights)


def test_files_answer(tmp_path):
    path = tmp_path / "labels.jsonl"
    chat = [{"role": "user", "content": "hm"}]
    rows = [("a", 1), (["a", "b"], 0.5), (chat, 3), ("a", 2)]
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows) + "\n\n")
    labeller = FileLabeller(str(path))
    assert labeller([("a", "b"), "a", chat]) == [0.5, 2.0, 3.0]
    with pytest.raises(RunError, match=r"has no answer to \('b', 'a'\)"):
        labeller([("b", "a")])
    assert FileLabeller(str(path), missing=0.25)(["a", "zz"]) == [2.0, 0.25]
    with pytest.warns(UserWarning, match="no answer"):
        assert FileLabeller(str(path), missing="skip")(["zz", "a"]) == [None, 2.0]


def test_a_cache_is_such_a_file(tmp_path):
    cache = str(tmp_path / "answers.jsonl")
    RuleLabeller(longer, cache=cache)(["abc"])
    assert FileLabeller(cache)(["abc"]) == [3.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no such file"),
        ("{}\n", "line 1: {} is no JSON object with 'question' and 'answer'"),
        ('{"question": "a", "answer": 1}\nnonsense\n', "line 2: nonsense"),
    ],
)
def test_wrong_files_get_a_sentence(tmp_path, text, told):
    path = tmp_path / "labels.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        FileLabeller(str(path))


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("A", 0), (" **b** ", 1), ("Tie.", 0.5), ("yes!", 1), ("(B)", 1), ("-1.5", -1.5), ("7", 7)],
)
def test_plain_verdicts(text, number):
    assert Verdict()(text) == number


@pytest.mark.parametrize("text", ["I think A", "", "nan", "A or B", None, 3])
def test_what_is_no_verdict(text):
    with pytest.raises(UnreadableError):
        Verdict()(text)


def test_patterns_values_and_functions():
    verdict = Verdict(r"answer: (\w+)", {"left": 0.0, "right": 1.0})
    assert verdict("Answer: left. No, answer: RIGHT") == 1.0
    assert Verdict(r"\d+")("from 1 to 9") == 9.0
    assert Verdict(parse=len)("four") == 4.0
    with pytest.raises(UnreadableError):
        Verdict(parse=lambda text: None)("x")
    with pytest.raises(ConfigurationError, match="no regular expression"):
        Verdict("(")
    with pytest.raises(ConfigurationError, match="'A' must be a number"):
        Verdict(values={"A": "best"})  # type: ignore[dict-item]


def test_labellers_can_be_pickled():
    labeller = RuleLabeller(longer)
    labeller(["a"])
    assert pickle.loads(pickle.dumps(labeller))(["a"]) == [1.0]
