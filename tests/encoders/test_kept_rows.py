"""What a frozen model said, kept for other runs."""

import base64
import json

import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from text_probes import Named

from rl_lightning import EnvSpec, LLMEncoder, TextActionEncoder
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.encoders.kept_rows import KeptRows

TEXTS = ["a wall", "a grey box", "a wall", "a door"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path))
    return tmp_path / "texts"


def spec():
    env = Named()
    return EnvSpec(env.observation_space, env.action_space, "Probe-v0", None)


def scorer(model, **kwargs):
    kwargs = {"actions": ["north", "go east"], "max_length": 48, "keep_on_disk": True, **kwargs}
    return TextActionEncoder(spec(), model, **kwargs).eval()


def reader(model, **kwargs):
    return LLMEncoder(spec(), model, **{"keep_on_disk": True, **kwargs}).eval()


def silent(encoder):
    """An encoder whose model fails when it is asked."""

    def fail(texts):
        raise AssertionError(f"asked for {texts}")

    encoder._read_frozen = fail
    return encoder


@pytest.mark.parametrize("make", [scorer, reader])
def test_another_run_asks_nothing_and_reads_the_same_bits(model, make):
    first = make(model)
    said = first.preprocess_raw(TEXTS)
    again = silent(make(model)).preprocess_raw(TEXTS)
    pairs = zip(said.values(), again.values()) if isinstance(said, dict) else [(said, again)]  # noqa: B905
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(AssertionError, match="a new one"):
        silent(make(model)).preprocess_raw(["a wall", "a new one"])


@pytest.mark.parametrize("make", [scorer, reader])
def test_nothing_is_kept_unless_it_is_asked_for(model, make, folder):
    make(model, keep_on_disk=False).preprocess_raw(TEXTS)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (scorer, {"template": "{observation}\nGo:"}),
        (scorer, {"actions": ["south", "go west"]}),
        (scorer, {"layers": 1}),
        (scorer, {"max_length": 24}),
        (scorer, {"split_special_tokens": False}),
        (reader, {"pooling": "last"}),
        (reader, {"normalize": True}),
        (reader, {"max_length": 24}),
    ],
)
def test_what_decides_a_row_decides_the_file(model, make, change, folder):
    make(model).preprocess_raw(TEXTS)
    with pytest.raises(AssertionError, match="asked for"):
        silent(make(model, **change)).preprocess_raw(TEXTS)
    make(model, **change).preprocess_raw(TEXTS)
    assert len(list(folder.iterdir())) == 2


def test_only_new_texts_are_computed_and_runs_side_by_side_share_them():
    asked = []

    def compute(texts):
        asked.append(list(texts))
        return torch.tensor([[len(t), 0.1] for t in texts])

    one, two = KeptRows("rules", 2), KeptRows("rules", 2)
    expected = torch.tensor([[1, 0.1], [2, 0.1]])
    assert torch.equal(one.get(["a", "bb"], compute), expected)
    assert torch.equal(two.get(["bb", "ccc", "a"], compute)[[2, 0]], expected)
    assert asked == [["a", "bb"], ["ccc"]]
    assert torch.equal(KeptRows("others", 2).get(["a"], compute), expected[:1])
    assert asked[-1] == ["a"]


def test_a_model_that_is_not_the_same_in_another_run_is_refused(model):
    for change, why in (({"tune": "lora"}, "tuned"), ({"pretrained": False}, "random weights")):
        with pytest.raises(ConfigurationError, match=f"keep_on_disk.*{why}"):
            scorer(model, **change)


def ones(texts):
    return torch.ones(len(texts), 2)


def test_a_file_of_something_else_is_an_error(folder):
    KeptRows("rules", 2).get(["a"], ones)
    (file,) = folder.iterdir()
    entry = json.loads(file.read_text())
    numbers = np.array([1.0, np.nan], "<f4").tobytes()
    for damage in ("no base64!", "AAAA", 7, base64.b64encode(numbers).decode()):
        file.write_text(json.dumps({**entry, "answer": damage}) + "\n")
        with pytest.raises(RunError, match="damaged: delete it"):
            KeptRows("rules", 2).get(["a"], ones)


def test_a_line_that_nobody_can_parse_is_passed_over(folder):
    KeptRows("rules", 2).get(["a"], ones)
    (file,) = folder.iterdir()
    file.write_text("[" * 100_000 + "\n")
    with pytest.warns(UserWarning, match="1 lines of .* are no answers"):
        assert torch.equal(KeptRows("rules", 2).get(["a"], ones), torch.ones(1, 2))


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"keep_on_disk.*RL_LIGHTNING_CACHE"):
        KeptRows("rules", 2).get(["a"], ones)
