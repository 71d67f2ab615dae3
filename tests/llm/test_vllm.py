"""vLLM's engine has the weights of the update it is asked for: a stand-in of the same interface."""

import copy
import pickle
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from llm_tiny import stirred

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone
from rl_lightning.llm.generation import end_tokens
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.reading import read_completions
from rl_lightning.llm.sampling import Sampling
from rl_lightning.llm.vllm_generator import VLLMGenerator

PROMPTS = [[5, 17, 33, 40, 41, 60], [8], [12, 13, 14, 15]]
MOST = 6


class FakeLLM:
    """Writes as vLLM's `LLM` does, token by token, by a model of the folder's configuration."""

    made: list["FakeLLM"] = []  # noqa: RUF012

    def __init__(self, model, **arguments):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        config = AutoConfig.from_pretrained(model)
        assert config.architectures == ["LlamaForCausalLM"]
        torch.manual_seed(arguments["seed"])  # as vLLM does, in this process
        self.model = AutoModelForCausalLM.from_config(config).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.arguments, self.loaded, self.prefixes = arguments, 0, 0
        FakeLLM.made.append(self)

    def apply_model(self, function):
        return [function(SimpleNamespace(load_weights=self._load))]

    def _load(self, weights):
        self.loaded += 1
        self.prefixes += 1
        self.model.load_state_dict(dict(weights))  # strict: every name, and no other

    def reset_prefix_cache(self):
        self.prefixes = 0
        return True

    @torch.no_grad()
    def generate(self, prompts, sampling_params, use_tqdm=True):
        assert self.prefixes == 0, "keys and values of former weights"
        assert sampling_params.logprobs == 0
        return [
            SimpleNamespace(
                outputs=[
                    self._write(p["prompt_token_ids"], sampling_params)
                    for _ in range(sampling_params.n)
                ]
            )
            for p in prompts
        ]

    def _write(self, prompt, asked):
        tokens, said, reason = [], [], "length"
        for _ in range(asked.max_tokens):
            logits = self.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            log_probs = (logits / (asked.temperature or 1.0)).log_softmax(-1)
            if asked.temperature:
                token = int(torch.multinomial(log_probs.exp(), 1))
            else:
                token = int(logits.argmax())
            tokens.append(token)
            said.append({token: SimpleNamespace(logprob=float(log_probs[token]))})
            text = self.tokenizer.decode(tokens) if asked.detokenize else ""
            if token in asked.stop_token_ids or any(stop in text for stop in asked.stop):
                reason = "stop"
                break
        return SimpleNamespace(token_ids=tokens, logprobs=said, finish_reason=reason)


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM = FakeLLM
    module.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(FakeLLM, "made", [])
    return module


@pytest.fixture
def backbone(writers):
    return stirred(Backbone(writers["llama"], tune="lora", head=True))


def test_it_writes_what_the_model_writes(vllm, backbone):
    sampling = Sampling(MOST, 0.0)
    expected = TransformersGenerator()(backbone, PROMPTS, 2, sampling, 0)
    written = VLLMGenerator()(backbone, PROMPTS, 2, sampling, 0)
    assert torch.equal(written.ids, expected.ids)
    assert torch.equal(written.length, expected.length)
    assert torch.equal(written.ended, expected.ended)
    torch.testing.assert_close(written.log_prob, expected.log_prob, rtol=1e-5, atol=2e-5)
    assert written.log_prob.dtype == torch.float32


def test_its_weights_are_never_one_update_old(vllm, backbone):
    generator, sampling = VLLMGenerator(), Sampling(MOST, 0.0)
    before = generator(backbone, PROMPTS, 1, sampling, 7)
    assert torch.equal(generator(backbone, PROMPTS, 1, sampling, 7).ids, before.ids)
    (llm,) = FakeLLM.made
    assert llm.loaded == 1  # and not handed over for nothing
    stirred(backbone, seed=1)  # an update
    now = generator(backbone, PROMPTS, 1, sampling, 8)
    assert llm.loaded == 2
    expected = TransformersGenerator()(backbone, PROMPTS, 1, sampling, 8)
    assert torch.equal(now.ids, expected.ids)
    torch.testing.assert_close(now.log_prob, expected.log_prob, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(now.log_prob, before.log_prob, atol=1e-2)
    generator(copy.deepcopy(backbone), PROMPTS, 1, sampling, 8)
    assert llm.loaded == 3  # another model's version 8
    assert len(FakeLLM.made) == 1


def test_what_failed_to_be_handed_over_is_handed_over_again(vllm, backbone, monkeypatch):
    generator, sampling = VLLMGenerator(), Sampling(MOST, 0.0)
    generator(backbone, PROMPTS, 1, sampling, 0)
    (llm,) = FakeLLM.made

    def fail():
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(llm, "reset_prefix_cache", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            generator(backbone, PROMPTS, 1, sampling, 1)
    generator(backbone, PROMPTS, 1, sampling, 1)
    assert llm.loaded == 3


def test_the_adapters_stay_as_they_are(vllm, backbone):
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    VLLMGenerator()(backbone, PROMPTS, 1, Sampling(1), 0)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_samples_at_a_temperature_read_the_same(vllm, backbone):
    written = VLLMGenerator()(backbone, PROMPTS, 3, Sampling(MOST, 0.7), 0)
    prompt, mask = backbone.tokens.pad(PROMPTS)
    ids, length = written.ids.view(3, 3, MOST), written.length.view(3, 3)
    own = torch.ones_like(ids, dtype=torch.bool)
    heat = torch.full((3,), 0.7)
    read = read_completions(backbone, prompt, mask.sum(1), ids, length, own, heat)
    torch.testing.assert_close(read.log_prob.view(-1, MOST), written.log_prob, rtol=1e-5, atol=2e-5)


def test_it_stops_where_it_is_told_to(vllm, backbone):
    whole = TransformersGenerator()(backbone, PROMPTS, 1, Sampling(MOST, 0.0), 0)
    stop = backbone.tokens.tokenizer.decode(whole.ids[0, 1:2])
    sampling = Sampling(MOST, 0.0, stop=[stop])
    written = VLLMGenerator()(backbone, PROMPTS, 1, sampling, 0)
    assert torch.equal(
        written.length, TransformersGenerator()(backbone, PROMPTS, 1, sampling, 0).length
    )
    assert written.ended[0]
    assert end_tokens(backbone) == [1]


def test_its_knobs_reach_the_engine(vllm, backbone):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    made = VLLMGenerator(0.5, 99, "bfloat16", {"enforce_eager": True, "seed": 4})
    made(backbone, PROMPTS, 1, Sampling(1, 0.0), 0)
    assert torch.equal(torch.rand(1), expected)  # making an engine draws nothing of ours
    given = FakeLLM.made[0].arguments
    assert given["gpu_memory_utilization"] == 0.5
    assert given["max_model_len"] == 99
    assert given["dtype"] == "bfloat16"
    assert given["enforce_eager"] is True
    assert given["seed"] == 4
    assert given["logprobs_mode"] == "processed_logprobs"
    again = pickle.loads(pickle.dumps(made))
    again(backbone, PROMPTS, 1, Sampling(1, 0.0), 0)
    assert len(FakeLLM.made) == 2  # an engine is not copied
    VLLMGenerator()(backbone, PROMPTS, 1, Sampling(1, 0.0), 0)
    assert FakeLLM.made[2].arguments["max_model_len"] == 256
    assert FakeLLM.made[2].arguments["dtype"] == "float32"


def test_what_it_cannot_do(vllm, backbone, writers):
    for sampling in (Sampling(MOST, top_k=5), Sampling(MOST, top_p=0.9)):
        with pytest.raises(ConfigurationError, match="not of the whole softmax"):
            VLLMGenerator()(backbone, PROMPTS, 1, sampling, 0)
    VLLMGenerator()(backbone, PROMPTS, 1, Sampling(1, 0.0, top_k=5), 0)
    with pytest.raises(ConfigurationError, match="prompt 0 has no tokens"):
        VLLMGenerator()(backbone, [[]], 1, Sampling(1), 0)
    with pytest.raises(ConfigurationError, match="does not write by a t5"):
        VLLMGenerator()(Backbone(writers["t5"], head=True), PROMPTS, 1, Sampling(1), 0)
    with pytest.raises(ConfigurationError, match="gpu_memory_utilization must be"):
        VLLMGenerator(1.5)

    def broken(**arguments):
        raise ValueError("no such architecture")

    vllm.LLM = broken
    with pytest.raises(ConfigurationError, match=r"makes no engine of this llama \(no such"):
        VLLMGenerator()(backbone, PROMPTS, 1, Sampling(1), 0)


def test_without_vllm_it_says_so(backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigurationError, match=r"pip install .rl-lightning\[vllm\]"):
        VLLMGenerator()(backbone, PROMPTS, 1, Sampling(1), 0)


@pytest.mark.gpu
def test_the_real_one_has_the_weights_of_each_update(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from llm_tiny import tiny_model

    # Heads of 64 and more: smaller ones its attention kernels do not know.
    folder = tiny_model("llama", tmp_path, hidden=256)
    backbone = stirred(Backbone(folder, tune="lora", head=True).cuda())
    generator = VLLMGenerator(0.2, engine={"enforce_eager": True})
    for version in range(3):
        stirred(backbone, seed=version)
        for temperature in (0.0, 0.7):
            written = generator(backbone, PROMPTS, 4, Sampling(MOST, temperature), version)
            prompt, mask = backbone.tokens.pad(PROMPTS)
            with torch.no_grad():
                read = read_completions(
                    backbone,
                    prompt.cuda(),
                    mask.sum(1).cuda(),
                    written.ids.view(3, 4, MOST),
                    written.length.view(3, 4),
                    torch.ones(3, 4, MOST, dtype=torch.bool, device="cuda"),
                    torch.full((3,), temperature, device="cuda"),
                )
            difference = (read.log_prob.view(-1, MOST) - written.log_prob).abs()
            assert float(difference.max()) < 0.02
