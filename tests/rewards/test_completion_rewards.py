"""What completions are worth: the judge, functions, and rules by hand-worked cases."""

import asyncio
import math
import time
import warnings
from fractions import Fraction
from functools import partial

import completion_rules
import numpy as np
import pytest
import torch

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.trust import loading_stranger
from rl_lightning.maths.token_advantages import overlong_penalty
from rl_lightning.rewards.completions import (
    CompletionJudge,
    CompletionReward,
    ExactMatch,
    FormatReward,
    LengthReward,
    NumericAnswer,
    PartialMatch,
    RegexMatch,
    RewardFunction,
)
from rl_lightning.rewards.completions.numeric import last_number

PROMPTS, SAID = ["1 + 1?", "1 + 2?", "1 + 3?"], ["2", "3", "5"]


def judged(*rewards, completions=SAID, prompts=None, weights=None, **columns):
    own = {name: columns.pop(name) for name in ("completion_ids", "ended") if name in columns}
    prompts = ["p"] * len(completions) if prompts is None else prompts
    judge = CompletionJudge(list(rewards), weights)
    return judge.judge(prompts, completions, **own, columns=columns)


def paid(reward, completions, **columns):
    """What one reward says."""
    (part,) = judged(reward, completions=completions, **columns).parts.values()
    return part.tolist()


# --- the judge ------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_named_parts():
    found = judged(
        ExactMatch(weight=2.0), completion_rules.length, completions=SAID, answer=["2", "3", "4"]
    )
    assert found.total.tolist() == [3.0, 3.0, 1.0]
    assert found.total.dtype == torch.float32
    assert {name: part.tolist() for name, part in found.parts.items()} == {
        "exact_match": [1.0, 1.0, 0.0],
        "length": [1.0, 1.0, 1.0],
    }
    assert found.means() == {"exact_match": pytest.approx(2 / 3), "length": 1.0}


def test_weights_in_the_place_of_the_rewards_own():
    rewards = [ExactMatch(weight=2.0), completion_rules.length]
    found = judged(*rewards, weights=[0.5, 0.0], answer=["2", "3", "4"])
    assert found.total.tolist() == [0.5, 0.5, 0.0]
    with pytest.raises(ConfigurationError, match="a number for each of 2 rewards"):
        CompletionJudge(rewards, [1.0])
    with pytest.raises(ConfigurationError, match="weight must be a finite number"):
        CompletionJudge(rewards, [1.0, math.nan])


def test_none_counts_as_nothing_and_is_left_out_of_the_mean():
    def some(prompts, completions):
        return [None, 1.0, None]

    def never(prompts, completions):
        return [None] * 3

    found = judged(some, never, completion_rules.length)
    assert found.total.tolist() == [1.0, 2.0, 1.0]
    assert [math.isnan(r) for r in found.parts["some"].tolist()] == [True, False, True]
    assert found.means() == {"some": 1.0, "length": 1.0}


def test_names_are_made_unique_and_given_ones_stay():
    judge = CompletionJudge(
        [
            ExactMatch(),
            ExactMatch("other", name="strict"),
            ExactMatch("third"),
            completion_rules.length,
            partial(completion_rules.length),
            lambda prompts, completions: [],
        ]
    )
    assert list(judge.rewards) == [
        "exact_match",
        "strict",
        "exact_match_2",
        "length",
        "length_2",
        "function",
    ]
    with pytest.raises(ConfigurationError, match=r"rewards\[1\]: the name 'a' is taken"):
        CompletionJudge([ExactMatch(name="a"), RegexMatch("x", name="a")])


def test_equal_rows_are_all_judged():
    shown = []

    def note(prompts, completions):
        shown.extend(completions)
        return range(len(completions))

    assert judged(note, completions=["a", "a", "a"]).total.tolist() == [0.0, 1.0, 2.0]
    assert shown == ["a", "a", "a"]


@pytest.mark.parametrize(
    "values",
    [
        (1, 2, 3),
        np.array([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        [np.float32(1), torch.tensor(2), Fraction(3)],
        [True, 2, 3.0],
    ],
)
def test_numbers_of_all_kinds(values):
    assert judged(lambda prompts, completions: values).total.tolist() == [1.0, 2.0, 3.0]


WRONG = {
    "nan for row 1, '3'; it must be a finite": [0, math.nan, 1],
    "inf for row 2, '5'": [0, 0, math.inf],
    "1e\\+39 for row 0": [1e39, 0, 0],
    r"'1' for row 1": [0, "1", 0],
    r"\[1\] for row 0": [[1], [1], [1]],
    "returned 2 numbers for 3": [0, 0],
    "must return 3 numbers, one for each completion, not 0.5": 0.5,
    "must return 3 numbers.*not 'abc'": "abc",
    "must return 3 numbers.*not None": None,
    "must return 3 numbers.*not {": {0: 1, 1: 1, 2: 1},
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_no_number_is_told_with_function_row_and_value(told):
    def odd(prompts, completions):
        return WRONG[told]

    with pytest.raises(RunError, match=rf"the reward .*\.odd .*{told}"):
        judged(odd)


def test_an_exception_is_told_with_the_function_and_chained():
    def fails(prompts, completions):
        return [1 / 0]

    with pytest.raises(RunError, match=r"fails failed on 3 completions.*'2'.*ZeroDiv") as raised:
        judged(fails)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("kind", [RunError, ConfigurationError])
@pytest.mark.parametrize("waits", [False, True])
def test_our_own_errors_keep_their_message(kind, waits):
    def fails(prompts, completions):
        raise kind("the server is gone")

    async def fails_later(prompts, completions):
        raise kind("the server is gone")

    with pytest.raises(kind, match=r"the reward .*fails.*: the server is gone$") as raised:
        judged(fails_later if waits else fails)
    assert isinstance(raised.value.__cause__, kind)


def test_a_total_that_float32_cannot_hold_is_told():
    with pytest.raises(RunError, match=r"row 0 add up to 3e\+39"):
        judged(RewardFunction(lambda prompts, completions: [3e38] * 3, weight=10.0))


# --- waiting --------------------------------------------------------------------------------------


class Slow(CompletionReward):
    async def __call__(self, prompts, completions, **columns):
        return await completion_rules.slow(prompts, completions)


def test_those_that_wait_do_so_together():
    begin = time.perf_counter()
    found = judged(completion_rules.slow, Slow(weight=2.0), completion_rules.slow)
    assert time.perf_counter() - begin < 0.4  # one after the other it would be 0.6
    assert found.total.tolist() == [4.0] * 3


def test_a_running_loop_is_no_hindrance():
    async def notebook():
        return judged(completion_rules.slow).total.tolist()

    assert asyncio.run(notebook()) == [1.0] * 3


def test_one_that_fails_while_others_wait():
    async def fails(prompts, completions):
        raise KeyError("x")

    with pytest.raises(RunError, match=r"fails failed.*KeyError"):
        judged(completion_rules.slow, fails)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_one_that_fails_before_others_wait_leaves_none_behind():
    def fails(prompts, completions):
        raise KeyError("x")

    with pytest.raises(RunError, match="fails failed"):
        judged(completion_rules.slow, fails)


# --- functions and what they are given ------------------------------------------------------------


def test_a_function_is_given_the_columns_it_takes():
    seen = {}

    def all_of_them(prompts, completions, **columns):
        seen["all"] = columns
        return [0, 0, 0]

    def some(prompts, completions, *, answer, other=None):
        seen["some"] = answer, other
        return [0, 0, 0]

    columns = {"answer": [1, 2, 3], "level": ["a", "b", "c"]}
    told = {"completion_ids": [[1], [2], [3, 4]], "ended": [True, True, False]}
    judged(all_of_them, some, **columns, **told)
    assert seen == {"all": {**columns, **told}, "some": ([1, 2, 3], None)}


def test_functions_are_called_by_names_or_by_places():
    assert paid(completion_rules.near, ["1", "9"], answer=[1.5, 5]) == [1.0, 0.0]
    assert paid(completion_rules.positional, ["p", "x"]) == [1.0, 0.0]
    assert paid(completion_rules.positional, ["p", "x"], answer=["x", "x"]) == [0.0, 1.0]
    # A column that is called as the function calls the completions.
    assert paid(completion_rules.positional, ["p", "x"], said=["?", "?"]) == [1.0, 0.0]


def test_a_function_by_its_import_path():
    judge = CompletionJudge(["completion_rules.length"])
    assert list(judge.rewards) == ["length"]
    assert RewardFunction("completion_rules.length").function is completion_rules.length
    for wrong in ("completion_rules.nowhere", "no_such_module.f", "length"):
        with pytest.raises(ConfigurationError, match=r"data.rewards asks for .*not there"):
            RewardFunction(wrong)


def test_a_strangers_path_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "strange_rules.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with loading_stranger(), pytest.raises(ConfigurationError, match="--trust strange_rules"):
        RewardFunction("strange_rules.f")


def test_what_is_no_reward():
    with pytest.raises(
        ConfigurationError, match=r"must take prompts and completions, and takes \("
    ):
        RewardFunction(completion_rules.nothing)
    for wrong in (3, None, ExactMatch):
        with pytest.raises(ConfigurationError, match=r"rewards\[0\] must be a reward, a function"):
            CompletionJudge([wrong])  # type: ignore[list-item]
    for wrong in ([], None, "completion_rules.length", ExactMatch()):
        with pytest.raises(ConfigurationError, match="must be a list of rewards"):
            CompletionJudge(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="ExactMatch has no argument 'colum'"):
        ExactMatch(colum="answer")
    for wrong in (math.inf, None, "1"):
        with pytest.raises(ConfigurationError, match="weight must be a finite number"):
            ExactMatch(weight=wrong)
    with pytest.raises(ConfigurationError, match="name must be a word"):
        ExactMatch(name="a/b")


def test_a_missing_column_is_told_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"near asks for 'answer', .*has level, text$"):
        judged(completion_rules.near, level=[1, 2, 3], text=["a", "b", "c"])
    with pytest.raises(ConfigurationError, match=r"asks for 'answer'.* no columns beside"):
        judged(completion_rules.near)
    with pytest.raises(ConfigurationError, match=r"ExactMatch needs a column 'gold'.*are answer"):
        judged(ExactMatch("gold"), answer=["1", "2", "3"])


@pytest.mark.parametrize("name", ["prompts", "completions", "ended"])
def test_a_column_with_a_name_that_is_taken(name):
    with pytest.raises(ConfigurationError, match=f"{name}'.*another name"):
        CompletionJudge([completion_rules.length]).judge(PROMPTS, SAID, columns={name: [1, 2, 3]})


# --- matches --------------------------------------------------------------------------------------


def test_exact_matches():
    said = [" Paris\n", "paris", "Lyon", "Paris"]
    answer = ["Paris", "Paris", "Paris", None]
    found = paid(ExactMatch(), said, answer=answer)
    assert found[:3] == [1.0, 0.0, 0.0]
    assert math.isnan(found[3])
    assert paid(ExactMatch(strip=False), said, answer=answer)[:3] == [0.0, 0.0, 0.0]
    assert paid(ExactMatch(ignore_case=True), said, answer=answer)[:3] == [1.0, 1.0, 0.0]
    assert paid(ExactMatch("gold"), ["42"], gold=[42]) == [1.0]
    with pytest.raises(ConfigurationError, match="must hold texts or numbers, not \\['a'\\]"):
        judged(ExactMatch(), answer=[["a"]] * 3)


def test_what_is_compared_can_be_found_by_a_pattern():
    said = ["<a>1</a> no, <a>\n2 </a>", "2", "<a>2"]
    assert paid(ExactMatch(pattern="<a>(.*?)</a>"), said, answer=["2"] * 3) == [1.0, 0.0, 0.0]
    assert paid(ExactMatch(pattern=r"\d"), ["1 and 2"], answer=["2"]) == [1.0]
    with pytest.raises(ConfigurationError, match="pattern: '\\(' is no regular expression"):
        ExactMatch(pattern="(")


def test_what_is_right_in_part():
    said = ["123", "12", "1934", " 123\n", "", "x"]
    expected = [1.0, 2 / 3, 2 / 4, 1.0, 0.0, 0.0]
    assert paid(PartialMatch(), said, answer=["123"] * 6) == pytest.approx(expected)
    assert paid(PartialMatch(), ["12", ""], answer=[12, ""]) == [1.0, 1.0]
    assert paid(PartialMatch(strip=False), [" 12"], answer=["12"]) == [0.0]
    assert paid(PartialMatch(ignore_case=True), ["AB"], answer=["ab"]) == [1.0]
    assert paid(PartialMatch(pattern=r"\d+"), ["so 12"], answer=["13"]) == [0.5]
    with pytest.raises(ConfigurationError, match="must hold texts or numbers"):
        paid(PartialMatch(), ["a"], answer=[["a"]])


def test_patterns():
    assert paid(RegexMatch("b.d"), ["abcde", "b\nd", "bd"]) == [1.0, 1.0, 0.0]
    assert paid(RegexMatch("b.d", full=True), ["abcde", "b\nd"]) == [0.0, 1.0]


NUMBERS = {
    "It is 42.": 42,
    "1, 2 and 3": 3,
    "1,234,567.5 apples": Fraction(2469135, 2),
    "−7": -7,
    "x = -7": -7,
    "5-3": 3,
    "2 - 3": 3,
    "costs $1,200": 1200,
    "-$5": -5,
    "3/4": Fraction(3, 4),
    r"\boxed{\frac{3}{4}}": Fraction(3, 4),
    r"-\dfrac{1}{2}": Fraction(-1, 2),
    ".5": Fraction(1, 2),
    "1.5e3": 1500,
    "2E-2": Fraction(1, 50),
    "#### 72": 72,
    "50%": 50,
    "x2 is it": None,
    "none": None,
    "1/0": None,
    "12,34": 34,
    "3 and x2": 3,
    "10kg": 10,
    "- 3": 3,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_last_number_of_a_text(text):
    found = last_number(text)
    assert (None if found is None else found.value) == NUMBERS[text]


def test_numeric_answers():
    def right(said, answer, **kwargs):
        return paid(NumericAnswer(**kwargs), [said], answer=[answer])[0]

    assert right("So it is 0.50.", "1/2") == 1.0
    assert right("the sum is 1,000", 1000) == 1.0
    assert right("no idea", 1000) == 0.0
    assert right("72 or 73", "so 48 + 24 = 72\n#### 72") == 0.0
    assert right("0.1", 0.1) == 1.0
    assert right("50%", 0.5) == right("50%", 50) == right("0.5", "50%") == 1.0
    assert right("0.5", 50) == right("50%", "0.5%") == 0.0
    assert right("3.14", math.pi) == 0.0
    assert right("3.14", math.pi, tolerance=0.01) == 1.0
    assert right("1010", 1000, tolerance=0.01) == 1.0  # a share of large answers
    assert right("1011", 1000, tolerance=0.01) == 0.0
    assert right("0.11", 0.1, tolerance=0.01) == 1.0  # and small ones as it is
    assert right("0.3333333", "1/3") == 1.0
    assert right("0.3333333", "1/3", tolerance=0.0) == 0.0
    assert right("<a>7</a> in 3 steps", 7, pattern="<a>(.*?)</a>") == 1.0
    assert right("7 in 3 steps", 7, pattern="<a>(.*?)</a>") == 0.0
    assert paid(NumericAnswer("gold"), ["1"], gold=[1]) == [1.0]
    assert math.isnan(right("1", None))
    with pytest.raises(ConfigurationError, match=r"'answer' must hold numbers.*not 'abc'"):
        right("1", "abc")
    with pytest.raises(ConfigurationError, match="tolerance must be at least 0"):
        NumericAnswer(tolerance=-1.0)


def test_long_numbers_take_no_time():
    text = " ".join(["9" * 5_000, "1," * 5_000, "-" * 5_000, "1e999 1e-999"]) + " 7"
    begin = time.perf_counter()
    assert last_number(text).value == 7  # type: ignore[union-attr]
    assert time.perf_counter() - begin < 0.5


# --- form -----------------------------------------------------------------------------------------

FORMS = {
    "<think>a</think><answer>b</answer>": 1.0,
    "\n<think>a\nb</think>\n <answer>c</answer>\n": 1.0,
    "<think></think><answer></answer>": 1.0,
    "<answer>b</answer><think>a</think>": 0.0,
    "<think>a</think>so<answer>b</answer>": 0.0,
    "<think>a</think><answer>b</answer>!": 0.0,
    "<think>a</think><answer>b</answer><answer>c</answer>": 0.0,
    "<think>a<think></think><answer>b</answer>": 0.0,
    "<think>a<answer>b</answer></think>": 0.0,
    "<think>a</think>": 0.0,
    "": 0.0,
}


def test_tags_each_once_in_order_and_nothing_else():
    assert paid(FormatReward(), list(FORMS)) == list(FORMS.values())
    assert paid(FormatReward(["a"]), ["<a>x</a>", "<a>x</a><a>y</a>"]) == [1.0, 0.0]
    assert paid(FormatReward(pattern=r"\d+"), ["12", "12 "]) == [1.0, 0.0]
    for wrong in ([], ["a", "a"], ["<a>"], ["a b"]):
        with pytest.raises(ConfigurationError, match="tags must be different names"):
            FormatReward(wrong)
    with pytest.raises(ConfigurationError, match="not both"):
        FormatReward(["a"], "b")


def test_the_overlong_penalty_is_daposs():
    ids = [[0] * n for n in (0, 8, 9, 10, 12)]
    said = ["x"] * len(ids)
    found = paid(LengthReward(most=10, soft=2), said, completion_ids=ids)
    assert found == [0.0, 0.0, -0.5, -1.0, -1.0]
    lengths = torch.tensor([len(row) for row in ids])
    assert found == overlong_penalty(lengths, 10, 2).tolist()
    assert paid(LengthReward(most=10), said, completion_ids=ids) == found  # a fifth
    assert paid(LengthReward(most=10, soft=10), said, completion_ids=ids)[1] == pytest.approx(-0.8)


def test_a_length_to_come_near_to():
    said = ["", "ab", "abcd", "abcde", "abcdefghi"]
    assert paid(LengthReward(target=4, unit="characters"), said) == [-1, -0.5, 0, -0.25, -1]
    ids = [[1], [1] * 2]
    assert paid(LengthReward(target=2), ["abcdef", "a"], completion_ids=ids) == [-0.5, 0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "takes most or target, one of the two"),
        ({"most": 1, "target": 1}, "one of the two"),
        ({"target": 1, "soft": 1}, "soft=1 belongs to most"),
        ({"most": 5, "soft": 6}, "soft must be at most 5"),
        ({"most": 0}, "most must be at least 1"),
        ({"target": 4, "unit": "words"}, "unit='words': use one of tokens, characters"),
    ],
)
def test_lengths_that_are_none(given, told):
    with pytest.raises(ConfigurationError, match=told):
        LengthReward(**given)


def test_tokens_are_asked_for():
    with pytest.raises(ConfigurationError, match="needs a column 'completion_ids'"):
        judged(LengthReward(most=5))


def test_a_reward_may_change_what_it_is_given():
    def careless(prompts, completions, completion_ids, chat, answer):
        completions[0] = "changed"
        prompts.clear()
        completion_ids[1].clear()
        chat[0].append("more")
        answer.reverse()
        return [1.0] * len(completions)

    async def last(prompts, completions, completion_ids, chat, answer):
        seen.append((prompts, completions, completion_ids, chat, answer))
        return [2.0] * len(completions)

    ids, chat, seen = [[1], [2], [3]], [["a"], ["b"], ["c"]], []
    said, asked, answer = [*SAID], [*PROMPTS], ["2", "3", "4"]
    judge = CompletionJudge([careless, last])
    found = judge.judge(asked, said, ids, columns={"chat": chat, "answer": answer})
    assert found.total.tolist() == [3.0] * 3
    given = ([*PROMPTS], [*SAID], [[1], [2], [3]], [["a"], ["b"], ["c"]], ["2", "3", "4"])
    assert seen == [given]
    assert (asked, said, ids, chat, answer) == given


def test_a_reward_that_applies_to_nothing_is_told_of_once():
    def nothing(prompts, completions):
        return [None] * len(completions)

    def sometimes(prompts, completions):
        return [None, 1.0, None]

    judge = CompletionJudge([nothing, sometimes])
    with pytest.warns(UserWarning, match="nothing applied to none of 3 completions") as told:
        assert judge.judge(PROMPTS, SAID).total.tolist() == [0.0, 1.0, 0.0]
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.judge(PROMPTS, SAID)
