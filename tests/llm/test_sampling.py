"""How the next token is chosen, by hand."""

import dataclasses

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.sampling import Sampling

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.9}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),
        ({"temperature": 0.0}, [0]),
    ],
)
def test_what_may_be_sampled(given, kept):
    torch.manual_seed(0)
    sampling = Sampling(4, **given)
    drawn = sampling.choose(LOGITS.expand(2000, 4))
    assert sorted(drawn.unique().tolist()) == kept
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])[kept]
    found = torch.bincount(drawn, minlength=4)[kept] / 2000
    if "temperature" not in given:
        torch.testing.assert_close(found, share / share.sum(), atol=0.05, rtol=0.0)


def test_what_is_cut_off_depends_on_the_temperature():
    # Squared: 0.25, 0.09, 0.0225, 0.0025 of 0.365; the likeliest two have 0.93 of it, not 0.8.
    for heat, kept in ((1.0, 3), (0.5, 2)):
        assert int(Sampling(4, heat, top_p=0.9).allowed(LOGITS / heat).isfinite().sum()) == kept


def test_rows_are_cut_off_each_by_its_own_likeliest():
    rows = torch.stack([LOGITS[0], LOGITS[0].flip(0), LOGITS[0, [2, 0, 3, 1]]])
    for sampling in (Sampling(4, top_k=2), Sampling(4, top_p=0.6)):
        found = sampling.allowed(rows).isfinite().tolist()
        assert found == [[True, True, False, False], [False, False, True, True],
                         [False, True, False, True]]  # fmt: skip
        assert sampling.allowed(rows)[0, :2].equal(rows[0, :2])


@pytest.mark.parametrize("given", [{"top_k": 2}, {"top_k": 3, "top_p": 0.6}, {"top_p": 0.4}])
def test_of_tokens_that_are_as_likely_no_more_are_kept(given):
    assert int(Sampling(4, **given).allowed(torch.zeros(1, 5)).isfinite().sum()) == 2


def test_a_share_that_is_smaller_than_the_likeliest_keeps_it():
    assert Sampling(4, top_p=1e-9).allowed(LOGITS).isfinite().tolist() == [[True] + [False] * 3]


def test_a_stop_text_may_be_given_alone():
    assert Sampling(stop="end").stop == ("end",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
    assert Sampling(stop=None).stop == ()
    assert len({Sampling(stop=["a"]), Sampling(stop="a")}) == 1


def test_all_arguments_are_tested_here_or_with_groups():
    names = {field.name for field in dataclasses.fields(Sampling)}
    assert names == {"max_new_tokens", "temperature", "top_k", "top_p", "stop"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"top_p": 0.0}, "top_p=0 leaves no token"),
        ({"stop": [""]}, "stop must be texts, not \\[''\\]"),
        ({"stop": [3]}, "stop must be texts, not \\[3\\]"),
        ({"stop": 3}, "stop must be texts, not 3"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": None}, "max_new_tokens"),
        ({"temperature": None}, "temperature=None: give a number"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": -0.1}, "top_p must be between 0 and 1"),
    ],
)
def test_sampling_that_can_mean_nothing_is_named(given, message):
    with pytest.raises(ConfigurationError, match=message) as told:
        Sampling(**given)
    assert "\n" not in str(told.value)
