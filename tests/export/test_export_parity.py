"""An export that does not act as its agent is refused; so is what no graph can hold."""

import builtins
import importlib.util
import json
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from export_tools import made, opinionated
from llm_tiny import tiny_model
from probes import OBSERVATIONS
from token_tools import characters, make

from rl_lightning import (
    DQN,
    PPO,
    BagOfWordsEncoder,
    Encoder,
    EnvSpec,
    LLMEncoder,
    MLPEncoder,
    QTable,
    RewardModel,
    ScoringPolicy,
    TableEncoder,
    TextActionEncoder,
)
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.export import export_policy, parity, traceable
from rl_lightning.export.folder import space_as_json
from rl_lightning.export.inputs import parts_of
from rl_lightning.export.parity import Parity, relative_error
from rl_lightning.export.run_exported import ExportedPolicy
from rl_lightning.export.samples import sample_masks, sample_part
from rl_lightning.llm.export import save_tokens

VECTOR, TEXT, TWO = OBSERVATIONS["vector"], OBSERVATIONS["text"], gym.spaces.Discrete(2)


# --- parity ------------------------------------------------------------------------------------


def forget_clamp(self, x):
    return (x - self.mean) * self.scale


def forget_mean(self, x):
    return (x * self.scale).clamp(-self.clip, self.clip)


@pytest.mark.parametrize("forward", [forget_clamp, forget_mean])
def test_forgotten_preprocessing_is_noticed_and_nothing_is_left(forward, tmp_path, monkeypatch):
    agent = made("vector")
    monkeypatch.setattr(traceable.FixedNorm, "forward", forward)
    with pytest.raises(RunError, match=r"does not act as the agent does.* it was removed"):
        export_policy(agent, tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


def test_a_wrong_action_is_noticed(tmp_path, monkeypatch):
    """Also where the scores are right."""
    agent = opinionated(DQN(EnvSpec(VECTOR, TWO)))
    act = DQN.act

    def flipped(self, *args, **kwargs):
        return {"action": 1 - act(self, *args, **kwargs)["action"]}

    monkeypatch.setattr(DQN, "act", flipped)
    with pytest.raises(RunError, match="and 128 greedy actions differ"):
        export_policy(agent, tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


def test_parity_is_refused_beyond_its_tolerance():
    Parity(64, 0.9e-4, 0.98, 0).check("onnx")
    for wrong in (Parity(64, 1.1e-4, 1.0, 0), Parity(64, 0.0, 0.98, 1), Parity(64, np.nan, 1.0, 0)):
        with pytest.raises(RunError, match="the exported onnx file does not act"):
            wrong.check("onnx")


def test_relative_error_by_hand():
    wanted = np.array([[1.0, -4.0], [0.0, 2.0]])
    assert relative_error(wanted, wanted) == 0.0
    found = wanted + np.array([[0.0, 0.4], [0.0, 0.0]])
    assert relative_error(found, wanted) == pytest.approx(0.1)  # of a row's largest, 4
    found = wanted + np.array([[0.0, 0.0], [0.3, 0.0]])
    assert relative_error(found, wanted) == pytest.approx(0.1)  # of the median of 4 and 2
    assert relative_error(found[:, :1], wanted) == np.inf
    assert relative_error(np.full_like(wanted, np.nan), wanted) == np.inf
    lowest = np.finfo(np.float32).min
    masked = np.array([[1.0, lowest], [2.0, 1.0]])
    assert relative_error(masked, masked) == 0.0
    assert relative_error(np.array([[1.0, 0.0], [2.0, 1.0]]), masked) == np.inf


def test_a_gap_below_the_tolerance_excuses_an_action():
    scores = {"q_values": np.array([[1.0, 1.00001, 0.0], [1.0, 2.0, 0.0]])}
    wanted = np.array([1, 1])
    same, wrong = parity.compare_actions(np.array([0, 1]), wanted, scores)
    assert (same.tolist(), wrong) == ([False, True], 0)
    assert parity.compare_actions(np.array([1, 0]), wanted, scores)[1] == 1
    bits = {"logits": np.array([[2.0, 1e-7], [2.0, -3.0]])}
    wanted = np.array([[1, 1], [1, 0]])
    assert parity.compare_actions(np.array([[1, 0], [1, 0]]), wanted, bits)[1] == 0
    assert parity.compare_actions(np.array([[1, 1], [1, 1]]), wanted, bits)[1] == 1


def test_samples_are_of_the_space_and_around_what_is_usual():
    rng = np.random.default_rng(0)
    agent = made("vector")
    (part,) = parts_of(agent.encoder, VECTOR)
    values = np.stack(sample_part(part, agent.encoder, 400, rng))
    assert values.dtype == np.float32
    assert (np.abs(values[1::2]) <= 1.0).all()  # of the space
    _, scale = agent.encoder.norm.running.scale()
    usual = (values[::2] - 3.0) * scale.numpy()
    assert (np.abs(usual) < 2.0).mean() > 0.2
    assert (np.abs(usual) > 10.0).mean() > 0.05  # where it clips
    for kind in ("discrete", "small_image", "text"):
        encoder = {"text": BagOfWordsEncoder}.get(kind, MLPEncoder)(
            EnvSpec(OBSERVATIONS[kind], TWO)
        )
        (part,) = parts_of(encoder, OBSERVATIONS[kind])
        for value in sample_part(part, encoder, 50, rng):
            assert OBSERVATIONS[kind].contains(value), value


def test_masks_leave_something_in_every_part():
    masks = sample_masks([2, 3], 100, np.random.default_rng(0))
    assert masks.shape == (100, 5)
    assert masks[::2].all()
    assert masks[:, :2].any(1).all()
    assert masks[:, 2:].any(1).all()
    assert not masks[1::2].all(1).all()


# --- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("split", [True, False])
def test_tokens_without_transformers(kind, split, tmp_path):
    """Also of texts that are too long, empty, or hold control tokens."""
    path = tiny_model(kind, tmp_path / kind, layers=1)
    made = partial(LLMEncoder, max_length=12, truncation_side="left", split_special_tokens=split)
    encoder = made(EnvSpec(TEXT, TWO), model=str(path))
    rules = save_tokens(encoder.backbone.tokens, tmp_path / "tokenizer.json")
    part = {"kind": "tokens", "names": ["ids", "mask"], "tokenizer": rules}
    spec = {"format": "none", "observation": [part], "outputs": [], "file": ""}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    texts = ["go to the red ball", "", "a [SEP] b <|endoftext|> </s> c", "You see a wall " * 9]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl_lightning.export.run_exported._torch", lambda *args: None)
        read = ExportedPolicy(tmp_path)._read(part, texts)
    with pytest.warns(UserWarning, match="was cut to"):
        ids, mask = encoder.backbone.tokens.pad(encoder.backbone.tokens(texts))
    assert np.array_equal(read["ids"], ids)
    assert np.array_equal(read["mask"], mask)
    with pytest.raises(TypeError, match="a text"):
        ExportedPolicy._read(object.__new__(ExportedPolicy), part, [3])


def test_a_tokenizer_in_python_is_refused(tmp_path):
    class Slow:
        is_fast = False

    class Tokens:
        tokenizer = Slow()

    with pytest.raises(ConfigurationError, match=r"Slow is written in Python"):
        save_tokens(Tokens(), tmp_path / "tokenizer.json")


# --- what is refused ---------------------------------------------------------------------------


class InNumPy(Encoder):
    """Somebody's own, by other means than torch's."""

    def __init__(self, spec):
        super().__init__()
        self.out_dim = 2

    def preprocess(self, obs):
        return torch.from_numpy(np.sort(np.asarray(obs), axis=1))

    def forward(self, x):
        return x


class ReadsText(InNumPy):
    def preprocess(self, obs):
        return torch.tensor([[float(len(text)), 0.0] for text in obs])


def scoring(tmp_path):
    llama = tiny_model("llama", tmp_path / "llama", layers=1)
    reader = partial(TextActionEncoder, model=str(llama), actions=["a", "b"])
    return PPO(EnvSpec(TEXT, TWO), reader, ScoringPolicy)


REFUSED = {
    "InNumPy": (
        lambda path: DQN(EnvSpec(VECTOR, TWO), InNumPy),
        r"torch.export cannot trace InNumPy and QNetwork: .*operations on tensors alone",
    ),
    "ReadsText": (
        lambda path: DQN(EnvSpec(TEXT, TWO), ReadsText),
        "ReadsText reads texts in its own way.*--format huggingface",
    ),
    "a list of a table": (
        lambda path: QTable(EnvSpec(TEXT, TWO), TableEncoder),
        "TableEncoder.*texts in its own way",
    ),
    "a large table": (
        lambda path: QTable(
            EnvSpec(gym.spaces.Discrete(9), TWO), partial(TableEncoder, capacity=5)
        ),
        "numbered these observations as they came up.*or train DQN",
    ),
    "scores": (scoring, "ScoringPolicy acts by texts.*--format huggingface"),
    "tokens": (
        lambda path: make("GRPO", str(characters(path / "m"))),
        "GRPO tunes a language model that writes.*--format huggingface",
    ),
    "judges": (lambda path: RewardModel(EnvSpec(VECTOR, TWO)), "RewardModel does not act"),
    "rounded": (
        lambda path: PPO(
            EnvSpec(TEXT, TWO),
            partial(
                LLMEncoder, model=str(tiny_model("bert", path / "b", layers=1)), dtype="bfloat16"
            ),
        ),
        "bfloat16, which onnxruntime does not.*--format torch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_hold_is_refused_by_name(name, tmp_path):
    build, message = REFUSED[name]
    agent = build(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        export_policy(agent, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_wrong_arguments(tmp_path, monkeypatch):
    agent = DQN(EnvSpec(VECTOR, TWO))
    with pytest.raises(ConfigurationError, match="format='tflite': use one of onnx, torch"):
        export_policy(agent, tmp_path / "out", "tflite")
    with pytest.raises(ConfigurationError, match="observations must be at least 64, not 3"):
        export_policy(agent, tmp_path / "out", observations=3)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigurationError, match="there is there already"):
        export_policy(agent, tmp_path / "there", "torch")
    find = importlib.util.find_spec

    def none(name, *rest):
        return None if name == "onnxscript" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", none)
    with pytest.raises(
        ConfigurationError, match=r"onnxscript: pip install 'rl-lightning\[export]'"
    ):
        export_policy(agent, tmp_path / "out")
    export_policy(agent, tmp_path / "out", "torch")  # which needs none of them


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    opened = builtins.open

    def full(file, mode="r", *rest, **more):
        if "w" in mode and str(file).endswith("run_exported.py"):
            raise OSError(28, "No space left on device")
        return opened(file, mode, *rest, **more)

    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(RunError, match=r"out cannot be written: .*No space left"):
        export_policy(DQN(EnvSpec(VECTOR, TWO)), tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


def test_spaces_as_json():
    box = gym.spaces.Box(np.array([0.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64)
    kind = {"kind": "Box", "shape": [2], "dtype": "float64"}
    assert space_as_json(box) == {**kind, "low": [0.0, None], "high": [1.0, None]}
    assert space_as_json(VECTOR)["low"] == -1.0
    nested = space_as_json(gym.spaces.Tuple([TWO, gym.spaces.Dict({"a": TEXT})]))
    assert nested["spaces"][0] == {"kind": "Discrete", "n": 2, "start": 0}
    assert nested["spaces"][1] == {"kind": "Dict", "spaces": {"a": {"kind": "Text"}}}
    json.dumps(nested, allow_nan=False)
