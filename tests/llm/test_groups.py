"""Groups of completions are written as each would be alone, and read as they were written."""

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone
from rl_lightning.llm.chunks import like_lengths
from rl_lightning.llm.generation import end_tokens, write
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.reading import read_completions
from rl_lightning.llm.sampling import Sampling

PROMPTS = [[5, 17, 33, 40, 41, 60], [8], [12, 13, 14, 15], [*range(20, 38)], [9, 9]]
GROUP, MOST = 4, 8


def batch_of(backbone, written, temperature=1.0):
    prompt, mask = backbone.tokens.pad(PROMPTS)
    shape = (len(PROMPTS), GROUP)
    own = torch.ones(*shape, MOST, dtype=torch.bool)
    temperature = torch.full((len(PROMPTS),), temperature)
    return (
        prompt,
        mask.sum(1),
        written.ids.view(*shape, MOST),
        written.length.view(shape),
        own,
        temperature,
    )


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_was_written_reads_the_same(adapted, kind, temperature):
    torch.manual_seed(0)
    backbone = adapted[kind]
    sampling = Sampling(MOST, temperature)
    written = TransformersGenerator(batch_size=9)(backbone, PROMPTS, GROUP, sampling, 0)
    assert written.ids.shape == written.log_prob.shape == (len(PROMPTS) * GROUP, MOST)
    read = read_completions(backbone, *batch_of(backbone, written, temperature))
    torch.testing.assert_close(read.log_prob.view(-1, MOST), written.log_prob, rtol=1e-5, atol=2e-5)
    there = torch.arange(MOST) < written.length[:, None]
    assert (written.log_prob[~there] == 0).all()
    assert (written.log_prob[there] < 0).all()


def test_a_window_looks_back_as_far_behind_a_short_prompt(tmp_path):
    """Texts of a batch are padded, and the window goes by a text's own tokens."""
    backbone = Backbone(tiny_model("gemma2", tmp_path, window=6), head=True)
    torch.manual_seed(0)
    written = TransformersGenerator()(backbone, PROMPTS, GROUP, Sampling(MOST), 0)
    read = read_completions(backbone, *batch_of(backbone, written), method="rows")
    torch.testing.assert_close(read.log_prob.view(-1, MOST), written.log_prob, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", [*WRITERS, "t5", "mamba"])
def test_greedy_is_each_prompt_alone(adapted, kind):
    backbone = adapted[kind]
    sampling = Sampling(MOST, 0.0)
    for size in (1, 5, 256):
        generator = TransformersGenerator(batch_size=size)
        together = generator(backbone, PROMPTS, 2, sampling, 0)
        for n, prompt in enumerate(PROMPTS):
            alone = write(backbone, torch.tensor([prompt]), torch.tensor([len(prompt)]), sampling)
            for row in (2 * n, 2 * n + 1):
                assert torch.equal(together.ids[row], alone.ids[0])
                assert together.length[row] == alone.length[0]
                torch.testing.assert_close(
                    together.log_prob[row], alone.log_prob[0], rtol=1e-4, atol=1e-3
                )


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
def test_over_a_cache_it_writes_what_it_writes_without(adapted, kind, monkeypatch):
    backbone = adapted[kind]
    sampling = Sampling(MOST, 0.0)
    with_cache = TransformersGenerator()(backbone, PROMPTS, 1, sampling, 0)
    logits = Backbone.logits
    monkeypatch.setattr(
        Backbone, "logits", lambda self, *args, **kw: logits(self, *args, **kw)._replace(cache=None)
    )
    without = TransformersGenerator()(backbone, PROMPTS, 1, sampling, 0)
    assert torch.equal(with_cache.ids, without.ids)
    torch.testing.assert_close(with_cache.log_prob, without.log_prob, rtol=1e-5, atol=2e-5)


def test_a_prompt_is_read_once_for_its_group(adapted, monkeypatch):
    backbone, read = adapted["llama"], []
    logits = Backbone.logits

    def note(self, select, **inputs):
        read.append(inputs["input_ids"].shape)
        return logits(self, select, **inputs)

    monkeypatch.setattr(Backbone, "logits", note)
    monkeypatch.setattr("rl_lightning.llm.generation.end_tokens", lambda backbone: [])
    TransformersGenerator(batch_size=8)(backbone, [[5] * 6] * 4, 4, Sampling(3), 0)
    assert read == [(2, 6), (8, 1), (8, 1)] * 2  # and no more than batch_size at a time
    read.clear()
    TransformersGenerator(batch_size=3)(backbone, [[5] * 6], 4, Sampling(2), 0)
    assert read == [(1, 6), (3, 1), (1, 6), (1, 1)]
    read.clear()
    ragged = [[5] * n for n in (40, 2, 41, 3, 2, 3, 40, 2, 3)]
    TransformersGenerator(batch_size=256)(backbone, ragged, 8, Sampling(1), 0)
    assert [shape[1] for shape in read] == [2, 3, 41]  # like lengths together
    assert [len(c) for c in like_lengths([len(p) for p in ragged], 32, fewest=1)] == [3, 3, 3]


def test_what_has_ended_leaves_the_batch(adapted, monkeypatch):
    backbone, rows = adapted["llama"], []
    logits = Backbone.logits

    def note(self, select, **inputs):
        rows.append(len(inputs["input_ids"]))
        return logits(self, select, **inputs)

    prompt, mask = backbone.tokens.pad(PROMPTS)
    whole = write(backbone, prompt, mask.sum(1), Sampling(MOST, 0.0))
    ends = whole.ids[[0, 1, 3], 2].tolist()  # three of five end here at the latest
    monkeypatch.setattr("rl_lightning.llm.generation.end_tokens", lambda backbone: ends)
    monkeypatch.setattr(Backbone, "logits", note)
    written = write(backbone, prompt, mask.sum(1), Sampling(MOST, 0.0))
    assert rows[0] == 5
    assert rows[-1] <= 2
    for n in range(len(PROMPTS)):
        text = whole.ids[n].tolist()
        stop = next((t for t, token in enumerate(text) if token in ends), MOST - 1) + 1
        assert written.length[n] == stop
        assert written.ids[n, :stop].tolist() == text[:stop]
        assert (written.ids[n, stop:] == backbone.tokens.pad_id).all()
        torch.testing.assert_close(written.log_prob[n, :stop], whole.log_prob[n, :stop])
        assert bool(written.ended[n]) == (text[stop - 1] in ends)


def test_a_completion_may_be_its_end_alone(adapted, monkeypatch):
    backbone = adapted["llama"]
    first = write(backbone, torch.tensor([[8]]), torch.tensor([1]), Sampling(1, 0.0)).ids[0, 0]
    monkeypatch.setattr("rl_lightning.llm.generation.end_tokens", lambda backbone: [int(first)])
    written = TransformersGenerator()(backbone, [[8]], 2, Sampling(5, 0.0), 0)
    assert written.ids[:, 0].tolist() == [first, first]
    assert written.length.tolist() == [1, 1]
    assert written.ended.tolist() == [True, True]


def test_a_tokenizer_without_an_end_or_padding(tmp_path):
    from transformers import AutoTokenizer

    folder = tiny_model("gpt2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    backbone = Backbone(folder, head=True)
    backbone.model.config.eos_token_id = backbone.model.generation_config.eos_token_id = None
    assert end_tokens(backbone) == []
    written = TransformersGenerator()(backbone, PROMPTS, 2, Sampling(MOST), 0)
    assert (written.length == MOST).all()
    assert not written.ended.any()
    text = backbone.tokens.tokenizer.decode(written.ids[0, 1:2])
    again = Sampling(MOST, 0.0, stop=[text])
    assert TransformersGenerator()(backbone, PROMPTS, 1, again, 0).length.max() <= MOST


def test_the_same_random_numbers_write_the_same(adapted):
    out = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        out.append(TransformersGenerator()(adapted["llama"], PROMPTS, GROUP, Sampling(MOST), 0).ids)
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    assert len({tuple(row) for row in out[0][:GROUP].tolist()}) > 1  # samples of a group differ


def test_writing_in_training_mode_is_the_same(writers):
    """Layers that recompute themselves keep no keys and values while they train."""
    backbone = Backbone(writers["llama"], tune="lora", head=True, gradient_checkpointing=True)
    args = (PROMPTS, 2, Sampling(MOST, 0.0), 0)
    expected = TransformersGenerator()(backbone.eval(), *args)
    assert torch.equal(TransformersGenerator()(backbone.train(), *args).ids, expected.ids)
    assert backbone.training


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts"),
        ([[5], []], "prompt 1 has no tokens"),
        ([[5] * 250], "250 tokens and max_new_tokens=8 are more than the 256 tokens"),
    ],
)
def test_prompts_that_cannot_be_gone_on_from(adapted, prompts, message):
    with pytest.raises(ConfigurationError, match=message):
        TransformersGenerator()(adapted["gpt2"], prompts, 2, Sampling(MOST), 0)


def test_temperature_and_what_is_cut_off_in_log_probabilities(adapted):
    backbone = adapted["llama"]
    prompt, length = torch.tensor([PROMPTS[0]]), torch.tensor([len(PROMPTS[0])])
    logits = backbone.model(input_ids=prompt).logits[0, -1].detach()
    for temperature in (1.0, 0.5):
        expected = (logits / temperature).log_softmax(-1)
        for knobs in ({}, {"top_k": 3}, {"top_p": 0.4}):
            sampling = Sampling(1, temperature, **knobs)
            written = write(backbone, prompt, length, sampling, 20)
            own = expected[written.ids[:, 0]]
            torch.testing.assert_close(written.log_prob[:, 0], own, rtol=1e-5, atol=1e-5)
            if "top_k" in knobs:
                assert set(written.ids[:, 0].tolist()) <= set(expected.topk(3).indices.tolist())
