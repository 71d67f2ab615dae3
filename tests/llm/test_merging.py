"""Adapters in the weights for a while."""

import copy

import pytest
import torch
from llm_tiny import WRITERS

from rl_lightning.llm import Backbone
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.merging import merged
from rl_lightning.llm.sampling import Sampling

PROMPTS = [[5, 17, 33, 40, 41, 60], [8], [12, 13, 14, 15], [*range(20, 38)], [9, 9]]
MOST = 8


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
def test_merged_is_unmerged_and_the_weights_come_back(adapted, kind):
    backbone = adapted[kind]
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    kept = {id(p) for p in backbone.parameters()}
    ids = torch.tensor([PROMPTS[0]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if kind == "t5" else {})}
    with torch.no_grad():
        plain = backbone.model(**inputs).logits
        with merged(backbone):
            one = backbone.model(**inputs).logits
        with backbone.model.disable_adapter():
            base = backbone.model(**inputs).logits
    torch.testing.assert_close(one, plain, rtol=1e-5, atol=1e-4)
    assert (base - plain).abs().max() > 0.1
    after = backbone.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {id(p) for p in backbone.parameters()} == kept
    read = backbone.model(**inputs).logits
    assert torch.equal(read, plain)
    assert read.requires_grad


def test_the_weights_come_back_from_an_error_too(adapted):
    backbone = adapted["llama"]
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="broken"), merged(backbone):
        raise RuntimeError("broken")
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_who_shares_the_weights_does_not_notice(adapted):
    backbone = adapted["llama"]
    twin = copy.deepcopy(backbone)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        before = twin.model(input_ids=ids).logits
        with merged(backbone):
            assert torch.equal(twin.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_without_adapters_nothing_is_merged(writers, tune):
    backbone = Backbone(writers["llama"], tune=tune, head=True)
    weights = list(backbone.parameters())
    with merged(backbone):
        assert all(a is b for a, b in zip(backbone.parameters(), weights, strict=True))


def test_it_writes_with_merged_weights_where_it_is_told_to(adapted, monkeypatch):
    backbone, seen = adapted["llama"], []
    layer = next(m for m in backbone.model.modules() if hasattr(m, "merged_adapters"))
    logits = Backbone.logits

    def note(self, *args, **kwargs):
        seen.append(bool(layer.merged_adapters))
        return logits(self, *args, **kwargs)

    monkeypatch.setattr(Backbone, "logits", note)
    out = []
    for merge in (True, False):
        seen.clear()
        generator = TransformersGenerator(merge_lora=merge)
        out.append(generator(backbone, PROMPTS, 1, Sampling(MOST, 0.0), 0))
        assert set(seen) == {merge}
    assert torch.equal(out[0].ids, out[1].ids)
    torch.testing.assert_close(out[0].log_prob, out[1].log_prob, rtol=1e-5, atol=1e-5)
