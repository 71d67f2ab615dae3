"""Weights that are masked stay masked."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from rl_lightning.compress import (
    bake,
    fake_quantise,
    prune_weights,
    quantise,
    restructure,
)
from rl_lightning.compress.weights import smallest_kept
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.nn.mlp import mlp


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


X = torch.randn(5, 1, 6, generator=torch.Generator().manual_seed(1))


def zeros(layer):
    return int((layer.weight == 0).sum())


def test_the_smallest_magnitudes_go_and_the_earlier_of_equals():
    a, b = torch.tensor([[3.0, 1.0], [2.0, 5.0]]), torch.tensor([0.5, 1.0, 9.0])
    kept = smallest_kept([a, b], 3 / 7)
    assert kept[0].tolist() == [[True, False], [True, True]]
    assert kept[1].tolist() == [False, False, True]


def test_the_largest_of_each_layer_stays():
    small, large = torch.tensor([0.1, 0.2]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    kept = smallest_kept([small, large], 0.5)
    assert kept[0].tolist() == [False, True]
    assert kept[1].tolist() == [False, False, True, True]
    assert [k.sum() for k in smallest_kept([small, large], 0.999)] == [1, 1]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_is_masked_by_hand(scope):
    net, by_hand = network(), network()
    prune_weights(net, 0.5, scope)
    sizes = [by_hand[i].weight.detach().abs() for i in (0, 3)]
    if scope == "global":
        cut = torch.cat([s.flatten() for s in sizes]).sort().values[(12 + 48) // 2]
        cuts = [cut, cut]
    else:
        cuts = [s.flatten().sort().values[s.numel() // 2] for s in sizes]
    with torch.no_grad():
        for i, size, cut in zip((0, 3), sizes, cuts, strict=True):
            by_hand[i].weight.mul_(size >= cut)
    assert torch.equal(net(X), by_hand(X))


def test_the_scopes_differ():
    together, alone = network(), network()
    with torch.no_grad():
        for net in (together, alone):
            net[0].weight.mul_(100.0)
    prune_weights(together, 0.5, "global")
    prune_weights(alone, 0.5, "layer")
    assert (zeros(together[0]), zeros(together[3])) == (0, 30)
    assert (zeros(alone[0]), zeros(alone[3])) == (6, 24)


def test_a_share_for_each_layer_and_some_layers():
    net = network()
    record = prune_weights(net, {"3": 0.75})
    assert (zeros(net[0]), zeros(net[3])) == (0, 36)
    assert record == {"operator": "prune_weights", "layers": ["3"]}
    net = network()
    prune_weights(net, 0.5, layers=["0"])
    assert (zeros(net[0]), zeros(net[3])) == (6, 0)


def train(net, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(X) - 1.0).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    ],
)
def test_zeros_stay_zeros_whatever_the_optimizer_remembers(make):
    net = network()
    optimizer = make(net.parameters())
    train(net, optimizer)  # with momentum in what will be masked
    prune_weights(net, 0.5, "layer")
    hidden = [net[i].weight == 0 for i in (0, 3)]
    before = net[3].weight.detach().clone()
    train(net, optimizer)
    assert [int(h.sum()) for h in hidden] == [6, 24]
    for i, h in zip((0, 3), hidden, strict=True):
        assert (net[i].weight[h] == 0).all()
    assert not torch.equal(net[3].weight, before)


def test_a_second_call_prunes_further_by_what_is_computed_with():
    net = network()
    prune_weights(net, 0.5, "layer")
    first = net[3].weight == 0
    with torch.no_grad():
        net[3].parametrizations.weight.original.fill_(10.0)
    prune_weights(net, 0.75, "layer")
    assert zeros(net[3]) == 36
    assert (net[3].weight[first] == 0).all()
    assert len(net[3].parametrizations.weight) == 1


def test_saved_is_loaded_by_the_record_alone(tmp_path):
    net = network()
    record = prune_weights(net, 0.7)
    torch.save({"record": record, "state": net.state_dict()}, tmp_path / "net.pt")
    stored = torch.load(tmp_path / "net.pt", weights_only=True)
    other = restructure(network(), [stored["record"]])
    other.load_state_dict(stored["state"], strict=True)
    assert torch.equal(other(X), net(X))
    train(other, torch.optim.Adam(other.parameters(), 0.1))
    assert (zeros(other[0]), zeros(other[3])) == (zeros(net[0]), zeros(net[3]))


def test_baked_is_the_same_and_plain():
    net = network()
    records = [prune_weights(net, 0.7)]
    before = net(X)
    records.append(bake(net))
    assert torch.equal(net(X), before)
    assert net.state_dict().keys() == network().state_dict().keys()
    assert type(net[3]) is nn.Linear
    other = restructure(network(), records)
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(other(X), before)


def test_a_copy_has_masks_of_its_own():
    net = network()
    prune_weights(net, 0.5)
    other = copy.deepcopy(net)
    prune_weights(other, 0.9)
    assert zeros(other[3]) + zeros(other[0]) == 54
    assert zeros(net[3]) + zeros(net[0]) == 30


def test_the_librarys_own_quick_layers_compute_with_the_mask():
    net = mlp(4, [8, 8], out_dim=2)
    prune_weights(net, 0.5)
    x = torch.randn(3, 4)
    expected = net[4](net[2](net[0](x).tanh()).tanh())
    assert torch.equal(net(x), expected)


def test_shared_weights_are_left_alone_or_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert prune_weights(net, 0.5)["layers"] == ["1"]
    with pytest.raises(ConfigurationError, match=r"'2' cannot be pruned: its weight is shared"):
        prune_weights(net, 0.5, layers=["2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must be below 1, not 1.0"),
        ({"sparsity": -0.1}, "sparsity must be between 0 and 1, not -0.1"),
        ({"sparsity": float("nan")}, "sparsity must be between 0 and 1, not nan"),
        ({"sparsity": "half"}, "sparsity must be a number, not 'half'"),
        ({"sparsity": {"3": 2.0}}, r"sparsity\['3'\] must be between 0 and 1"),
        ({"sparsity": {"nine": 0.5}}, "no layer 'nine' with a weight to prune; it has 0, 3"),
        ({"sparsity": 0.5, "layers": ["1"]}, "no layer '1' with a weight"),
        ({"sparsity": {"3": 0.5}, "layers": ["3"]}, "leave layers out"),
        ({"sparsity": 0.5, "scope": "all"}, "scope='all': use one of global, layer"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        prune_weights(network(), **arguments)


def test_nothing_to_prune_and_nothing_to_bake():
    with pytest.raises(ConfigurationError, match="no linear or convolutional layer"):
        prune_weights(nn.ReLU(), 0.5)
    with pytest.raises(ConfigurationError, match="no mask to bake"):
        bake(network())


@pytest.mark.parametrize(
    "record",
    [
        {"operator": "prune_weights"},
        {"operator": "prune_weights", "layers": "3"},
        {"operator": "prune_weights", "layers": [3]},
        {"operator": "prune_weights", "layers": ["1"]},
        {"operator": "bake"},
        {"operator": "os.system"},
        {"operator": ["prune_weights"]},
        {},
        "prune_weights",
    ],
)
def test_a_record_that_does_not_fit_is_refused(record):
    with pytest.raises(ConfigurationError):
        restructure(network(), [record])


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 4))


def faked():
    layer = nn.Linear(4, 4)
    fake_quantise(nn.Sequential(layer), 8)
    return layer


def packed():
    net = nn.Sequential(nn.Linear(4, 4))
    quantise(net, 8)
    return net[0]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), r"parametrization \(WeightNorm"),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), r"\(SpectralNorm\)"),
        (
            old_weight_norm,
            r"computed by a hook \(weight_norm or spectral_norm\): remove that first",
        ),
        (lambda: nn.Linear(4, 4, dtype=torch.cfloat), "of torch.complex64"),
        (faked, "trained under quantisation: prune first, then quantise"),
        (packed, "stored in few bits: prune first, then quantise"),
        (lambda: nn.Linear(0, 4), "its weight is empty"),
        (lambda: nn.LazyLinear(4), "not initialised yet: call the module once"),
        (lambda: nn.Linear(4, 4, device="meta"), "on the meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_that_cannot_be_masked_are_left_or_named(make, reason):
    net = nn.Sequential(make(), nn.Linear(4, 2))
    assert prune_weights(net, 0.5)["layers"] == ["1"]
    assert zeros(net[1]) == 4
    with pytest.raises(ConfigurationError, match=f"'0' cannot be pruned: .*{reason}"):
        prune_weights(net, {"0": 0.5})
    with pytest.raises(ConfigurationError, match=rf"no linear or convolutional.*0: .*{reason}"):
        prune_weights(net[:1], 0.5)
