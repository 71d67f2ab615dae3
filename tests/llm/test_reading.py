"""What a model says of groups of completions: packed, over a cache, in rows, the same."""

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone
from rl_lightning.llm.reading import _choose, read_completions

PROMPTS = [[5, 17, 33, 40, 41, 60], [8], [12, 13, 14, 15], [*range(20, 38)], [9, 9]]
GROUP, MOST = 4, 8
METHODS = ("rows", "packed", "cached")


@pytest.fixture
def ragged(adapted):
    """A batch for `read_completions` with groups ragged in all that can be."""
    torch.manual_seed(5)
    prompt, mask = adapted["llama"].tokens.pad(PROMPTS)
    length = torch.randint(1, MOST + 1, (len(PROMPTS), GROUP))
    length[0, 0], length[1, 1] = MOST, 1
    ids = torch.randint(10, 200, (len(PROMPTS), GROUP, MOST))
    own = torch.rand(ids.shape) < 0.7
    own[:, :, 0] = True
    temperature = torch.tensor([1.0, 0.7, 0.0, 1.3, 1.0])
    return [prompt, mask.sum(1), ids, length, own, temperature]


def by_hand(backbone, batch):
    """Log-probabilities and entropies, each text by the model's own forward pass."""
    prompt, prompt_length, ids, length, own, temperature = batch
    said, entropy = torch.zeros(ids.shape), torch.zeros(ids.shape)
    for p in range(len(prompt)):
        first = prompt[p, : prompt_length[p]]
        for g in range(ids.shape[1]):
            text = torch.cat([first, ids[p, g, : length[p, g]]])[None]
            logits = backbone.model(input_ids=text).logits[0, len(first) - 1 : -1]
            log_probs = (logits / (float(temperature[p]) or 1.0)).log_softmax(-1)
            for t in range(int(length[p, g])):
                if own[p, g, t]:
                    said[p, g, t] = log_probs[t, ids[p, g, t]]
                    entropy[p, g, t] = -(log_probs[t].exp() * log_probs[t]).sum()
    return said, entropy


def gradients(backbone, loss):
    backbone.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.requires_grad])


def same_gradient(found, expected):
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_way_reads_what_the_model_says_of_each_text_alone(adapted, ragged, kind, method):
    with torch.no_grad():
        expected = by_hand(adapted[kind], ragged)
        read = read_completions(adapted[kind], *ragged, method=method)
    torch.testing.assert_close(read.log_prob, expected[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(read.entropy, expected[1], rtol=1e-5, atol=2e-5)
    assert read.hidden is None
    assert read.log_prob.dtype == read.entropy.dtype == torch.float32


@pytest.mark.parametrize("kind", WRITERS)
def test_every_way_has_the_same_gradients(adapted, ragged, kind):
    backbone = adapted[kind]
    weights = torch.randn(ragged[2].shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for method in METHODS:
        read = read_completions(backbone, *ragged, method=method, entropy_grad=True)
        loss = (weights * read.log_prob + 0.1 * read.entropy).sum()
        found[method] = gradients(backbone, loss)
    same_gradient(found["packed"], found["rows"])
    same_gradient(found["cached"], found["rows"])
    assert float(found["rows"].norm()) > 1.0


def test_an_encoder_decoder_encodes_each_prompt_once(adapted, ragged):
    backbone = adapted["t5"]
    prompt, _, ids, length, own, temperature = ragged
    encoder = backbone.model.get_encoder()
    seen = []
    hook = encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    read = read_completions(backbone, *ragged, hidden=True)
    hook.remove()
    assert seen == [len(PROMPTS)]
    p, g = 3, 2
    given = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids[p, g : g + 1, :-1]], 1)
    logits = backbone.model(input_ids=prompt[p : p + 1], decoder_input_ids=given).logits[0]
    logits = logits / float(temperature[p])
    expected = logits.log_softmax(-1).gather(1, ids[p, g, :, None])[:, 0]
    chosen = own[p, g] & (torch.arange(MOST) < length[p, g])
    torch.testing.assert_close(read.log_prob[p, g][chosen], expected[chosen], rtol=1e-5, atol=2e-5)
    assert gradients(backbone, read.log_prob.sum()).norm() > 0


def test_there_are_never_more_logits_than_a_chunk(adapted, ragged):
    backbone, seen = adapted["llama"], []

    def note(module, args, out):
        seen.append(out.shape[-2])

    hook = backbone.model.get_output_embeddings().register_forward_hook(note)
    read = read_completions(backbone, *ragged, method="packed", chunk=9)
    forward = len(seen)
    read.log_prob.sum().backward()
    hook.remove()
    chosen = int((read.log_prob != 0).sum())
    assert max(seen) == 9
    assert sum(seen[:forward]) == chosen
    assert sum(seen[forward:]) == chosen  # made again, not kept


@pytest.mark.parametrize("method", METHODS)
def test_a_groups_reading_depends_on_no_other_group(adapted, ragged, method):
    backbone = adapted["qwen3"]
    together = read_completions(backbone, *ragged, method=method, hidden=True)
    for p in range(len(PROMPTS)):
        alone = read_completions(backbone, *(v[p : p + 1] for v in ragged), hidden=True)
        torch.testing.assert_close(together.log_prob[p], alone.log_prob[0], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(together.hidden[p], alone.hidden[0], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(together.start[p], alone.start[0], rtol=1e-4, atol=2e-5)


def test_recomputing_layers_keep_nothing_to_share(writers, ragged):
    backbone = Backbone(writers["llama"], tune="lora", head=True, gradient_checkpointing=True)
    read_completions(backbone.eval(), *ragged, method="cached")  # as they keep it now
    with pytest.raises(ConfigurationError, match="recompute themselves"):
        read_completions(backbone.train(), *ragged, method="cached")


def test_what_a_model_cannot_do_is_not_done(writers, tmp_path, ragged):
    windowed = Backbone(tiny_model("gemma2", tmp_path, window=6), head=True)
    mamba = Backbone(writers["mamba"], head=True)
    with torch.no_grad():
        for backbone, refused in ((windowed, ["packed"]), (mamba, ["packed", "cached"])):
            for method in refused:
                with pytest.raises(ConfigurationError, match=f"method='{method}': this"):
                    read_completions(backbone, *ragged, method=method)
            expected = by_hand(backbone, ragged)[0]
            read = read_completions(backbone, *ragged)
            torch.testing.assert_close(read.log_prob, expected, rtol=1e-3, atol=2e-3)
        short = [v[:3] for v in ragged]
        short[2], short[3], short[4] = short[2][..., :2], short[3].clamp(max=2), short[4][..., :2]
        short[1] = short[1].clamp(max=4)
        read_completions(windowed, *short, method="packed")  # all texts are within the window


def test_the_way_is_chosen_by_what_it_saves(adapted):
    def chosen(prompt, completion, samples):
        length = torch.full((2, samples), completion)
        return _choose(adapted["llama"], torch.full((2,), prompt), length, "auto")

    assert chosen(100, 4, 8) == "packed"  # a long prompt, short completions
    assert chosen(100, 100, 16) == "cached"  # a row of all completions would be too long
    assert chosen(2, 100, 16) == "rows"  # there is little to share
    assert chosen(100, 4, 1) == "rows"
