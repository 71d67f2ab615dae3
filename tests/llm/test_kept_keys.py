"""Conversations that are gone on with, from keys and values of before: the same, but faster."""

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generators import TransformersGenerator, remembering
from rl_lightning.llm.sampling import Sampling


@pytest.fixture(scope="module", params=[*WRITERS, "mamba"])
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return Backbone(tiny_model(request.param, folder), tune="full", head=True, max_length=16)


def talk(backbone, generator, samples=2, turns=3, temperature=0.0, batch=64, longest=5):
    """All that is written in a few turns, in which rows of very different lengths are answered."""
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15], [5]]
    generator.batch_size = batch
    found = []
    for turn in range(turns):
        made = generator(
            backbone, prompts, samples if turn == 0 else 1, Sampling(4, temperature), 0
        )
        if turn == 0:
            prompts = [ids for ids in prompts for _ in range(samples)]
        found.append(made)
        rows = zip(prompts, made.ids.tolist(), made.length.tolist(), strict=True)
        prompts = [
            [*before, *ids[:length], *range(20, 21 + (7 * n + turn) % longest)]
            for n, (before, ids, length) in enumerate(rows)
        ]
        if turn == 0:
            prompts = prompts[1:]  # one has ended
    return found


@pytest.mark.parametrize(("batch", "longest"), [(64, 5), (3, 5), (64, 29)])
def test_what_is_remembered_is_what_would_be_read(backbone, batch, longest):
    plain = talk(backbone, TransformersGenerator(), batch=batch, longest=longest)
    generator = TransformersGenerator()
    with remembering(generator):
        known = talk(backbone, generator, batch=batch, longest=longest)
    for one, other in zip(plain, known, strict=True):
        assert one.ids.equal(other.ids)
        assert one.length.equal(other.length)
        torch.testing.assert_close(one.log_prob, other.log_prob, rtol=1e-4, atol=1e-5)
    assert generator.memory is None


def test_little_is_read_again(backbone, monkeypatch):
    if getattr(backbone.model.config, "model_type", "") in ("mamba", "gemma2"):
        pytest.skip("keeps no keys and values of all tokens, and reads everything again")
    read = []
    own = Backbone.logits

    def count(self, select, **inputs):
        read.append(inputs["input_ids"].shape[1])
        return own(self, select, **inputs)

    monkeypatch.setattr(Backbone, "logits", count)
    generator = TransformersGenerator()
    with remembering(generator):
        talk(backbone, generator)
    assert max(read) <= 10  # a first prompt, or what was written last and its answer
    read.clear()
    talk(backbone, TransformersGenerator())
    assert max(read) >= 18
