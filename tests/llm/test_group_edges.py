"""Groups of completions at their edges: ends, nothing, windows, batches of any size."""

import contextlib
import inspect

import pytest
import torch
from llm_tiny import WRITERS, tiny_model

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generation import end_tokens
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.merging import merged
from rl_lightning.llm.reading import read_completions
from rl_lightning.llm.sampling import Sampling

PROMPTS = [[3, 40, 51], [7, 8, 9, 60, 61, 33, 12], [5], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("edges")
    made = {kind: tiny_model(kind, root / kind) for kind in WRITERS}
    return {**made, "window": tiny_model("gemma2", root / "window", window=4)}


@pytest.fixture
def make(folders):
    def make(kind, **kwargs):
        return Backbone(folders[kind], head=True, max_length=16, **kwargs).eval()

    return make


def generate(backbone, sampling, samples=1, prompts=PROMPTS, **kwargs):
    torch.manual_seed(0)
    return TransformersGenerator(**kwargs)(backbone, prompts, samples, sampling, 0)


def read(backbone, prompts, completions, heat=1.0, **kwargs):
    """What is said of lists of token ids, `[P][G]`, all of them the model's own."""
    prompt, mask = backbone.tokens.pad(prompts)
    length = torch.tensor([[len(ids) for ids in group] for group in completions])
    ids = torch.zeros(*length.shape, max(int(length.max()), 1), dtype=torch.long)
    for p, group in enumerate(completions):
        for g, own in enumerate(group):
            ids[p, g, : len(own)] = torch.tensor(own, dtype=torch.long)
    own = torch.arange(ids.shape[2]) < length[..., None]
    heat = torch.as_tensor(heat).float().expand(len(prompts))
    return read_completions(backbone, prompt, mask.sum(1), ids, length, own, heat, **kwargs)


def by_hand(backbone, prompt, completion, heat=1.0):
    """log p and entropy of each token, by transformers alone."""
    logits = backbone.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    said = (logits[len(prompt) - 1 : -1] / heat).log_softmax(-1)
    chosen = said.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return chosen, -(said.exp() * said).sum(-1)


def ends_with(backbone, *ids):
    """Have these tokens alone end what a model writes."""
    backbone.model.generation_config.eos_token_id = list(ids) or None
    backbone.model.config.eos_token_id = None
    backbone.tokens.tokenizer.eos_token = None
    assert end_tokens(backbone) == sorted(ids)


@pytest.mark.parametrize("kind", [*WRITERS, "window"])
def test_greedy_output_is_the_same_in_batches_of_any_size(kind, make):
    backbone = make(kind)
    prompts = [ids[: 1 + n % len(ids)] for n in (1, 4) for ids in PROMPTS]
    alone = [generate(backbone, Sampling(6, 0.0), prompts=[ids]) for ids in prompts]
    for size in (1, 5, 256):
        found = generate(backbone, Sampling(6, 0.0), samples=3, prompts=prompts, batch_size=size)
        for n, one in enumerate(alone):
            group = slice(3 * n, 3 * n + 3)
            assert found.ids[group].equal(one.ids.expand(3, -1))
            assert found.length[group].equal(one.length.expand(3))
            assert found.ended[group].equal(one.ended.expand(3))
            torch.testing.assert_close(
                found.log_prob[group], one.log_prob.expand(3, -1), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("kind", [*WRITERS, "window"])
def test_what_is_written_and_read_is_what_transformers_says(kind, make):
    backbone = make(kind)
    written = generate(backbone, Sampling(9, 1.3), samples=3)
    many = zip(written.ids.tolist(), written.length.tolist(), strict=True)
    said = [ids[:length] for ids, length in many]
    groups = [said[3 * p : 3 * p + 3] for p in range(len(PROMPTS))]
    found = read(backbone, PROMPTS, groups, 1.3)
    for p, group in enumerate(groups):
        for g, ids in enumerate(group):
            chosen, entropy = by_hand(backbone, PROMPTS[p], ids, 1.3)
            row = written.log_prob[3 * p + g]
            torch.testing.assert_close(row[: len(ids)], chosen, rtol=1e-5, atol=1e-5)
            assert not row[len(ids) :].any()
            for values, own in ((found.log_prob, chosen), (found.entropy, entropy)):
                torch.testing.assert_close(values[p, g, : len(ids)], own, rtol=1e-5, atol=1e-5)


def test_a_group_is_not_packed_where_a_window_would_cut_it(make):
    backbone = make("window")
    with pytest.raises(ConfigurationError):
        read(backbone, PROMPTS, [[[5, 6], [7]]] * 4, method="packed")


@pytest.mark.parametrize("method", ["packed", "cached", "rows"])
def test_temperatures_are_of_each_prompt_and_zero_counts_as_one(method, make):
    backbone = make("llama")
    groups = [[[5, 6, 7], [8]], [[9, 10], [5, 5, 5]], [[30], [31, 32]]]
    found = read(backbone, PROMPTS[:3], groups, torch.tensor([0.5, 2.0, 0.0]), method=method)
    for p, heat in enumerate((0.5, 2.0, 1.0)):
        for g, ids in enumerate(groups[p]):
            chosen, entropy = by_hand(backbone, PROMPTS[p], ids, heat)
            torch.testing.assert_close(found.log_prob[p, g, : len(ids)], chosen)
            torch.testing.assert_close(found.entropy[p, g, : len(ids)], entropy)


@pytest.mark.parametrize("method", ["packed", "cached", "rows"])
def test_a_completion_of_no_tokens_says_nothing_and_disturbs_none(method, make):
    backbone = make("llama", tune="full")
    plain = read(backbone, PROMPTS[:2], [[[5, 6, 7]], [[8, 9]]], method="rows")
    groups = [[[], [5, 6, 7], []], [[8, 9], [], [4]]]
    found = read(backbone, PROMPTS[:2], groups, method=method, hidden=True)
    torch.testing.assert_close(found.log_prob[0, 1], plain.log_prob[0, 0])
    torch.testing.assert_close(found.log_prob[1, 0], plain.log_prob[1, 0])
    torch.testing.assert_close(found.start, plain.start)
    for values in (found.log_prob, found.entropy, found.hidden):
        assert not values[0, [0, 2]].any()
        assert not values[1, 1].any()
    nothing = read(backbone, PROMPTS[:2], [[[], []], [[], []]], method=method)
    nothing.log_prob.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in backbone.parameters())


@pytest.mark.parametrize("method", ["packed", "cached", "rows"])
def test_the_head_was_given_what_hidden_says(method, make):
    backbone = make("qwen3")
    groups = [[[5, 6, 7], [8, 9]], [[9, 10], [5]]]
    found = read(backbone, PROMPTS[:2], groups, method=method, hidden=True)
    for p, g in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ids = groups[p][g]
        whole = torch.tensor([[*PROMPTS[p], *ids]])
        hidden = backbone.model.model(input_ids=whole).last_hidden_state[0]
        before = len(PROMPTS[p]) - 1
        torch.testing.assert_close(found.hidden[p, g, : len(ids)], hidden[before:-1])
        torch.testing.assert_close(found.start[p], hidden[before])


@pytest.mark.parametrize("kind", WRITERS)
def test_an_end_at_once_is_one_token(kind, make):
    backbone = make(kind)
    first = int(generate(backbone, Sampling(1, 0.0)).ids[0, 0])
    ends_with(backbone, first)
    written = generate(backbone, Sampling(6, 0.0), samples=2)
    assert written.length[:2].tolist() == [1, 1]
    assert written.ended[:2].all()
    assert written.ids[0].tolist() == [first] + [backbone.tokens.pad_id] * 5
    assert written.log_prob[0, 0] < 0
    assert not written.log_prob[0, 1:].any()
    alone = generate(backbone, Sampling(1, 0.0))
    assert alone.ended[0]  # also where it was the last token there could be


def test_a_model_without_an_end_writes_as_much_as_it_may(make):
    backbone = make("llama")
    ends_with(backbone)
    written = generate(backbone, Sampling(30, 1.5), samples=40)
    assert (written.ids == 1).any()  # what was the end
    assert (written.length == 30).all()
    assert not written.ended.any()


def test_several_ends_and_texts_end_at_the_first_of_them(make):
    backbone = make("llama")
    ends_with(backbone)
    free = generate(backbone, Sampling(8, 0.0))
    ids = free.ids[0].tolist()
    decode = backbone.tokens.tokenizer.decode
    texts = [decode(ids[:t]) for t in range(9)]
    over_two = texts[4][len(texts[2]) - 1 :]  # begins within a token
    for stop in ([over_two], over_two, ["never", over_two]):
        written = generate(backbone, Sampling(8, 0.0, stop=stop))
        first = next(t for t in range(9) if over_two in texts[t])
        assert int(written.length[0]) == first
        assert written.ended[0]
        assert written.ids[0, :first].tolist() == ids[:first]
    ends_with(backbone, ids[1], ids[5])
    first = min(ids.index(ids[1]), ids.index(ids[5])) + 1
    assert int(generate(backbone, Sampling(8, 0.0)).length[0]) == first


def test_a_stop_text_in_the_prompt_stops_nothing(make):
    backbone = make("llama")
    ends_with(backbone)
    free = generate(backbone, Sampling(4, 0.0), prompts=PROMPTS[:1])
    decode = backbone.tokens.tokenizer.decode
    text = decode(PROMPTS[0])
    assert text not in decode(free.ids[0])
    stopped = generate(backbone, Sampling(4, 0.0, stop=text), prompts=PROMPTS[:1])
    assert stopped.ids.equal(free.ids)
    assert not stopped.ended.any()


def test_top_k_and_top_p_choose_among_the_likeliest(make):
    backbone = make("llama")
    logits = backbone.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    likeliest = logits.sort(descending=True).indices
    share = logits.softmax(-1)[likeliest].cumsum(0)
    for given, most in (({"top_k": 3}, 3), ({"top_p": float(share[3]) - 1e-4}, 4)):
        written = generate(backbone, Sampling(1, **given), samples=300, prompts=PROMPTS[:1])
        assert set(written.ids[:, 0].tolist()) == set(likeliest[:most].tolist())
        torch.testing.assert_close(
            written.log_prob[:, 0], logits.log_softmax(-1)[written.ids[:, 0]]
        )


def test_a_model_that_recomputes_writes_the_same_and_learns_on(make):
    plain = generate(make("llama", tune="full"), Sampling(6), samples=2)
    backbone = make("llama", tune="full", gradient_checkpointing=True).train()
    again = generate(backbone, Sampling(6), samples=2)
    assert backbone.training
    assert again.ids.equal(plain.ids)
    torch.testing.assert_close(again.log_prob, plain.log_prob)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("method", ["packed", "cached", "rows"])
def test_low_precision_is_right_but_for_rounding(kind, method, make):
    backbone = make(kind)
    groups = [[[5, 6, 7], [8, 9]], [[9, 10], [5]]]
    exact = read(backbone, PROMPTS[:2], groups, method=method).log_prob
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read(backbone, PROMPTS[:2], groups, method=method).log_prob
        written = generate(backbone, Sampling(3), samples=2)
    for found in (rounded, read(make(kind, dtype="bfloat16"), PROMPTS[:2], groups).log_prob):
        assert found.dtype == torch.float32
        assert 0 < (found - exact).abs().max() < 0.03 * exact.abs().max()
    assert written.log_prob.isfinite().all()
    assert written.log_prob.dtype == torch.float32


# --- adapters ---------------------------------------------------------------------------------


def test_weights_come_back_as_the_very_tensors_also_after_an_error(make):
    backbone = make("llama", tune="lora", lora_rank=2)
    for name, weight in backbone.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    before = dict(backbone.model.named_parameters())
    values = {name: value.clone() for name, value in before.items()}
    wants = {name: value.requires_grad for name, value in before.items()}
    with contextlib.suppress(KeyError), merged(backbone):
        inside = dict(backbone.model.named_parameters())
        assert any(not values[name].equal(inside[name]) for name in values)
        raise KeyError
    after = dict(backbone.model.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert all(after[name].equal(values[name]) for name in before)
    assert {name: value.requires_grad for name, value in after.items()} == wants
    read(backbone, PROMPTS[:1], [[[5]]]).log_prob.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in backbone.parameters())


def test_adapters_that_are_merged_already_stay_so(make):
    backbone = make("llama", tune="lora", lora_rank=2)
    for name, weight in backbone.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    once = generate(backbone, Sampling(4, 0.0))
    with merged(backbone):
        for _ in range(2):
            torch.testing.assert_close(generate(backbone, Sampling(4, 0.0)), once)


def test_adapters_are_merged_only_where_they_are_to_be(make, monkeypatch):
    from peft.tuners.lora import LoraLayer

    backbone = make("llama", tune="lora")
    seen = []
    own = Backbone.logits

    def look(self, *args, **kwargs):
        layers = [part for part in self.model.modules() if isinstance(part, LoraLayer)]
        seen.append([len(args[0]), all(layer.merged for layer in layers)])
        return own(self, *args, **kwargs)

    monkeypatch.setattr(Backbone, "logits", look)
    for merge in (True, False):
        seen.clear()
        generate(backbone, Sampling(1), samples=4, merge_lora=merge)
        assert {each for _, each in seen} == {merge}
    seen.clear()
    generate(backbone, Sampling(1), samples=1, batch_size=2)
    assert [rows for rows, _ in seen] == [2, 2]


def test_all_arguments_of_the_generator_are_tested_above():
    assert set(inspect.signature(TransformersGenerator).parameters) == {"merge_lora", "batch_size"}


@pytest.mark.parametrize("size", [0, -1, 1.5, None, "many"])
def test_a_batch_of_no_completions_is_named(size):
    with pytest.raises(ConfigurationError, match="batch_size"):
        TransformersGenerator(batch_size=size)


@pytest.mark.parametrize("given", [{"method": "tree"}, {"chunk": 0}])
def test_reading_in_no_known_way_is_named(given, make):
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        read(make("llama"), PROMPTS[:1], [[[5]]], **given)


def test_a_group_of_no_samples_is_named(make):
    with pytest.raises(ConfigurationError, match="samples must be at least 1"):
        generate(make("llama"), Sampling(1), samples=0)
