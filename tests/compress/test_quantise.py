import copy
from functools import partial

import pytest
import torch
from llm_tiny import tiny_model
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

from rl_lightning.compress import (
    dequantise,
    fake_quantise,
    harden,
    quantisable,
    quantise,
    requantise,
)
from rl_lightning.compress.rounding import rounded
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import load_backbone
from rl_lightning.nn.memory import Memory


def mlp(hidden=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 4)
    )


class Zoo(nn.Module):
    """Every kind of layer that is packed, and some that are not."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, padding_mode="circular")
        self.same2 = nn.Conv2d(6, 5, (2, 3), padding="same", padding_mode="reflect", bias=False)
        self.conv1 = nn.Conv1d(5, 3, 3, dilation=2, padding=2)
        self.table = nn.Embedding(11, 6, padding_idx=0)
        self.bag = nn.EmbeddingBag(13, 6, mode="mean", padding_idx=2)
        self.head = nn.Linear(12, 4, bias=False)
        self.memory = Memory(4, 5, "lstm")
        self.norm = nn.LayerNorm(4)

    def forward(self, image, ids):
        h = self.same2(self.conv2(image)).flatten(2)
        h = self.conv1(h).mean((1, 2))[:, None]
        x = torch.cat([self.table(ids).sum(1), self.bag(ids)], -1) + h
        return self.norm(self.head(x))


def zoo(seed=0):
    torch.manual_seed(seed)
    return Zoo().eval()


def zoo_input():
    return torch.randn(3, 4, 6, 8), torch.randint(0, 11, (3, 5))


PACKED = ["conv2", "same2", "conv1", "table", "bag", "head"]


def by_rounding(module, bits, group_size=None):
    """The float module, its weights rounded: what the packed one must compute."""
    module = copy.deepcopy(module)
    for layer in quantisable(module).values():
        layer.weight.data.copy_(rounded(layer.weight, bits, group_size))
    return module


@pytest.mark.parametrize("bits", [16, 8, 6, 5, 4, 3, 2, 1])
@pytest.mark.parametrize("group_size", [None, 5])
def test_packed_layers_compute_with_the_rounded_weights(bits, group_size):
    module = zoo()
    expected = by_rounding(module, bits, group_size)
    record = quantise(module, bits, group_size=group_size)
    assert list(record["layers"]) == PACKED
    entry = {"kind": "Conv2d", "bits": bits, "group_size": group_size}
    assert record["layers"]["conv2"] == entry
    assert list(record["left"]) == ["memory.cell"]
    assert "LSTM" in record["left"]["memory.cell"]
    batch = zoo_input()
    assert torch.equal(module(*batch), expected(*batch))
    assert module.head.weight.shape == (4, 12)  # for those who read it


def test_more_bits_are_nearer():
    batch, exact = zoo_input(), zoo()
    errors = []
    for bits in (16, 8, 7, 6, 5, 4, 3, 2):
        module = zoo()
        quantise(module, bits)
        errors.append((module(*batch) - exact(*batch)).abs().mean().item())
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize(
    ("mode", "padding_idx", "last"), [("sum", 1, False), ("max", None, False), ("mean", 1, True)]
)
def test_bags_of_every_kind(mode, padding_idx, last):
    bag = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=padding_idx, include_last_offset=last)
    module = nn.Sequential(bag)
    expected = by_rounding(module, 4)
    quantise(module, 4)
    ids, offsets = torch.tensor([1, 2, 2, 8, 1, 0]), torch.tensor([0, 2, 2, *([6] if last else [])])
    weights = torch.rand(6) if mode == "sum" else None
    assert torch.equal(module[0](ids, offsets, weights), expected[0](ids, offsets, weights))
    dequantise(module)
    assert torch.equal(module[0](ids, offsets, weights), expected[0](ids, offsets, weights))


@pytest.mark.parametrize(
    ("bits", "most"), [(16, 0.52), (8, 0.3), (5, 0.2), (4, 0.16), (3, 0.13), (2, 0.1), (1, 0.07)]
)
def test_files_are_small(tmp_path, bits, most):
    module = mlp(256)
    sizes = []
    for name in ("float", "packed"):
        save_file(module.state_dict(), tmp_path / f"{name}.safetensors")
        torch.save(module.state_dict(), tmp_path / f"{name}.pt")
        sizes.append([(tmp_path / f"{name}{e}").stat().st_size for e in (".safetensors", ".pt")])
        if name == "float":
            quantise(module, bits)
    for whole, small in zip(*sizes, strict=True):
        assert small <= most * whole


@pytest.mark.parametrize("bits", [16, 8, 6, 5, 4, 3, 2, 1])
def test_saved_is_loaded_bit_for_bit(tmp_path, bits):
    module, batch = zoo(), zoo_input()
    record = quantise(module, bits, group_size=4)
    torch.save((record, module.state_dict()), tmp_path / "file.pt")
    record, state = torch.load(tmp_path / "file.pt", weights_only=True)
    again = zoo(seed=1)
    requantise(again, record)
    again.load_state_dict(state, strict=True)
    assert torch.equal(again(*batch), module(*batch))


def test_bits_by_name_and_the_longest_name_counts():
    module = nn.ModuleDict({"actor": mlp(), "critic": mlp()})
    record = quantise(module, {"actor": 8.0, "actor.2": 4, "actor.4": 32})
    bits = {name: entry["bits"] for name, entry in record["layers"].items()}
    assert bits == {"actor.0": 8, "actor.2": 4}
    assert record["left"] == {
        "actor.4": "kept at 32 bits",
        **{f"critic.{i}": "not asked for" for i in (0, 2, 4)},
    }
    assert isinstance(module["critic"][0], nn.Linear)


def test_layers_and_keep_name_what_is_inside_them():
    module = nn.ModuleDict({"actor": mlp(), "critic": mlp()})
    record = quantise(module, 8, layers=["actor", "critic.0"], keep=["actor.4"])
    assert list(record["layers"]) == ["actor.0", "actor.2", "critic.0"]
    assert record["left"]["actor.4"] == "kept"


def test_dequantised_layers_are_plain_and_the_same():
    module, batch = zoo(), zoo_input()
    quantise(module, 4)
    before = module(*batch)
    module.train()
    dequantise(module)
    assert torch.equal(module(*batch), before)
    assert type(module.conv2) is nn.Conv2d
    assert module.table.padding_idx == 0
    assert module.state_dict().keys() == zoo().state_dict().keys()
    module(*batch).sum().backward()
    assert module.conv2.weight.grad is not None
    assert all(part.training for part in module.modules())


def test_gradients_reach_inputs_and_biases():
    module = mlp()
    bias = module[0].bias
    quantise(module, 8)
    x = torch.randn(2, 8, requires_grad=True)
    module(x).sum().backward()
    assert module[0].bias is bias
    assert bias.grad is not None
    assert bool(x.grad.abs().sum() > 0)
    assert [name for name, _ in module.named_parameters()] == ["0.bias", "2.bias", "4.bias"]


def test_a_cached_weight_is_outside_the_state_and_dropped_when_that_changes():
    module, other, x = mlp(), mlp(seed=1), torch.randn(2, 8)
    record = quantise(module, 8, cached=True)
    uncached = mlp()
    quantise(uncached, 8)
    with torch.inference_mode():
        module(x)
    assert module[0].weight is module[0].weight
    assert uncached[0].weight is not uncached[0].weight
    assert module.state_dict().keys() == uncached.state_dict().keys()
    y = x.clone().requires_grad_()
    module(y).sum().backward()  # what inference_mode cached can be trained through
    assert torch.equal(module(x), uncached(x))

    quantise(other, 8)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module(x), other(x))
    assert module.double()(x.double()).dtype == torch.float64

    again = mlp()
    requantise(again, record, cached=True)
    assert again[0].weight is again[0].weight
    kept = again[0].weight
    again[0].scale.mul_(2)
    assert again[0].weight is kept
    again[0].forget()
    assert torch.equal(again[0].weight, 2 * kept)


def test_cached_tables_read_the_same_rows():
    plain, cached, batch = zoo(), zoo(), zoo_input()
    quantise(plain, 4)
    quantise(cached, 4, cached=True)
    assert torch.equal(plain(*batch), cached(*batch))


def test_a_copy_computes_the_same_and_moves_by_itself():
    module, x = mlp(), torch.randn(2, 8)
    quantise(module, 8)
    copied = copy.deepcopy(module)
    copied[0].scale.zero_()
    assert not torch.equal(module(x), copied(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_stay_what_they_are(dtype):
    module, x = mlp().to(dtype), torch.randn(5, 8, dtype=dtype)
    before = module(x)
    quantise(module, 8)
    assert module(x).dtype == dtype
    assert torch.allclose(module(x), before, atol=0.05)


def test_shared_modules_and_shared_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(256, 32)
            self.same = self.table
            self.head = nn.Linear(32, 256, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.table(ids) + self.same(ids))

    module, ids = Tied(), torch.randint(0, 256, (2, 3))
    assert list(quantisable(module)) == ["table"]
    expected = copy.deepcopy(module)
    expected.table.weight.data.copy_(rounded(expected.table.weight, 8))
    record = quantise(module, {"table": 8})  # the head follows
    assert list(record["layers"]) == ["table", "head"]
    assert module.same is module.table
    assert module.head.codes is module.table.codes
    assert torch.equal(module(ids), expected(ids))
    torch.save(module.state_dict(), tmp_path / "tied.pt")
    assert (tmp_path / "tied.pt").stat().st_size < 256 * 32 * 2
    again = Tied()
    requantise(again, record)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(ids), module(ids))
    dequantise(module)
    assert module.head.weight is module.table.weight

    with pytest.raises(ConfigurationError, match=r"table and head share one weight.*not 4 and 8"):
        quantise(Tied(), {"table": 8, "head": 4})
    with pytest.raises(ConfigurationError, match="shares the weight of head, which is left"):
        quantise(Tied(), 8, keep=["head"])


def test_what_is_left_is_named():
    class Own(nn.Linear):
        pass

    module = nn.ModuleDict(
        {
            "own": Own(3, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "normed": prune.identity(nn.Linear(3, 3), "weight"),
            "heard": nn.Linear(3, 3),
            "renormed": nn.Embedding(4, 3, max_norm=1.0),
            "up": nn.ConvTranspose2d(2, 2, 2),
            "lazy": nn.LazyLinear(3),
            "free": nn.ParameterList([torch.zeros(2, 2)]),
            "linear": nn.Linear(3, 3),
        }
    )
    module["heard"].register_forward_hook(lambda *_: None)
    record = quantise(module, 8)
    assert list(record["layers"]) == ["linear"]
    reasons = {
        "own": "may do other things than the Linear",
        "attention": "a MultiheadAttention, which has no packed form",
        "attention.out_proj": "may do other things",
        "normed": "a hook",
        "heard": "hooks listen",
        "renormed": "max_norm",
        "up": "no packed form",
        "lazy": "not initialised",
        "free": "ParameterList",
    }
    assert record["left"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in record["left"][name]
    with pytest.raises(ConfigurationError, match="packed already, in 8 bits"):
        quantise(module, 4, layers=["linear"])


def test_a_mask_is_packed_with_its_weight():
    class Mask(nn.Module):
        def forward(self, weight):
            return weight * (weight > 0)

    module, x = mlp(), torch.randn(2, 8)
    parametrize.register_parametrization(module[0], "weight", Mask())
    expected = by_rounding(nn.Sequential(nn.Linear(8, 16)), 4)
    expected[0].weight.data = rounded(module[0].weight, 4)
    expected[0].bias.data = module[0].bias.data
    record = quantise(module, 4)
    assert torch.equal(module[0](x), expected(x))
    again = mlp()
    requantise(again, record)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize("fast", [False, True])
def test_inside_a_transformer_layer_that_reads_its_weights(fast):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    expected = by_rounding(layer, 8)
    quantise(layer, 8)
    x = torch.randn(2, 3, 8)
    with torch.set_grad_enabled(not fast):
        assert torch.allclose(layer(x), expected(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@pytest.mark.parametrize("head", [False, True])
@torch.no_grad()  # a position bias with gradient takes another way through T5's attention
def test_language_models(tmp_path, kind, head):
    if kind == "bert" and head:
        pytest.skip("it does not write")
    model, tokenizer = load_backbone(tiny_model(kind, tmp_path, layers=1), head=head)
    expected, again = copy.deepcopy(model), copy.deepcopy(model)
    for layer in quantisable(expected).values():
        layer.weight.data.copy_(rounded(layer.weight, 8))
    record = quantise(model, 8)
    assert not record["left"]
    batch = tokenizer(["go to the red ball"], return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"]}
    if kind == "t5" and head:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    out = model(**inputs)[0]
    assert torch.equal(out, expected(**inputs)[0])
    for parameter in again.parameters():
        parameter.data.zero_()
    requantise(again, record)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(**inputs)[0], out)


def wrong(record, **changes):
    return {**record, **changes}


def test_records_of_strangers_are_checked_before_anything_changes():
    record = quantise(mlp(), 8)
    entry = {"kind": "Linear", "bits": 8, "group_size": None}
    for bad, message in [
        (None, "no record of quantise"),
        ("quantise", "no record of quantise"),
        (wrong(record, operator="prune"), "no record of quantise"),
        (wrong(record, layers={}), "names no layers"),
        (wrong(record, layers=[1]), "names no layers"),
        (wrong(record, layers={"0": entry, "7": entry}), "layer 7, and here there is none"),
        (wrong(record, layers={"0": entry, 7: entry}), "layer 7, and here there is none"),
        (wrong(record, layers={"0": {**entry, "kind": "Conv1d"}}), "here it is a Linear"),
        (wrong(record, layers={"0": {**entry, "kind": ["x"]}}), "here it is a Linear"),
        (wrong(record, layers={"0": {**entry, "bits": 9}}), "bits of 0 must be 1 .binary.*not 9"),
        (wrong(record, layers={"0": {**entry, "bits": "8"}}), "bits of 0 must be a whole number"),
        (wrong(record, layers={"0": {**entry, "bits": 32}}), "32 bits: leave it out"),
        (wrong(record, layers={"0": {**entry, "group_size": 0}}), "group_size of 0 must be at"),
        (wrong(record, layers={"0": {**entry, "extra": 1}}), "expected kind, bits and group_size"),
        (wrong(record, layers={"0": 8}), "expected kind, bits and group_size"),
    ]:
        module = mlp()
        with pytest.raises(ConfigurationError, match=message):
            requantise(module, bad)
        assert type(module[0]) is nn.Linear


def test_wrong_arguments_are_named():
    for arguments, message in [
        ({"bits": 9}, "bits must be 1 .binary., 2 .ternary., 3 to 8, 16 .* not 9"),
        ({"bits": "8"}, "bits must be a whole number"),
        ({"bits": {"0": 8.5}}, "bits of 0 must be a whole number"),
        ({"bits": {"actor": 8}}, "bits: there is no actor; nearest: "),
        ({"bits": {"1": 8}}, "bits: 1 stays as it is: nothing inside"),
        ({"bits": 8, "layers": ["9"]}, "layers: there is no 9"),
        ({"bits": 8, "layers": "0"}, "must be a list of names"),
        ({"bits": 8, "keep": ["9"]}, "keep: there is no 9"),
        ({"bits": 8, "group_size": 0}, "group_size must be at least 1"),
        ({"bits": 8, "keep": [""]}, "nothing to quantise"),
        ({"bits": 32}, "nothing to quantise .0: kept at 32 bits"),
    ]:
        module = mlp()
        with pytest.raises(ConfigurationError, match=message):
            quantise(module, **arguments)
        assert type(module[0]) is nn.Linear
    with pytest.raises(ConfigurationError, match=r"give nn.Sequential\(layer\)"):
        quantise(nn.Linear(2, 2), 8)
    with pytest.raises(ConfigurationError, match="nothing is packed"):
        dequantise(mlp())
    module = mlp()
    module[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ConfigurationError, match="the weight of 2 is not finite"):
        quantise(module, 8)
    module[2].weight.data[0, 0] = 1e6
    with pytest.raises(ConfigurationError, match="2 has weights above 65504"):
        quantise(module, 16)
    assert type(module[0]) is nn.Linear


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: weight_norm(nn.Linear(4, 4)), "computes its weight from several tensors"),
        (lambda: nn.Linear(4, 4, dtype=torch.cfloat), "of torch.complex64, which is not rounded"),
        (lambda: nn.Linear(4, 4, device="meta"), "on the meta device"),
        (lambda: nn.LazyLinear(4), "not initialised yet"),
    ],
)
@pytest.mark.parametrize("operator", [quantise, fake_quantise])
def test_weights_that_cannot_be_rounded_are_left_with_the_reason(make, reason, operator):
    record = operator(nn.Sequential(make(), nn.Linear(4, 2)), 8)
    assert list(record["layers"]) == ["1"]
    assert reason in record["left"]["0"]
    with pytest.raises(ConfigurationError, match=f"0: .*{reason}"):
        operator(nn.Sequential(make()), 8)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_layers_without_inputs_or_outputs_are_called_and_reloaded(bits):
    def make():
        return nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 2), nn.Linear(2, 0))

    net, other = make(), make()
    record = quantise(net, bits)
    assert net(torch.zeros(3, 0)).shape == (3, 0)
    requantise(other, record)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net[:2](torch.zeros(3, 0)), other[:2](torch.zeros(3, 0)))


def test_means_that_overflow_are_refused():
    net = nn.Sequential(nn.Linear(4, 1))
    nn.init.constant_(net[0].weight, 3e38)
    with pytest.raises(ConfigurationError, match="0 has weights so large that their mean"):
        quantise(net, 1)
    quantise(net, 8)
    assert bool(net[0].weight.isfinite().all())


class Listed(nn.Module):
    """Layers that are called by something other than the children they are."""

    def __init__(self, hold):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)
        self.held = hold(self)

    def forward(self, x):
        return self.second(self.first(x))


HOLDERS = [
    lambda m: [m.first, m.second],
    lambda m: {"deep": ({"in": [m.second]},)},
    lambda m: m.second.forward,
    lambda m: partial(torch.add, other=m.second),
    lambda m: [nn.Sequential(m.second)],  # a list hides it, so that it is no child
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_layers_that_plain_attributes_hold_are_refused(hold):
    net, x = Listed(hold), torch.randn(3, 8)
    expected = net(x)
    with pytest.raises(ConfigurationError, match=r"held of Listed would go on referring to"):
        quantise(net, 8)
    assert torch.equal(net(x), expected)


def test_what_is_held_but_not_replaced_is_no_matter():
    net = Listed(lambda m: [m.first, torch.relu, None, "first"])
    assert list(quantise(net, 8, keep=["first"])["layers"]) == ["second"]
    net.held = [net.second]
    with pytest.raises(ConfigurationError, match="held of Listed"):
        dequantise(net)
    net.held = None
    dequantise(net)
    outer = nn.Sequential(Listed(lambda m: [m.first]))
    with pytest.raises(ConfigurationError, match=r"0\.held of Sequential"):
        quantise(outer, 8)
    fake_quantise(outer, 8)  # the layers stay the objects they are
    with pytest.raises(ConfigurationError, match=r"0\.held of Sequential"):
        harden(outer)


def test_a_weight_that_is_another_module_s_too_is_not_offered():
    class Own(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

    layers = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    layers["own"] = Own(layers["b"].weight)
    layers["d"] = nn.Linear(4, 4)
    layers["d"].weight = layers["c"].weight
    assert list(quantisable(layers)) == ["a", "c"]
    assert list(quantise(layers, 4)["layers"]) == ["a", "c", "d"]
