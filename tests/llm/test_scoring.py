"""log p of candidates: packed in a row, over a shared cache, in pairs, and one by one, the same."""

import random

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone
from rl_lightning.llm.logits import read_logits
from rl_lightning.llm.rows import make_rows
from rl_lightning.llm.scoring import choose_method, score

RNG = random.Random(3)


def tokens(count):
    return [RNG.randrange(10, 200) for _ in range(count)]


# Ragged in all that can be: prompts, numbers of candidates, their lengths; one row without any.
PROMPTS = [tokens(9), tokens(2), tokens(14), tokens(1), tokens(6)]
CANDIDATES = [
    [tokens(3), tokens(1), tokens(2)],
    [tokens(1)],
    [tokens(2), tokens(5), tokens(1), tokens(1)],
    [tokens(4), tokens(4)],
    [],
]
MOST = 5
METHODS = ("packed", "cached", "pairs")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("writers")
    return {kind: tiny_model(kind, root / kind) for kind in (*WRITERS, "t5", "mamba", "bert")}


def rows(pad_id=0, width=None, which=range(5)):
    return make_rows([PROMPTS[i] for i in which], [CANDIDATES[i] for i in which], pad_id, width)


def one_by_one(backbone, prompt, candidate):
    """log p of a candidate by the model's own forward pass over the whole text."""
    ids = torch.tensor([[*prompt, *candidate]])
    if backbone.encoder_decoder:
        start = backbone.model.config.decoder_start_token_id
        given = torch.tensor([[start, *candidate[:-1]]])
        logits = backbone.model(input_ids=torch.tensor([prompt]), decoder_input_ids=given).logits[0]
        logits = logits.log_softmax(-1)
    else:
        logits = backbone.model(input_ids=ids).logits[0].log_softmax(-1)[len(prompt) - 1 :]
    return sum(logits[i, token] for i, token in enumerate(candidate))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
def test_every_way_scores_what_the_model_says_of_each_text_alone(models, kind, method):
    backbone = Backbone(models[kind], head=True)
    with torch.no_grad():
        found = score(backbone, rows(), MOST, method)
        for n, (prompt, candidates) in enumerate(zip(PROMPTS, CANDIDATES, strict=True)):
            for k, candidate in enumerate(candidates):
                expected = one_by_one(backbone, prompt, candidate)
                assert abs(found.log_prob[n, k] - expected) < 1e-5 * len(candidate) * 10
            assert (found.log_prob[n, len(candidates) :] == 0).all()


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
def test_hidden_states_are_those_of_the_prompts_tokens(models, kind):
    """The last one, or the mean of all: candidates and padding have no part in it."""
    backbone = Backbone(models[kind], head=True)
    with torch.no_grad():
        for method in METHODS[: 3 if kind != "t5" else 1]:
            last, mean = (
                score(backbone, rows(which=range(4)), MOST, method, pooling).hidden
                for pooling in ("last", "mean")
            )
            for n in range(4):
                if kind == "t5":
                    ids = torch.tensor([PROMPTS[n]])
                    states = backbone.model.get_encoder()(input_ids=ids).last_hidden_state[0]
                else:
                    everywhere = torch.ones(1, len(PROMPTS[n]), dtype=torch.bool)
                    states = read_logits(
                        backbone.model, everywhere, input_ids=torch.tensor([PROMPTS[n]])
                    ).hidden[0]
                torch.testing.assert_close(last[n], states[-1], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(mean[n], states.mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
def test_every_way_has_the_same_gradient(models, kind, tune):
    backbone = Backbone(models[kind], tune=tune, head=True)
    with torch.no_grad():  # a fresh adapter's second half is 0, and with it its gradient
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(-1, 1, 5 * MOST).view(5, MOST)
    gradients = []
    for method in METHODS:
        backbone.zero_grad()
        out = score(backbone, rows(), MOST, method)
        ((out.log_prob * weights).sum() + out.hidden[:4].sin().sum()).backward()
        own = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
        gradients.append(torch.cat(own))
    for gradient in gradients[:2]:
        off = (gradient - gradients[2]).norm() / gradients[2].norm()
        assert off < 1e-5


@pytest.mark.parametrize("kind", [*WRITERS, "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_neither_other_rows_nor_padding_change_a_score(models, kind, method):
    backbone = Backbone(models[kind], head=True)
    with torch.no_grad():
        together = score(backbone, rows(), MOST, method).log_prob
        wide = score(backbone, rows(pad_id=7, width=60), MOST, method).log_prob
        torch.testing.assert_close(wide, together, rtol=1e-5, atol=1e-5)
        for n in range(4):
            alone = score(backbone, rows(which=[n]), MOST, method).log_prob
            torch.testing.assert_close(alone, together[n : n + 1], rtol=1e-5, atol=2e-5)


def test_candidates_do_not_see_each_other(models):
    backbone = Backbone(models["llama"], head=True)
    own = [tokens(2), tokens(3)]
    with torch.no_grad():
        both = score(backbone, make_rows([PROMPTS[0]], [own], 0), 2, "packed").log_prob
        swapped = score(backbone, make_rows([PROMPTS[0]], [own[::-1]], 0), 2, "packed").log_prob
    torch.testing.assert_close(both, swapped.flip(1), rtol=1e-6, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(models):
    plain = Backbone(models["llama"], tune="full", head=True).train()
    saved = Backbone(models["llama"], tune="full", head=True, gradient_checkpointing=True).train()
    grads = []
    for backbone in (plain, saved):
        out = score(backbone, rows(), MOST, "packed").log_prob
        out.sum().backward()
        grads.append((out.detach(), [p.grad for p in backbone.parameters()]))
    assert torch.equal(grads[0][0], grads[1][0])
    for a, b in zip(grads[0][1], grads[1][1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", WRITERS)
def test_families_that_can_are_packed(models, kind, recwarn):
    assert choose_method(Backbone(models[kind], head=True), "auto", 64) == "packed"
    assert not [w for w in recwarn if "candidates" in str(w.message)]


def test_a_model_without_attention_is_read_in_pairs_and_says_so(models):
    backbone = Backbone(models["mamba"], head=True)
    with pytest.warns(UserWarning, match="this mamba cannot read several candidates"):
        assert choose_method(backbone, "auto", 64) == "pairs"
    with torch.no_grad():
        found = score(backbone, rows(), MOST, "pairs").log_prob
        for n, (prompt, candidates) in enumerate(zip(PROMPTS, CANDIDATES, strict=True)):
            for k, candidate in enumerate(candidates):
                assert abs(found[n, k] - one_by_one(backbone, prompt, candidate)) < 1e-4


def test_a_window_is_found_by_a_prompt_beyond_it(tmp_path):
    backbone = Backbone(tiny_model("gemma2", tmp_path, window=6), head=True)
    # Within the window there is nothing to find; what a longer prompt scores is not to be trusted.
    assert choose_method(backbone, "auto", 6) == "packed"
    assert choose_method(backbone, "auto", 64) != "packed"
    with pytest.raises(ConfigurationError, match="method='packed': this gemma2 does not score"):
        choose_method(backbone, "packed", 64)


def test_a_method_that_is_asked_for_must_work(models):
    backbone = Backbone(models["mamba"], head=True)
    with pytest.raises(ConfigurationError, match="method='packed': this mamba"):
        choose_method(backbone, "packed", 64)
    with pytest.raises(ConfigurationError, match="method='fast': use one of"):
        choose_method(backbone, "fast", 64)
    assert choose_method(backbone, "pairs", 64) == "pairs"


def test_a_model_that_only_reads_is_refused(models, tmp_path):
    with pytest.raises(ConfigurationError, match=r"is a bert.* sees the tokens that"):
        Backbone(models["bert"], head=True)


def test_bfloat16_sums_in_float32(models):
    backbone = Backbone(models["llama"], head=True, dtype="bfloat16")
    assert choose_method(backbone, "auto", 64) == "packed"
    with torch.no_grad():
        found = score(backbone, rows(), MOST, "packed").log_prob
        exact = score(Backbone(models["llama"], head=True), rows(), MOST, "packed").log_prob
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.5)
