"""BagOfWordsEncoder: which words a text has, and features by hand."""

import subprocess
import sys
import warnings

import gymnasium as gym
import pytest
import torch

from rl_lightning import BagOfWordsEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec

SPEC = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(2), "Words-v0")


def build(**kwargs):
    torch.manual_seed(0)
    return BagOfWordsEncoder(SPEC, **kwargs)


def numbers(encoder, text):
    row = encoder.preprocess((text,))[0]
    assert row.dtype == torch.int32
    assert row.shape == (encoder.row_width,)
    return row[row != 0].tolist()


def test_words_pairs_and_runs_have_numbers():
    one, two, three = (build(ngrams=n) for n in (1, 2, 3))
    near, north, mark = (numbers(one, word)[0] for word in ("near", "north", "."))
    assert numbers(one, "Near  NORTH.") == [near, north, mark]
    assert len(numbers(two, "near north.")) == 3 + 2
    assert len(numbers(three, "near north.")) == 3 + 2 + 1
    assert numbers(three, "near north.")[:5] == numbers(two, "near north.")
    assert sorted(numbers(one, "north near")) == sorted(numbers(one, "near north"))
    assert sorted(numbers(two, "north near")) != sorted(numbers(two, "near north"))
    assert numbers(one, "") == []


def test_any_text_there_is_has_numbers():
    assert len(numbers(build(), "\ud800 alone")) > 1


def test_buckets_bound_the_numbers():
    text = " ".join(map(str, range(100)))
    assert set(numbers(build(buckets=3), text)) == {1, 2, 3}
    assert len(set(numbers(build(), text))) > 250


def test_features_are_sums_over_the_root_of_the_number():
    encoder = build(width=4)
    x = encoder.preprocess(("a b", "a", ""))
    vectors = encoder.vectors.weight
    rows = numbers(encoder, "a b")
    assert encoder.out_dim == 4
    torch.testing.assert_close(encoder(x)[0], vectors[rows].sum(0) / 3**0.5)
    torch.testing.assert_close(encoder(x)[1], vectors[rows[0]])
    assert not encoder(x)[2].any()
    assert encoder(x[:0]).shape == (0, 4)
    for i in range(3):  # batched = single
        torch.testing.assert_close(encoder(x)[i], encoder(x[i : i + 1])[0])


def test_padding_learns_nothing():
    encoder = build()
    encoder(encoder.preprocess(("a", "b c d e f"))).sum().backward()
    grad = encoder.vectors.weight.grad
    assert grad is not None
    assert not grad[0].any()
    assert grad[numbers(encoder, "a")[0]].any()


def test_long_texts_are_cut_and_say_so_once():
    encoder = build(max_words=3)
    with pytest.warns(UserWarning, match="a text of 5 words was cut .* max_words=3"):
        cut = numbers(encoder, "a b c d e")
    assert cut == numbers(encoder, "a b c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers(encoder, "v w x y z")
    assert numbers(build(max_words=1, ngrams=3), "a b")  # no pair fits: still a word


def test_texts_are_remembered_as_they_would_be_computed():
    encoder, other = build(remembered=2), build(remembered=0)
    for text in ("a b", "a b", "c", "d e f", "a b"):
        assert encoder.preprocess((text,)).equal(other.preprocess((text,)))
    assert (len(encoder.cache), encoder.cache.hits) == (2, 1)
    assert not other.cache.hits


def test_another_process_numbers_words_alike():
    code = (
        "import gymnasium as gym; from rl_lightning import *; e = BagOfWordsEncoder(EnvSpec("
        "gym.spaces.Text(9), gym.spaces.Discrete(2), 'X')); print(e.preprocess(('a b',))[0][:3])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(build().preprocess(("a b",))[0][:3])


@pytest.mark.parametrize("name", ["buckets", "ngrams", "width", "max_words"])
def test_arguments_are_checked(name):
    with pytest.raises(ConfigurationError, match=name):
        build(**{name: 0})


def test_what_is_no_text_is_refused():
    with pytest.raises(ConfigurationError, match="wrap the environment in `Describe`"):
        BagOfWordsEncoder(EnvSpec(gym.spaces.Discrete(2), gym.spaces.Discrete(2), "X"))
    with pytest.raises(TypeError, match="not one text"):
        build().preprocess("a b")
