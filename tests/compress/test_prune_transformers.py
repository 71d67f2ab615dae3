"""Transformers without some heads or layers, against whole ones under masks."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rl_lightning.compress import (
    attention_heads,
    count,
    prune_heads,
    prune_layers,
    prune_nodes,
    prune_weights,
    restructure,
)
from rl_lightning.core.errors import ConfigurationError

IDS = torch.tensor([[3, 5, 7, 2, 0], [4, 1, 9, 8, 6]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}


def bert(attention="sdpa"):
    torch.manual_seed(0)
    config = BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=12)
    config._attn_implementation = attention
    return BertModel(config, add_pooling_layer=False).eval()


def llama(attention="sdpa"):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=2)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


def qwen(attention="sdpa"):
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, intermediate_size=32, num_key_value_heads=2, head_dim=6)
    config._attn_implementation = attention
    return Qwen3ForCausalLM(config).eval()


def run(model):
    with torch.no_grad():
        return model(IDS, attention_mask=MASK)[0]


LAYOUTS = {
    bert: ("encoder.layer.{}.attention", "output.dense"),
    llama: ("model.layers.{}.self_attn", "o_proj"),
    qwen: ("model.layers.{}.self_attn", "o_proj"),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [bert, llama, qwen])
def test_without_heads_is_with_their_output_columns_at_zero(make, attention):
    model, whole = make(attention), make(attention)
    name, output = LAYOUTS[make]
    groups = 4 if make is bert else 2
    assert attention_heads(model) == {name.format(i): groups for i in range(3)}
    record = prune_heads(model, {name.format(0): 0.5, name.format(2): 0.99})
    assert [len(h["keep"]) for h in record["heads"].values()] == [groups // 2, 1]
    for path, heads in record["heads"].items():
        weight = whole.get_submodule(f"{path}.{output}").weight
        width = weight.shape[1] // groups
        with torch.no_grad():
            for head in range(groups):
                if head not in heads["keep"]:
                    weight[:, head * width : (head + 1) * width] = 0.0
    torch.testing.assert_close(run(model), run(whole))
    assert not torch.allclose(run(model), run(make(attention)), atol=1e-4)
    assert count(model, IDS).parameters < count(whole, IDS).parameters


def test_attributes_follow_and_the_configuration_stays():
    model = bert()
    prune_heads(model, 0.5)
    inner = model.encoder.layer[1].attention.self
    assert (inner.num_attention_heads, inner.all_head_size, inner.attention_head_size) == (2, 8, 4)
    assert (inner.query.out_features, inner.query.weight.shape) == (8, (8, 16))
    assert model.encoder.layer[1].attention.output.dense.in_features == 8
    assert model.config.num_attention_heads == 4
    model = llama()
    prune_heads(model, 0.5)
    inner = model.model.layers[0].self_attn
    assert (inner.q_proj.out_features, inner.k_proj.out_features) == (8, 4)
    assert attention_heads(model)["model.layers.0.self_attn"] == 1


def test_the_head_of_least_norm_goes():
    model = bert()
    inner = model.encoder.layer[0].attention
    with torch.no_grad():
        inner.self.value.weight[8:12] *= 0.01
        inner.output.dense.weight[:, 8:12] *= 0.01
    record = prune_heads(model, {"encoder.layer.0.attention": 0.25})
    assert record["heads"]["encoder.layer.0.attention"] == {"of": 4, "keep": [0, 1, 3]}


@pytest.mark.parametrize("make", [llama, qwen])
def test_generation_goes_on_from_its_cache(make):
    model = make()
    prune_heads(model, 0.5)
    prune_layers(model, [0, 2])
    written = model.generate(IDS[1:], max_new_tokens=4, do_sample=False, pad_token_id=0)
    again = IDS[1:]
    for _ in range(4):
        following = model(again, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        again = torch.cat([again, following], 1)
    assert torch.equal(written, again)


class Skipped(nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states


@pytest.mark.parametrize("make", [bert, llama, qwen])
def test_without_layers_is_with_the_kept_ones_alone(make):
    model, whole = make(), make()
    record = prune_layers(model, keep=[0, 2])
    path = "encoder.layer" if make is bert else "model.layers"
    assert record == {"operator": "prune_layers", "layers": path, "of": 3, "keep": [0, 2]}
    layers = whole.get_submodule(path)
    skipped = Skipped()
    skipped.attention_type = vars(layers[1]).get("attention_type")
    layers[1] = skipped
    torch.testing.assert_close(run(model), run(whole))
    assert model.config.num_hidden_layers == len(model.get_submodule(path)) == 2
    assert len(vars(model.config).get("layer_types") or [0, 0]) == 2


def test_another_model_of_the_same_configuration_is_left_alone():
    config = llama().config
    one, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    expected = run(other)
    prune_layers(one, [1])
    assert torch.equal(run(other), expected)
    assert (config.num_hidden_layers, one.model.config.num_hidden_layers) == (3, 1)


def every(model):
    """Every operator in turn, and what it recorded."""
    return [
        prune_layers(model, [0, 2]),
        prune_heads(model, 0.5),
        prune_nodes(model, 0.5, IDS, MASK),
        prune_weights(model, 0.3),
    ]


@pytest.mark.parametrize("make", [bert, llama, qwen])
def test_rebuilt_from_records_of_every_operator(make, tmp_path):
    model = make()
    torch.save({"records": every(model), "state": model.state_dict()}, tmp_path / "model.pt")
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    other = restructure(make(), stored["records"])
    other.load_state_dict(stored["state"], strict=True)
    assert torch.equal(run(other), run(model))
    assert str(count(other, IDS)) == str(count(model, IDS))
    left = stored["records"][2]["nodes_left"]
    wide = [n for n in left if "intermediate" in n or "gate_proj" in n]
    assert [left[n] for n in wide] == [16, 16]


def test_inside_another_module():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = bert(), nn.Linear(16, 4)

        def forward(self, ids):
            return self.head(self.backbone(ids).last_hidden_state[:, 0])

    policy = Policy()
    records = [
        prune_layers(policy, [1, 2]),
        prune_heads(policy, {"backbone.encoder.layer.1.attention": 0.5}),
        prune_nodes(policy, {"backbone.encoder.layer.0.intermediate.dense": 0.25}, IDS),
    ]
    other = restructure(Policy(), records)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other(IDS), policy(IDS))


@pytest.mark.parametrize("make", [bert, llama])
def test_optimizers_go_on_with_what_is_left(make):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        model(IDS, attention_mask=MASK)[0].square().mean().backward()
        optimizer.step()

    step()
    kept = optimizer.state[
        model.get_submodule(LAYOUTS[make][0].format(2)).get_parameter(
            "self.query.weight" if make is bert else "q_proj.weight"
        )
    ]["exp_avg"]
    prune_layers(model, [0, 2], optimizers=[optimizer])
    record = prune_heads(model, 0.5, [optimizer])
    parameters = {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == parameters
    assert {id(p) for p in optimizer.state} == parameters
    name = LAYOUTS[make][0].format(1)
    query = model.get_submodule(name).get_parameter(
        "self.query.weight" if make is bert else "q_proj.weight"
    )
    heads = record["heads"][name]
    expected = kept.view(heads["of"], -1, 16)[heads["keep"]].reshape(-1, 16)
    assert torch.equal(optimizer.state[query]["exp_avg"], expected)
    step()


def test_masks_are_cut_with_the_heads():
    model = llama()
    records = [prune_weights(model, 0.5), prune_heads(model, 0.5)]
    other = restructure(llama(), records)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(run(other), run(model))


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1.0, "share must be below 1"),
        ({"encoder.layer.0.attention": -1}, "must be between 0 and 1"),
        (
            {"encoder.layer.9.attention": 0.5},
            "no attention 'encoder.layer.9.attention'; it has enc",
        ),
    ],
)
def test_wrong_shares_of_heads(share, message):
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(bert(), share)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "at least one index"),
        ([0, 3], "rising indices between 0 and 2"),
        ([2, 0], "rising indices"),
        ([0.5], "at least one index"),
        (1, "keep must list layers by number, not 1"),
    ],
)
def test_wrong_layers_to_keep(keep, message):
    with pytest.raises(ConfigurationError, match=message):
        prune_layers(bert(), keep)


def test_lists_of_layers_are_chosen_by_name():
    both = nn.ModuleDict({"online": bert(), "other": llama()})
    with pytest.raises(ConfigurationError, match=r"several lists of layers, online\.encoder"):
        prune_layers(both, [0])
    with pytest.raises(ConfigurationError, match="layers='online' is no list"):
        prune_layers(both, [0], layers="online")
    prune_layers(both, [0], layers="other.model.layers")
    assert (len(both["online"].encoder.layer), len(both["other"].model.layers)) == (3, 1)
    assert both["online"].config.num_hidden_layers == 3
    assert both["other"].model.config.num_hidden_layers == 1


def test_other_layouts_are_refused():
    gpt2 = GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    for prune in (lambda: prune_heads(gpt2, 0.5), lambda: prune_layers(gpt2, [0])):
        with pytest.raises(ConfigurationError, match="GPT2Model has no attention laid out as"):
            prune()
    strange = llama()
    strange.model.layers[0].self_attn.sinks = nn.Parameter(torch.zeros(4, 2))
    with pytest.raises(ConfigurationError, match="'sinks' of shape"):
        prune_heads(strange, 0.5)
    prune_layers(strange, [0])


HEADS = {"encoder.layer.0.attention": {"of": 4, "keep": [0, 1]}}


@pytest.mark.parametrize(
    "record",
    [
        {"operator": "prune_heads"},
        {"operator": "prune_heads", "heads": {"nine": {"of": 4, "keep": [0]}}},
        {"operator": "prune_heads", "heads": {"encoder.layer.0.attention": [0]}},
        {"operator": "prune_heads", "heads": {"encoder.layer.0.attention": {"of": 5, "keep": [0]}}},
        {"operator": "prune_heads", "heads": {"encoder.layer.0.attention": {"of": 4, "keep": [4]}}},
        {"operator": "prune_layers"},
        {"operator": "prune_layers", "layers": "encoder.layer", "of": 4, "keep": [0]},
        {"operator": "prune_layers", "layers": "encoder.layer", "of": 3, "keep": [3]},
        {"operator": "prune_layers", "layers": "encoder.layer", "of": 3, "keep": None},
        {"operator": "prune_layers", "layers": "encoder", "of": 3, "keep": [0]},
    ],
)
def test_a_record_of_heads_or_layers_that_does_not_fit_changes_nothing(record):
    model = bert()
    with pytest.raises(ConfigurationError):
        restructure(model, [record])
    assert torch.equal(run(model), run(bert()))
    restructure(model, [{"operator": "prune_heads", "heads": HEADS}])
    assert attention_heads(model)["encoder.layer.0.attention"] == 2


def test_a_named_list_may_hold_layers_of_any_kind():
    def network():
        torch.manual_seed(0)
        net = nn.Module()
        net.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        net.forward = lambda x: [x := torch.tanh(layer(x)) for layer in net.blocks][-1]
        return net

    net, x = network(), torch.randn(2, 4)
    first, _, last = net.blocks
    with pytest.raises(ConfigurationError, match="no attention"):
        prune_layers(net, [0, 2])
    record = prune_layers(net, [0, 2], layers="blocks")
    expected = torch.tanh(last(torch.tanh(first(x))))
    torch.testing.assert_close(net.forward(x), expected)
    again = restructure(network(), [record])
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.forward(x), expected)


@pytest.mark.parametrize("prune", [lambda *a, **k: prune_layers(*a, [0], **k), prune_heads])
def test_an_optimizer_that_keeps_parameters_elsewhere_is_refused(prune):
    model = bert()
    optimizer, arguments = torch.optim.LBFGS(model.parameters()), {}
    if prune is prune_heads:
        arguments["share"] = 0.5
    with pytest.raises(ConfigurationError, match=r"LBFGS keeps.*build the optimizer after pruning"):
        prune(model, optimizers=[optimizer], **arguments)
    assert run(model).equal(run(bert()))


def test_layers_and_weights_that_plain_attributes_hold_are_refused():
    model = bert()
    first = model.encoder.layer[0]
    model.held = [first]
    with pytest.raises(ConfigurationError, match="held of BertModel would go on referring"):
        prune_layers(model, [1, 2])
    prune_layers(model, [0, 2])
    model.held = [first.attention.self.query.weight]
    with pytest.raises(ConfigurationError, match="held of BertModel would go on referring"):
        prune_heads(model, 0.5)
    model.held = None
    prune_heads(model, 0.5)
