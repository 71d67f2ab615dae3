"""How groups of completions are written: prompts once, over keys and values, by whom is left."""

import copy

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.llm import Backbone
from rl_lightning.llm.chunks import like_lengths
from rl_lightning.llm.generation import write
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.merging import merged
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


def test_a_window_looks_back_as_far_behind_a_short_prompt(tmp_path):
    """Texts of a batch are padded, and the window goes by a text's own tokens."""
    backbone = Backbone(tiny_model("gemma2", tmp_path, window=6), head=True)
    torch.manual_seed(0)
    written = TransformersGenerator()(backbone, PROMPTS, GROUP, Sampling(MOST), 0)
    read = read_completions(backbone, *batch_of(backbone, written), method="rows")
    torch.testing.assert_close(read.log_prob.view(-1, MOST), written.log_prob, rtol=1e-5, atol=2e-5)


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


def test_who_shares_the_weights_does_not_notice(adapted):
    backbone = adapted["llama"]
    twin = copy.deepcopy(backbone)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        before = twin.model(input_ids=ids).logits
        with merged(backbone):
            assert torch.equal(twin.model(input_ids=ids).logits, before)
