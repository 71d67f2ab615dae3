"""Networks without some nodes compute what they did with these nodes masked."""

import copy

import pytest
import torch
from torch import nn

from rl_lightning.compress import (
    bake,
    node_groups,
    prune_nodes,
    prune_weights,
    quantise,
    restructure,
)
from rl_lightning.compress.nodes import cut_nodes, least_important, mask_nodes, node_scores
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.nn.noisy import NoisyLinear


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def cnn():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 10),
        nn.Sigmoid(),
        nn.Linear(10, 3),
    )
    net(IMAGES)  # statistics that are not 0 and 1
    return net.eval()


class Residual(nn.Module):
    """Two blocks on one stream."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 8)
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 8)
        self.c = nn.Linear(8, 12)
        self.d = nn.Linear(12, 8)
        self.leave = nn.Linear(8, 2)

    def forward(self, x):
        h = self.enter(x).relu()
        h = h + self.b(self.a(h).relu())
        h = h + self.d(self.c(h).tanh())
        return self.leave(h)


def residual():
    torch.manual_seed(0)
    return Residual()


torch.manual_seed(1)
X = torch.randn(5, 4)
IMAGES = torch.randn(4, 1, 6, 6)


def gone(record, tensor, dim=0):
    """Indices that a record removed."""
    stated = record["tensors"][tensor]
    kept = stated["keep"][dim]
    return [] if kept is None else [i for i in range(stated["shape"][dim]) if i not in kept]


def masked(net, columns):
    """A network with what leaves some nodes at zero."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for layer, lost in columns.items():
            net.get_submodule(layer).weight[:, lost] = 0.0
    return net


def test_a_perceptron_is_the_masked_one():
    net, whole = mlp(), mlp()
    record = prune_nodes(net, 0.5, X)
    assert [tuple(net[i].weight.shape) for i in (0, 2, 4)] == [(4, 4), (3, 4), (2, 3)]
    assert (net[0].out_features, net[2].in_features, net[2].out_features) == (4, 4, 3)
    hand = masked(whole, {"2": gone(record, "0.weight"), "4": gone(record, "2.weight")})
    torch.testing.assert_close(net(X), hand(X))
    assert not torch.allclose(net(X), whole(X))
    assert record["nodes_left"] == {"0": 4, "2": 3}
    assert record["refused"] == {"4": "its nodes are the network's outputs"}


def test_convolutions_with_batch_norm_and_flatten_are_the_masked_ones():
    net, whole = cnn(), cnn()
    record = prune_nodes(net, 0.5, IMAGES)
    first, second, third = (gone(record, f"{i}.weight") for i in (0, 3, 7))
    assert (len(first), len(second), len(third)) == (4, 3, 5)
    assert gone(record, "1.running_var") == gone(record, "1.bias") == first
    flat = [4 * channel + place for channel in second for place in range(4)]
    hand = masked(whole, {"3": first, "7": flat, "9": third})
    torch.testing.assert_close(net(IMAGES), hand(IMAGES))
    assert (net[1].num_features, net[3].in_channels, net[3].out_channels) == (4, 4, 3)
    assert net[7].in_features == 12
    net.train()(IMAGES)


def test_a_residual_stream_is_the_masked_one():
    net, whole = residual(), residual()
    record = prune_nodes(net, 0.25, X)
    stream = gone(record, "enter.weight")
    assert stream == gone(record, "b.weight") == gone(record, "d.weight")
    assert len(stream) == 2
    hand = masked(
        whole,
        {
            "a": stream,
            "c": stream,
            "leave": stream,
            "b": gone(record, "a.weight"),
            "d": gone(record, "c.weight"),
        },
    )
    torch.testing.assert_close(net(X), hand(X))


class Joined(nn.Module):
    """Two encoders of one input, side by side into one layer and two heads."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 8)
        self.join = nn.Linear(14, 10)
        self.policy, self.value = nn.Linear(10, 3), nn.Linear(10, 1)

    def forward(self, x):
        h = torch.cat([self.left(x).tanh(), self.right(x).relu()], -1)
        h = self.join(h).relu()
        return {"logits": self.policy(h), "value": self.value(h).squeeze(-1)}


def test_concatenated_and_shared_inputs_are_the_masked_ones():
    torch.manual_seed(0)
    net = Joined()
    whole = copy.deepcopy(net)
    record = prune_nodes(net, 0.5, X)
    side = gone(record, "left.weight") + [6 + i for i in gone(record, "right.weight")]
    assert len(side) == 7
    assert gone(record, "join.weight", 1) == side
    rest = gone(record, "join.weight")
    hand = masked(whole, {"join": side, "policy": rest, "value": rest})
    for name, expected in hand(X).items():
        torch.testing.assert_close(net(X)[name], expected)
    assert set(record["refused"]) == {"policy", "value"}


class Gated(nn.Module):
    """u · σ(v) with u and v the halves of one layer."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 12), nn.Linear(6, 2)

    def forward(self, x):
        u, v = self.enter(x).chunk(2, -1)
        return self.leave(u * v.sigmoid())


def test_the_halves_of_a_gate_go_together():
    torch.manual_seed(0)
    net = Gated()
    whole = copy.deepcopy(net)
    record = prune_nodes(net, 0.5, X)
    lost = gone(record, "leave.weight", 1)
    assert gone(record, "enter.weight") == lost + [6 + i for i in lost]
    torch.testing.assert_close(net(X), masked(whole, {"leave": lost})(X))


def test_a_layer_norm_is_over_the_nodes_that_stay():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    whole = copy.deepcopy(net)
    record = prune_nodes(net, 0.5, X)
    kept = record["tensors"]["0.weight"]["keep"][0]
    h = nn.functional.layer_norm(whole[0](X)[:, kept], (4,))
    expected = nn.functional.linear(h.relu(), whole[3].weight[:, kept], whole[3].bias)
    torch.testing.assert_close(net(X), expected)
    assert net[1].normalized_shape == (4,)


def test_depthwise_and_transposed_convolutions_follow():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 1),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.PReLU(6),
        nn.ConvTranspose2d(6, 4, 2),
        nn.GroupNorm(1, 4),
        nn.Conv2d(4, 1, 1),
    )
    whole = copy.deepcopy(net)
    record = prune_nodes(net, {"0": 0.5}, IMAGES)
    assert (net[1].groups, net[1].in_channels, net[2].num_parameters) == (3, 3, 3)
    with torch.no_grad():
        whole[3].weight[gone(record, "0.weight")] = 0.0
    torch.testing.assert_close(net(IMAGES), whole(IMAGES))
    prune_nodes(net, {"3": 0.5}, IMAGES)
    assert (net[3].out_channels, net[4].num_channels, net[5].in_channels) == (2, 2, 2)
    assert net(IMAGES).shape == whole(IMAGES).shape


# --- what goes ------------------------------------------------------------------------------------


def two_layers():
    net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0], [4.0], [1.0]]))
        net[1].weight.copy_(torch.tensor([[4.0, 2.5, 5.0]]))
    return net  # √(9 + 16) = 5, √(16 + 6.25) = 4.7, √26 = 5.1; and 7, 6.5, 6


@pytest.mark.parametrize(("importance", "lost"), [("l2", [1]), ("l1", [2])])
def test_importance_is_over_rows_and_columns(importance, lost):
    record = prune_nodes(two_layers(), 0.34, torch.ones(1, 1), importance=importance)
    assert gone(record, "0.weight") == lost


def test_taylors_importance_is_of_weight_times_gradient():
    net = two_layers()
    with pytest.raises(ConfigurationError, match=r"needs gradients, and '0.weight' has none"):
        prune_nodes(net, 0.34, torch.ones(1, 1), importance="taylor")
    for layer, gradient in ((net[0], [[0.1], [1.0], [-1.0]]), (net[1], [[0.1, 1.0, -1.0]])):
        layer.weight.grad = torch.tensor(gradient)
    record = prune_nodes(net, 0.34, torch.ones(1, 1), importance="taylor")
    assert gone(record, "0.weight") == [0]
    assert net[0].weight.grad.tolist() == [[1.0], [-1.0]]


@pytest.mark.parametrize(
    ("share", "round_to", "left"),
    [(0.5, 1, 4), (0.49, 1, 5), (0.99, 1, 1), (0.0, 1, 8), (0.5, 3, 6), (0.9, 4, 4), (0.1, 16, 8)],
)
def test_how_many_stay(share, round_to, left):
    net = mlp()
    prune_nodes(net, share, X, layers=["0"], round_to=round_to)
    assert (net[0].out_features, net[2].out_features) == (left, 6)


def test_a_share_for_each_layer():
    net = mlp()
    record = prune_nodes(net, {"0": 0.25, "2": 0.5}, X)
    assert record["nodes_left"] == {"0": 6, "2": 3}


def test_layers_that_go_together_need_one_share():
    net = residual()
    with pytest.raises(ConfigurationError, match="enter, d only lose nodes together"):
        prune_nodes(net, {"enter": 0.25, "d": 0.5}, X)
    assert prune_nodes(net, {"enter": 0.25, "d": 0.25}, X)["nodes_left"]["b"] == 6


def test_groups_say_what_may_go():
    groups = {group.layers: group for group in node_groups(residual(), X)}
    assert list(groups) == [("enter", "b", "d"), ("a",), ("c",), ("leave",)]
    assert [group.nodes for group in groups.values()] == [8, 16, 12, 2]
    assert groups[("leave",)].refused == "its nodes are the network's outputs"
    assert node_groups(residual(), X, keep=["a"])[1].refused == "keep names 'a'"


# --- records and optimizers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "inputs"), [(mlp, X), (cnn, IMAGES), (residual, X), (lambda: Joined(), X)]
)
def test_rebuilt_from_the_record_alone(make, inputs, tmp_path, monkeypatch):
    net = make()
    records = [prune_nodes(net, 0.5, inputs)]
    records.append(prune_nodes(net, 0.3, inputs, importance="l1"))
    torch.save({"records": records, "state": net.state_dict()}, tmp_path / "net.pt")
    stored = torch.load(tmp_path / "net.pt", weights_only=True)
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    other = restructure(make(), stored["records"])
    other.load_state_dict(stored["state"], strict=True)
    torch.testing.assert_close(other(inputs), net(inputs), rtol=0, atol=0)
    assert repr(other) == repr(net)


@pytest.mark.parametrize("masks_first", [True, False])
def test_with_masks_before_or_after(masks_first):
    net = mlp()
    records = [prune_weights(net, 0.5)] if masks_first else []
    records.append(prune_nodes(net, 0.5, X))
    if not masks_first:
        records.append(prune_weights(net, 0.5))
    assert [tuple(net[i].weight.shape) for i in (0, 2, 4)] == [(4, 4), (3, 4), (2, 3)]
    other = restructure(mlp(), records)
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(other(X), net(X))
    assert any((net[i].weight == 0).any() for i in (0, 2, 4))
    bake(net)
    assert torch.equal(other(X), net(X))


def mask(tensor, lost, dim):
    if lost:
        tensor.index_fill_(dim, torch.tensor(lost), 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    ],
)
@pytest.mark.parametrize(("network", "inputs"), [(mlp, X), (cnn, IMAGES)])
def test_training_goes_on_as_the_masked_networks(make, network, inputs):
    """After pruning, K steps equal K steps of the dense network under masks."""
    dense = network().double()
    inputs = inputs.double()
    optimizer = make(dense.parameters())

    def backward(net, optimizer):
        optimizer.zero_grad()
        (net(inputs) - 1.0).square().mean().backward()

    for _ in range(3):
        backward(dense, optimizer)
        optimizer.step()
    small, small_optimizer = copy.deepcopy((dense, optimizer))
    record = prune_nodes(small, 0.5, inputs, optimizers=[small_optimizer])
    tensors = dict(dense.named_parameters())

    def mask_all(of):
        for name in record["tensors"].keys() & tensors.keys():
            for dim in range(tensors[name].ndim):
                mask(of(tensors[name]), gone(record, name, dim), dim)

    mask_all(lambda p: p.data)
    for _ in range(4):
        backward(dense, optimizer)
        mask_all(lambda p: p.grad)
        optimizer.step()
        mask_all(lambda p: p.data)
        backward(small, small_optimizer)
        small_optimizer.step()
    torch.testing.assert_close(small(inputs), dense(inputs), rtol=1e-6, atol=1e-6)
    for name, parameter in small.named_parameters():
        expected = tensors[name].data
        for dim, kept in enumerate(record["tensors"].get(name, {"keep": []})["keep"]):
            if kept is not None:
                expected = expected.index_select(dim, torch.tensor(kept))
        torch.testing.assert_close(parameter.data, expected, rtol=1e-6, atol=1e-6)


def test_a_fresh_optimizer_of_the_wrong_parameters_would_differ():
    """What the state carries matters: the test above would notice its loss."""
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    net(X).sum().backward()
    optimizer.step()
    state = optimizer.state[net[0].weight]["exp_avg"]
    record = prune_nodes(net, 0.5, X, optimizers=[optimizer])
    kept = record["tensors"]["0.weight"]["keep"][0]
    assert torch.equal(optimizer.state[net[0].weight]["exp_avg"], state[kept])
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.parameters()}
    assert len(optimizer.state) == len(list(net.parameters()))


def test_a_copy_and_its_optimizer_shrink_by_the_record():
    net = mlp()
    target = copy.deepcopy(net)
    optimizer = torch.optim.Adam(target.parameters())
    record = prune_nodes(net, 0.5, X)
    restructure(target, [record], [optimizer])
    assert torch.equal(target(X), net(X))
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in target.parameters()}
    with pytest.raises(ConfigurationError, match="the record does not fit"):
        restructure(target, [record], [optimizer])


def test_state_that_cannot_be_cut_is_named_before_anything_changed():
    net = mlp()
    optimizer = torch.optim.Adafactor(net.parameters())
    net(X).sum().backward()
    optimizer.step()
    with pytest.raises(ConfigurationError, match="Adafactor keeps 'row_var' of another shape"):
        prune_nodes(net, 0.5, X, optimizers=[optimizer])
    assert net[0].out_features == 8


def test_gradients_and_frozen_parameters_stay_as_they_were():
    net = mlp()
    net[0].weight.requires_grad_(False)
    net(X).sum().backward()
    gradient = net[2].weight.grad
    record = prune_nodes(net.train(), 0.5, X)
    rows, columns = record["tensors"]["2.weight"]["keep"]
    assert torch.equal(net[2].weight.grad, gradient[rows][:, columns])
    assert [p.requires_grad for p in net[0].parameters()] == [False, True]
    assert all(part.training for part in net)


# --- what cannot go -------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.enter, self.memory = nn.Linear(4, 6), kind(6, 5, batch_first=True)
        self.hidden, self.leave = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.leave(self.hidden(self.memory(self.enter(x))[0][:, -1]).relu())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_around_a_recurrent_layer(kind):
    net, x = Recurrent(kind), torch.randn(2, 3, 4)
    with pytest.raises(ConfigurationError, match=f"'enter' cannot be pruned.*{kind.__name__}"):
        prune_nodes(net, 0.5, x, layers=["enter"])
    with pytest.raises(ConfigurationError, match=rf"'memory' \({kind.__name__}\) cannot be pruned"):
        prune_nodes(net, 0.5, x, layers=["memory"])
    assert prune_nodes(net, 0.5, x)["nodes_left"] == {"hidden": 4}
    assert net(x).shape == (2, 2)


def test_a_layer_of_unknown_kind_is_left_and_named():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), NoisyLinear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ConfigurationError, match=r"'0' cannot be pruned: .*NoisyLinear"):
        prune_nodes(net, 0.5, X, layers=["0"])


def test_the_networks_outputs_and_kept_layers():
    with pytest.raises(ConfigurationError, match="'4' cannot be pruned: its nodes are the network"):
        prune_nodes(mlp(), {"4": 0.5}, X)
    net = mlp()
    record = prune_nodes(net, 0.5, X, keep=["2"])
    assert record["nodes_left"] == {"0": 4}
    assert record["refused"]["2"] == "keep names '2'"
    with pytest.raises(ConfigurationError, match="'2' cannot be pruned: keep names '2'"):
        prune_nodes(net, {"2": 0.5}, X, keep=["2"])
    with pytest.raises(ConfigurationError, match=r"no layer can be pruned.*outputs"):
        prune_nodes(nn.Linear(4, 2), 0.5, X)


class Unseen(nn.Module):
    """A layer that is read where no gradient leads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.aside = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(h), self.aside(h.detach())


def test_what_the_trace_does_not_see_is_found_by_trying():
    net = Unseen()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ConfigurationError, match=r"nodes of a cannot be pruned: .* does not run"):
        prune_nodes(net, 0.5, X)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Squared(nn.Module):
    """A mean over nodes, which is no sum of what each gives by itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(h / h.square().mean(-1, keepdim=True).sqrt())


def test_what_would_compute_something_else_is_refused():
    with pytest.raises(ConfigurationError, match="something else than with them masked"):
        prune_nodes(Squared(), 0.5, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.0}, "share must be below 1"),
        ({"share": None}, "share must be a share in"),
        ({"share": {"0": 1.5}}, r"share\['0'\] must be between 0 and 1, not 1.5"),
        ({"share": {"first": 0.5}}, "share: the module has no layer 'first'"),
        ({"share": {"0": 0.5}, "layers": ["0"]}, "leave layers out"),
        ({"share": 0.5, "layers": ["nine"]}, "layers: the module has no layer 'nine'"),
        ({"share": 0.5, "layers": ["1"]}, r"nodes of '1' \(Tanh\) cannot be pruned: only linear"),
        ({"share": 0.5, "keep": ["nine"]}, "keep: the module has no layer 'nine'"),
        ({"share": 0.5, "importance": "l3"}, "importance='l3': use one of"),
        ({"share": 0.5, "round_to": 0}, "round_to must be at least 1, not 0"),
    ],
)
def test_wrong_arguments_of_prune_nodes(arguments, message):
    share = arguments.pop("share")
    with pytest.raises(ConfigurationError, match=message):
        prune_nodes(mlp(), share, X, **arguments)


def test_a_call_that_cannot_be_traced():
    with pytest.raises(ConfigurationError, match="Sequential cannot be traced with these inputs"):
        prune_nodes(mlp(), 0.5, torch.zeros(1, 3))


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(ConfigurationError, match=r"rl-lightning\[compress\]"):
        prune_nodes(mlp(), 0.5, X)


def good():
    return {"0.weight": {"shape": [8, 4], "keep": [[0, 1], None]}}


@pytest.mark.parametrize(
    "tensors",
    [
        None,
        ["0.weight"],
        {"nine.weight": {"shape": [8, 4], "keep": [[0], None]}},
        {"0.weight": {"shape": [9, 4], "keep": [[0], None]}},
        {"0.weight": {"keep": [[0], None]}},
        {"0.weight": [[0], None]},
        {"0.weight": {"shape": [8, 4], "keep": [[0]]}},
        {"0.weight": {"shape": [8, 4], "keep": [[], None]}},
        {"0.weight": {"shape": [8, 4], "keep": [[0, 8], None]}},
        {"0.weight": {"shape": [8, 4], "keep": [[-1, 0], None]}},
        {"0.weight": {"shape": [8, 4], "keep": [[1, 0], None]}},
        {"0.weight": {"shape": [8, 4], "keep": [[0, 0], None]}},
        {"0.weight": {"shape": [8, 4], "keep": [[0.0], None]}},
        {"0.weight": {"shape": [8, 4], "keep": [[True], None]}},
        {"0.weight": {"shape": [8, 4], "keep": ["01", None]}},
        {"0.weight": {"shape": [8, 4], "keep": [torch.tensor([0, 1]), None]}},
    ],
)
def test_a_record_of_nodes_that_does_not_fit_changes_nothing(tensors):
    net = mlp()
    with pytest.raises(ConfigurationError):
        restructure(net, [{"operator": "prune_nodes", "tensors": tensors}])
    assert net(X).equal(mlp()(X))
    restructure(net, [{"operator": "prune_nodes", "tensors": good()}])
    assert net[0].out_features == 2


def test_masking_no_node_changes_nothing():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    (group, *_) = node_groups(network, x)
    before = network(x)
    mask_nodes(network, [(group, [])])
    assert torch.equal(network(x), before)
    mask_nodes(network, [(group, [1, 3])])
    assert (network[2].weight[:, [1, 3]] == 0).all()
    assert (network[2].weight[:, [0, 2]] != 0).all()


def test_what_is_missing_or_too_late_is_said():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ConfigurationError, match=r"give its inputs, prune_nodes\(module, share, x"):
        prune_nodes(net, 0.5)
    assert not net[0]._forward_hooks  # the call that failed has left nothing behind
    quantise(net, 8)
    with pytest.raises(ConfigurationError, match="stored in few bits: prune first, then quantise"):
        prune_nodes(net, 0.5, torch.zeros(2, 4))


@pytest.mark.parametrize("build", [mlp, residual])
def test_nodes_that_others_choose_are_cut_as_prune_nodes_cuts(build):
    chosen, expected = build(), build()
    x = torch.randn(3, 4)
    groups = [group for group in node_groups(chosen, x) if group.refused is None]
    scores = [node_scores(chosen, group, "l2") for group in groups]
    removals = [
        (group, least_important(group, score, 0.5, 1))
        for group, score in zip(groups, scores, strict=True)
    ]
    cut_nodes(chosen, removals)
    prune_nodes(expected, 0.5, x)
    assert torch.equal(chosen(x), expected(x))
    assert [p.shape for p in chosen.parameters()] == [p.shape for p in expected.parameters()]


class Rolled(nn.Module):
    """Nodes of `inner` that reach the next layer one place further on, after those of `outer`."""

    def __init__(self, norm, shift_outer=0, bias=True):
        super().__init__()
        self.outer, self.norm = nn.Linear(4, 8, bias=bias), norm
        self.inner, self.leave = nn.Linear(8, 8, bias=bias), nn.Linear(8, 2, bias=bias)
        self.shift_outer = shift_outer

    def forward(self, x):
        h = self.norm(self.outer(x)).relu().roll(self.shift_outer, 1)
        h = self.inner(h).relu()
        return self.leave(h if self.shift_outer else h.roll(1, 1))


class Scaled(nn.Module):
    """A norm of the user's own, with a free parameter."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x):
        return self.scale * x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", [nn.Identity, nn.LayerNorm, lambda n: nn.GroupNorm(1, n), Scaled])
@pytest.mark.parametrize("x", [torch.randn(5, 4), torch.zeros(5, 4)])
def test_nodes_that_move_are_refused_whatever_the_others_reach(norm, x):
    torch.manual_seed(0)
    net = Rolled(norm(8) if norm is not nn.Identity else norm())
    for layer in (net.outer, net.inner, net.leave):
        nn.init.zeros_(layer.bias)  # so that an input of zeros has outputs of zeros
    with pytest.raises(ConfigurationError, match=r"nodes of inner cannot.*something else"):
        prune_nodes(net, 0.5, X if norm is Scaled and not x.any() else x)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(1, 8)])
def test_nodes_that_move_after_their_norm_are_refused(norm):
    torch.manual_seed(0)
    with pytest.raises(ConfigurationError, match=r"nodes of outer cannot.*something else"):
        prune_nodes(Rolled(norm, shift_outer=1), 0.5, X)


def test_an_output_layer_of_zeros_does_not_hide_what_is_wrong():
    net = Rolled(nn.Identity())
    nn.init.zeros_(net.leave.weight)
    with pytest.raises(ConfigurationError, match=r"nodes of inner cannot.*something else"):
        prune_nodes(net, 0.5, X)


def test_a_group_norm_over_channels_is_over_those_that_stay():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 4, 1), nn.GroupNorm(1, 4), nn.ReLU(), nn.Conv1d(4, 1, 1))
    whole, x = copy.deepcopy(net), torch.randn(3, 2, 5)
    kept = prune_nodes(net, 0.5, x)["tensors"]["0.weight"]["keep"][0]
    h = nn.functional.group_norm(whole[0](x)[:, kept], 1).relu()
    expected = nn.functional.conv1d(h, whole[3].weight[:, kept], whole[3].bias)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_weights_that_are_not_finite_are_named(layer, value):
    net = mlp()
    net[layer].weight.data[0, 0] = value
    with pytest.raises(ConfigurationError, match=rf"'{layer}.weight' is not finite"):
        prune_nodes(net, 0.5, X)


def test_outputs_that_are_not_finite():
    with pytest.raises(ConfigurationError, match="output 0 of Sequential is not finite"):
        prune_nodes(mlp(), 0.5, X * float("nan"))
    net = nn.Sequential(*mlp(), Masking())
    prune_nodes(net, 0.5, X)  # an action that is not allowed is no fault
    assert net[0].out_features == 4


class Masking(nn.Module):
    def forward(self, logits):
        return logits.masked_fill(torch.tensor([True, False]), -torch.inf)


def test_old_weight_norm_is_refused_in_a_sentence():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(4, 8))
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ConfigurationError, match=r"cannot be copied.*remove_weight_norm"):
        prune_nodes(net, 0.5, X)


class Averaged(torch.optim.SGD):
    """Keeps averages of the parameters beside its state."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.averages = {"all": [p.detach().clone() for p in self.param_groups[0]["params"]]}


class Wrapped(torch.optim.SGD):
    """Another optimizer around one, which shares its groups."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.inner = torch.optim.Adam(self.param_groups)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state


@pytest.mark.parametrize(("kind", "held"), [(torch.optim.LBFGS, "_params"), (Averaged, "averages")])
def test_optimizers_that_keep_parameters_elsewhere_are_refused(kind, held):
    net = mlp()
    optimizer = kind(net.parameters())
    message = f"{kind.__name__} keeps tensors in its '{held}'.*build the optimizer after pruning"
    with pytest.raises(ConfigurationError, match=message):
        prune_nodes(net, 0.5, X, optimizers=[optimizer])
    assert net[0].out_features == 8
    other = kind(nn.Linear(2, 2).parameters())  # of another network: no matter
    prune_nodes(net, 0.5, X, optimizers=[other])
    assert net[0].out_features == 4


def test_an_optimizer_around_another_with_the_same_groups_goes_on():
    net = mlp()
    optimizer = Wrapped(net.parameters())
    prune_nodes(net, 0.5, X, optimizers=[optimizer])
    held = {id(p) for p in optimizer.inner.param_groups[0]["params"]}
    assert held == {id(p) for p in net.parameters()}
