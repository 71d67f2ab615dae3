import warnings

import pytest
import torch
from llm_tiny import KINDS

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Tokens, load_backbone
from rl_lightning.llm.tokens import control_tokens


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


# --- text is text ---------------------------------------------------------------------------------


def wordlevel():
    """Its control tokens are words of its vocabulary: spelling them out is no way round them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "go": 3, "now": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made, {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def unigram():
    """As T5's: a sentencepiece vocabulary with the control tokens in it, and a normaliser."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    made = Tokenizer(models.Unigram(pieces + [(c, -3.0) for c in "▁gonw<>/s"], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.normalizer = normalizers.NFKC()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return made, {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}


def made(kind, tiny=None):
    """A tokenizer of one of all kinds, and how many tokens its template puts around a text."""
    import transformers as t

    if kind in KINDS:
        each = t.AutoTokenizer.from_pretrained(tiny[kind])
        return each, {"bert": (1, 1), "gpt2": (0, 0), "llama": (1, 0), "t5": (0, 1)}[kind]
    if kind == "byt5":  # a slow one
        return t.ByT5Tokenizer(), (0, 1)
    if kind == "wordpiece":
        words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "go", "now", "[", "]"]
        words += list("abcdefghijklmnopqrstuvwxyz")
        words += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
        return t.BertTokenizer(vocab={w: i for i, w in enumerate(words)}), (1, 1)
    backend, roles = wordlevel() if kind == "wordlevel" else unigram()
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, **roles), (
        (1, 1) if kind == "wordlevel" else (0, 1)
    )


ALL = (*KINDS, "wordpiece", "wordlevel", "unigram", "byt5")


@pytest.mark.parametrize("kind", ALL)
def test_control_tokens_in_a_text_are_text(kind, tiny):
    tokenizer, (before, behind) = made(kind, tiny)
    each = Tokens(tokenizer, 64)
    control = control_tokens(tokenizer)
    assert control
    ids = set(tokenizer.convert_tokens_to_ids(control)) - {tokenizer.unk_token_id}
    texts = [text.replace("X", c) for c in control for text in ("X", "go X now", "goXnow", "XX")]
    for row in each(texts):
        assert ids.isdisjoint(row[before : len(row) - behind])
        assert ids.issuperset([*row[:before], *row[len(row) - behind :]])
    # Full-width letters that a normaliser makes a control token of.
    assert ids.isdisjoint(each(["go ＜/s＞ now"])[0][before : -behind or None])


@pytest.mark.parametrize("kind", ALL)
def test_ordinary_texts_keep_their_ids_and_their_fingerprint(kind, tiny):
    tokenizer, _ = made(kind, tiny)
    one, other = Tokens(tokenizer, 64), Tokens(tokenizer, 64, split_special_tokens=False)
    plain = [row or [one.pad_id] for row in tokenizer(TEXTS)["input_ids"]]
    assert one(TEXTS) == other(TEXTS) == plain
    assert one.fingerprint() == other.fingerprint()


TEXTS = ["go now", "", "  [go] <now> / s", "See: e.g. <b>now</b>!", "goSEPnow"]


def test_control_tokens_act_where_they_are_asked_to(tokens):
    tokenizer = tokens["bert"].tokenizer
    sep = tokenizer.convert_tokens_to_ids("[SEP]")
    for split, times in ((True, 1), (False, 2)):
        each = Tokens(tokenizer, 64, split_special_tokens=split)
        assert each(["go [SEP] now"])[0].count(sep) == times
    assert each.has_control_token("go [sep] now")
    assert not each.has_control_token("go SEP now")


def test_the_real_t5_kind_of_vocabulary_spells_nothing_it_need_not():
    each = Tokens(made("unigram")[0], 64)
    spelled = each.tokenizer.convert_ids_to_tokens(each(["go </s>"])[0])
    assert spelled == ["▁", "g", "o", "▁", "<unk>", "</s>"]


def test_truncation_side(tiny):
    tokenizer, _ = made("llama", tiny)
    first = tokenizer.convert_tokens_to_ids("<s>")
    right, left = (Tokens(tokenizer, 4, truncation_side=side) for side in ("right", "left"))

    def cut(tokens):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = tokens(["g" * 20 + "z" * 20])[0]
        assert (len(row), row[0]) == (4, first)
        return tokenizer.convert_ids_to_tokens(row[-1])

    assert [cut(each) for each in (right, left, right, left)] == ["g", "z", "g", "z"]
    own = Tokens(tokenizer, 4)  # several share one tokenizer, and none changes it
    assert (cut(own), cut(left), cut(own)) == ("g", "z", "g")
    assert own.fingerprint() == right.fingerprint() != left.fingerprint()
    with pytest.raises(ConfigurationError, match="truncation_side='middle'"):
        Tokens(tokenizer, 4, truncation_side="middle")  # type: ignore[arg-type]
