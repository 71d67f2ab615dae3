"""What is written, and what a model says of it afterwards."""

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.llm import Backbone
from rl_lightning.llm.generation import end_tokens, speak, write
from rl_lightning.llm.sampling import Sampling

PROMPTS = [[5, 17, 33, 40, 41, 60], [8], [12, 13, 14, 15]]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("writers")
    return {kind: Backbone(tiny_model(kind, root / kind), head=True) for kind in (*WRITERS, "t5")}


def padded(prompts, pad=3, width=8):
    length = torch.tensor([len(p) for p in prompts])
    return torch.tensor([[*p, *[pad] * (width - len(p))] for p in prompts]), length


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
def test_greedy_is_what_transformers_writes(backbones, kind):
    backbone = backbones[kind]
    out = write(backbone, *padded(PROMPTS), Sampling(6, 0.0))
    for n, prompt in enumerate(PROMPTS):
        theirs = backbone.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )[0]
        own = out.ids[n, : out.length[n]].tolist()
        given = 1 if backbone.encoder_decoder else len(prompt)
        assert own == theirs[given:].tolist()[: len(own)]
        assert len(own) == 6 or own[-1] in end_tokens(backbone)


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_it_says_afterwards_is_what_it_said_when_writing(backbones, kind, temperature):
    backbone = backbones[kind]
    torch.manual_seed(0)
    out = write(backbone, *padded(PROMPTS), Sampling(7, temperature))
    spoken = speak(backbone, *padded(PROMPTS, width=9), out.ids, out.length, temperature)
    torch.testing.assert_close(spoken.log_prob, out.log_prob, rtol=1e-5, atol=2e-5)
    for n, prompt in enumerate(PROMPTS):  # single = batched
        row = padded([prompt], width=len(prompt))
        alone = speak(backbone, *row, out.ids[n : n + 1], out.length[n : n + 1], temperature)
        torch.testing.assert_close(alone.log_prob[0], spoken.log_prob[n], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(alone.hidden[0], spoken.hidden[n], rtol=1e-5, atol=2e-5)
        assert (spoken.entropy[n, : out.length[n]] > 0).all()
        assert (spoken.entropy[n, out.length[n] :] == 0).all()


def test_sampling_follows_the_models_probabilities(backbones):
    backbone = backbones["llama"]
    torch.manual_seed(0)
    prompt, length = padded([PROMPTS[0]] * 4000)
    for temperature in (1.0, 0.5):
        first = write(backbone, prompt, length, Sampling(1, temperature)).ids[:, 0]
        logits = backbone.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
        expected = (logits / temperature).softmax(-1)
        counted = torch.bincount(first, minlength=len(expected)) / len(first)
        assert (counted - expected).abs().max() < 0.03


def test_it_stops_at_a_text_and_at_its_own_end(backbones):
    backbone = backbones["llama"]
    prompt, length = padded(PROMPTS)
    plain = write(backbone, prompt, length, Sampling(6, 0.0))
    decode = backbone.tokens.tokenizer.decode
    second = decode(plain.ids[0, 1:2])
    stopped = write(backbone, prompt, length, Sampling(6, 0.0, stop=[second]))
    assert stopped.length[0] == 1 + (second not in decode(plain.ids[0, :1]))
    assert torch.equal(stopped.ids[0, : stopped.length[0]], plain.ids[0, : stopped.length[0]])
    assert (stopped.log_prob[0, stopped.length[0] :] == 0).all()
    own = int(plain.ids[0, 2])
    backbone.model.generation_config.eos_token_id = [1, own]
    try:
        ended = write(backbone, prompt, length, Sampling(6, 0.0))
        where = plain.ids[0].tolist().index(own)
        assert ended.length[0] == where + 1
    finally:
        backbone.model.generation_config.eos_token_id = 1


def test_gradients_reach_the_model(tmp_path):
    backbone = Backbone(tiny_model("llama", tmp_path), tune="lora", head=True)
    out = write(backbone, *padded(PROMPTS), Sampling(4))
    spoken = speak(backbone, *padded(PROMPTS), out.ids, out.length)
    (spoken.log_prob.sum() + spoken.entropy.sum()).backward()
    grads = [p.grad for p in backbone.parameters() if p.requires_grad]
    assert all(g is not None for g in grads)
    assert sum(float(g.abs().sum()) for g in grads) > 0
