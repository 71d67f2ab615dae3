"""HashedWordsEncoder: which numbers a text has, and features by hand."""

import subprocess
import sys
import warnings
import zlib
from functools import partial

import gymnasium as gym
import pytest
import torch

from rl_lightning import DictEncoder, HashedWordsEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.hashed_words import hashed_words

SPEC = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(2), "Words-v0")


def build(**kwargs):
    torch.manual_seed(0)
    return HashedWordsEncoder(SPEC, **kwargs)


def numbers(encoder, text):
    row = encoder.preprocess((text,))[0]
    assert row.shape == (encoder.row_width,)
    return row[row != 0].tolist()


def test_hashes_are_known_ones():
    assert zlib.crc32(b"a") == 0xE8B7BE43  # the published check value of CRC-32
    assert hashed_words(["a"], 1000, 1) == [0xE8B7BE43 % 1000 + 1]
    assert hashed_words(["a", "b"], 1000, 2)[2] == zlib.crc32(b"a b") % 1000 + 1
    assert hashed_words([], 1000, 2) == []
    assert numbers(build(), "a b") == hashed_words(["a", "b"], 2048, 2)


def test_another_process_numbers_words_alike():
    code = (
        "from rl_lightning.encoders.hashed_words import hashed_words; "
        "print(hashed_words(['near', 'north'], 2048, 2))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(hashed_words(["near", "north"], 2048, 2))


def test_pairs_know_order_and_single_words_do_not():
    one, two, three = (build(ngrams=n) for n in (1, 2, 3))
    a, b = "wall north", "north wall"
    torch.testing.assert_close(one(one.preprocess((a,))), one(one.preprocess((b,))))
    assert not torch.allclose(two(two.preprocess((a,))), two(two.preprocess((b,))))
    assert [len(numbers(e, "near the north.")) for e in (one, two, three)] == [4, 7, 9]


def test_words_share_a_vector_where_buckets_are_few():
    few = build(buckets=1, ngrams=1)
    assert numbers(few, "north south") == [1, 1]
    x = few.preprocess(("north", "south"))
    assert few(x)[0].equal(few(x)[1])
    assert len(set(numbers(build(), " ".join(map(str, range(60)))))) > 100


def test_case_is_told_apart_on_request():
    assert numbers(build(), "North") == numbers(build(), "north")
    assert numbers(build(lowercase=False), "North") != numbers(build(lowercase=False), "north")


def test_features_are_means_and_batched_is_single():
    encoder = build(dim=4)
    x = encoder.preprocess(("a b", "a", "", "a b c d e f"))
    vectors = encoder.vectors.weight
    assert encoder.out_dim == 4
    torch.testing.assert_close(encoder(x)[0], vectors[numbers(encoder, "a b")].mean(0))
    torch.testing.assert_close(encoder(x)[1], vectors[numbers(encoder, "a")[0]])
    assert not encoder(x)[2].any()
    assert encoder(x[:0]).shape == (0, 4)
    for i in range(4):
        torch.testing.assert_close(encoder(x)[i], encoder(x[i : i + 1])[0])


def test_padding_learns_nothing():
    encoder = build()
    encoder(encoder.preprocess(("a", "b c d"))).sum().backward()
    grad = encoder.vectors.weight.grad
    assert grad is not None
    assert not grad[0].any()
    assert grad[numbers(encoder, "a")[0]].any()


@pytest.mark.parametrize(("buckets", "dtype"), [(32_767, torch.int16), (32_768, torch.int32)])
def test_rows_are_stored_small(buckets, dtype):
    encoder = build(buckets=buckets, dim=1)
    x = encoder.preprocess((" ".join(map(str, range(100))), "\ud800"))
    assert x.dtype == dtype
    assert int(x.min()) == 0
    assert encoder(x).shape == (2, 1)


def test_long_texts_are_cut_and_say_so_once():
    encoder = build(max_words=3)
    with pytest.warns(UserWarning, match="a text of 5 words was cut .* max_words=3"):
        cut = numbers(encoder, "a b c d e")
    assert cut == numbers(encoder, "a b c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers(encoder, "v w x y z")


def test_texts_are_remembered_as_they_would_be_computed():
    encoder, other = build(remembered=2), build(remembered=0)
    for text in ("a b", "a b", "c", "d e f", "a b"):
        assert encoder.preprocess((text,)).equal(other.preprocess((text,)))
    assert (len(encoder.cache), encoder.cache.hits) == (2, 1)
    assert not other.cache.hits


def test_a_text_in_a_dictionary_is_read():
    space = gym.spaces.Dict({"text": gym.spaces.Text(9), "n": gym.spaces.Box(0, 1, (2,))})
    encoder = DictEncoder(
        EnvSpec(space, SPEC.action_space), {"text": partial(HashedWordsEncoder, dim=3)}
    )
    x = encoder.preprocess({"text": ("a", "b"), "n": torch.zeros(2, 2).numpy()})
    assert encoder(x).shape == (2, 5)


@pytest.mark.parametrize("name", ["buckets", "ngrams", "dim", "max_words"])
def test_arguments_are_checked(name):
    with pytest.raises(ConfigurationError, match=name):
        build(**{name: 0})


def test_what_is_no_text_is_refused():
    with pytest.raises(ConfigurationError, match="wrap the environment in `Describe`"):
        HashedWordsEncoder(EnvSpec(gym.spaces.Discrete(2), gym.spaces.Discrete(2), "X"))
    with pytest.raises(TypeError, match="not one text"):
        build().preprocess("a b")
