"""Groups of completions: written, and read again token by token."""

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.reading import read_completions
from rl_lightning.llm.sampling import Sampling

PROMPTS = [[3, 40, 51], [7, 8, 9, 60, 61, 33, 12], [5]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    known = {}

    def make(kind, **kwargs):
        key = kind, tuple(sorted(kwargs.items()))
        if key not in known:
            folder = tiny_model(kind, tmp_path_factory.mktemp(kind) / kind)
            known[key] = Backbone(folder, head=True, max_length=16, **kwargs).eval()
        return known[key]

    return make


def generate(backbone, sampling, samples=2, prompts=PROMPTS, seed=0, **kwargs):
    torch.manual_seed(seed)
    return TransformersGenerator(**kwargs)(backbone, prompts, samples, sampling, 0)


def layout(backbone, written, samples=2, prompts=PROMPTS, temperature=1.0):
    """What `read_completions` takes, of what was written."""
    prompt, mask = backbone.tokens.pad(prompts)
    shape = len(prompts), samples
    length = written.length.view(shape)
    ids = written.ids.view(*shape, -1)
    own = torch.arange(ids.shape[2]) < length[..., None]
    return prompt, mask.sum(1), ids, length, own, torch.full((len(prompts),), temperature)


def adapted(backbone):
    """Adapters that say something, as after training."""
    random = torch.Generator().manual_seed(1)
    for name, weight in backbone.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=random)
    return backbone


def gradient(backbone, rows, **kwargs):
    backbone.zero_grad()
    found = read_completions(backbone, *rows, **kwargs)
    (
        found.log_prob * torch.linspace(-1, 1, found.log_prob.numel()).view_as(found.log_prob)
    ).sum().backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_was_said_when_writing_is_what_is_said_when_reading(kind, temperature, made):
    backbone = made(kind)
    written = generate(backbone, Sampling(6, temperature))
    rows = layout(backbone, written, temperature=temperature)
    for method in ("packed", "cached", "rows"):
        found = read_completions(backbone, *rows, method=method)
        torch.testing.assert_close(
            found.log_prob.view_as(written.log_prob), written.log_prob, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", WRITERS)
def test_a_group_in_one_row_is_read_as_each_of_it_alone(kind, made):
    backbone = made(kind, tune="full")
    rows = layout(backbone, generate(backbone, Sampling(6)))
    packed, apart = (
        read_completions(backbone, *rows, method=m, hidden=True) for m in ("packed", "rows")
    )
    for name in ("log_prob", "entropy", "hidden"):
        torch.testing.assert_close(
            getattr(packed, name), getattr(apart, name), rtol=1e-5, atol=1e-5
        )
    one, other = (gradient(backbone, rows, method=m) for m in ("packed", "rows"))
    assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("kind", WRITERS)
def test_merged_adapters_write_as_adapters_beside_the_weights_do(kind, made):
    backbone = adapted(made(kind, tune="lora", lora_rank=4))
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    merged, beside = (generate(backbone, Sampling(6), merge_lora=m) for m in (True, False))
    assert merged.ids.equal(beside.ids)
    torch.testing.assert_close(merged.log_prob, beside.log_prob, rtol=1e-5, atol=1e-5)
    after = backbone.model.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())
    with backbone.model.disable_adapter():
        plain = generate(backbone, Sampling(6), merge_lora=False)
    assert (plain.log_prob - merged.log_prob).abs().max() > 1e-3  # they say something


@pytest.mark.parametrize("kind", WRITERS)
def test_likeliest_tokens_are_those_of_each_prompt_alone_read_from_scratch(kind, made):
    backbone = made(kind)
    together = generate(backbone, Sampling(5, 0.0), samples=1, batch_size=2)
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(int(together.length[row])):
            ids.append(int(backbone.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert together.ids[row, : together.length[row]].tolist() == ids[len(prompt) :]


def test_logits_in_pieces_are_the_same(made):
    backbone = made("llama", tune="full")
    rows = layout(backbone, generate(backbone, Sampling(6)))
    whole, parts = (read_completions(backbone, *rows, chunk=c) for c in (1000, 3))
    torch.testing.assert_close(whole.log_prob, parts.log_prob)
    torch.testing.assert_close(whole.entropy, parts.entropy)
    one, other = (gradient(backbone, rows, chunk=c) for c in (1000, 3))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_entropy_has_a_gradient_where_it_is_asked_for(made):
    backbone = made("llama", tune="full")
    rows = layout(backbone, generate(backbone, Sampling(3)))
    assert not read_completions(backbone, *rows).entropy.requires_grad
    read_completions(backbone, *rows, entropy_grad=True).entropy.sum().backward()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("method", ["packed", "cached", "rows"])
def test_what_an_environment_wrote_is_read_and_not_learned(kind, method, made):
    backbone = made(kind, tune="full")
    prompt, length, ids, many, own, heat = layout(backbone, generate(backbone, Sampling(6)))
    many = torch.full_like(many, 6)
    own = torch.ones_like(own)
    own[..., 2:4] = False
    found = read_completions(backbone, prompt, length, ids, many, own, heat, method=method)
    assert found.log_prob[..., 2:4].abs().max() == 0.0
    assert found.entropy[..., 2:4].abs().max() == 0.0
    backbone.zero_grad()
    found.log_prob[..., 2:4].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in backbone.parameters())
    other = ids.clone()
    other[..., 3] = (other[..., 3] + 1) % 50
    after = read_completions(backbone, prompt, length, other, many, own, heat, method=method)
    torch.testing.assert_close(after.log_prob[..., :2], found.log_prob[..., :2])
    assert (after.log_prob[..., 4:] - found.log_prob[..., 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("method", ["packed", "cached", "rows"])
def test_padding_says_nothing(kind, method, made):
    backbone = made(kind)
    prompt, length, ids, many, own, heat = layout(backbone, generate(backbone, Sampling(6)))
    found = read_completions(backbone, prompt, length, ids, many, own, heat, method=method)
    pad = torch.nn.functional.pad
    wider = pad(prompt, (0, 3), value=9), length, pad(ids, (0, 2), value=9), many, pad(own, (0, 2))
    after = read_completions(backbone, *wider, heat, method=method)
    torch.testing.assert_close(after.log_prob[..., :6], found.log_prob, rtol=1e-5, atol=1e-5)
    assert after.log_prob[..., 6:].abs().max() == 0.0


def test_gradient_checkpointing_changes_no_number(made):
    plain, again = (
        made("llama", tune="full"),
        made("llama", tune="full", gradient_checkpointing=True),
    )
    again.load_state_dict(plain.state_dict())
    rows = layout(plain, generate(plain, Sampling(6)))
    try:
        again.train()
        torch.testing.assert_close(gradient(plain, rows), gradient(again, rows))
    finally:
        again.eval()


def test_mixed_precision_is_right_but_for_rounding(made):
    backbone = made("llama")
    rows = layout(backbone, generate(backbone, Sampling(6)))
    exact = read_completions(backbone, *rows)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read_completions(backbone, *rows)
    assert rounded.log_prob.dtype == torch.float32
    assert (rounded.log_prob - exact.log_prob).abs().max() < 0.5
    assert not rounded.log_prob.equal(exact.log_prob)


def test_samples_of_a_group_differ_and_come_again_with_the_seed(made):
    backbone = made("llama")
    one = generate(backbone, Sampling(6), samples=4)
    assert len({tuple(row) for row in one.ids[:4].tolist()}) > 1
    assert generate(backbone, Sampling(6), samples=4).ids.equal(one.ids)
    assert not generate(backbone, Sampling(6), samples=4, seed=1).ids.equal(one.ids)


def test_an_end_token_ends_and_belongs_to_what_was_written(made):
    backbone = made("llama")
    written = generate(backbone, Sampling(40, 1.5), samples=64)
    assert written.ended.any()
    for ids, length, ended in zip(written.ids, written.length, written.ended, strict=True):
        own = ids[:length].tolist()
        assert (own[-1] == 1) == bool(ended)
        assert 1 not in own[:-1]
        assert bool(ended) or length == 40


def test_a_stop_text_ends(made):
    backbone = made("llama")
    free = generate(backbone, Sampling(12), samples=16)
    text = backbone.tokens.tokenizer.decode(free.ids[0, :2].tolist())
    stopped = generate(backbone, Sampling(12, stop=[text]), samples=16)
    assert stopped.ended[0]
    assert int(stopped.length[0]) <= 2


def test_what_is_cut_off_has_its_share_in_log_probabilities(made):
    backbone = made("llama")
    written = generate(backbone, Sampling(4, top_k=2))
    found = read_completions(backbone, *layout(backbone, written))
    torch.testing.assert_close(
        found.log_prob.view_as(written.log_prob), written.log_prob, rtol=1e-5, atol=1e-5
    )


def test_prompts_that_nothing_can_go_on_from_are_named(made):
    backbone = made("llama")
    for prompts, message in (
        ([[3], []], "prompt 1 has no tokens"),
        ([], "there are no prompts"),
        ([[3] * 255], "more than the 256 tokens"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            generate(backbone, Sampling(4), prompts=prompts)
