import warnings

import pytest
import torch
from llm_tiny import KINDS

from rl_lightning.errors import ConfigurationError
from rl_lightning.llm import Tokens, load_backbone


@pytest.fixture
def tokens(tiny):
    return {kind: Tokens(load_backbone(tiny[kind])[1], 16, 256) for kind in KINDS}


def test_pads_right_with_a_mask_also_without_a_pad_token(tokens):
    for kind, each in tokens.items():
        ids = each(["go to the red ball", "go"])
        padded, mask = each.pad(ids)
        assert padded.shape == mask.shape == (2, len(ids[0]))
        assert padded[1][mask[1]].tolist() == ids[1]
        assert mask.sum(1).tolist() == [len(row) for row in ids]
        assert mask[1, 0]
        assert not mask[1, -1]
        assert each.pad(ids, 16)[0].shape == (2, 16)
        assert (each.tokenizer.pad_token_id is None) == (kind in ("gpt2", "llama"))


def test_an_empty_text_still_has_a_token(tokens):
    assert {kind: len(each([""])[0]) for kind, each in tokens.items()} == {
        "bert": 2,
        "gpt2": 1,
        "llama": 1,
        "t5": 1,
    }


def test_long_texts_are_cut_with_one_warning(tokens):
    each = tokens["bert"]
    exact = "key " * 6  # below the limit: no warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each([exact])
    with pytest.warns(UserWarning, match=r"\d\d tokens was cut to max_length=16"):
        ids = each(["key " * 50])
    assert len(ids[0]) == 16
    assert ids[0][-1] == each.tokenizer.convert_tokens_to_ids("[SEP]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each(["ball " * 60])


def test_a_text_of_exactly_max_length_is_not_warned_of(tokens):
    each = tokens["gpt2"]
    text = "z" * 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(each([text])[0]) == 16


def test_limits_and_types(tiny, tokens):
    tokenizer = tokens["bert"].tokenizer
    with pytest.raises(ConfigurationError, match="max_length=300 is more than the 256"):
        Tokens(tokenizer, 300, 256)
    with pytest.raises(ConfigurationError, match="max_length=2 leaves no room"):
        Tokens(tokenizer, 2)
    Tokens(tokenizer, 300, None)
    with pytest.raises(TypeError, match="got int, list"):
        tokens["bert"](["a", 3, ["b"]])


def test_fingerprint_is_of_the_rules_not_of_the_calls(tiny, tokens):
    each = tokens["bert"]
    before = each.fingerprint()
    with pytest.warns(UserWarning, match="was cut"):
        each(["a much longer text than the others, which will be truncated to something"])
    assert each.fingerprint() == before
    assert len({t.fingerprint() for t in tokens.values()}) == len(KINDS)
    assert Tokens(each.tokenizer, 17).fingerprint() != before


def test_ids_are_int64(tokens):
    assert tokens["t5"].pad([[1, 2], [3]])[0].dtype == torch.int64
