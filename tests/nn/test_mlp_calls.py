"""Layers that skip torch's way from a module to its function are the same layers."""

import copy

import pytest
import torch
from torch import nn

from rl_lightning.nn.mlp import MLP, linear, mlp


def twins(activation="tanh", out_dim=2):
    torch.manual_seed(0)
    ours = mlp(3, [8, 8], activation, out_dim)
    return ours, nn.Sequential(*copy.deepcopy(ours))


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "gelu", "silu"])
@pytest.mark.parametrize("out_dim", [None, 2])
def test_numbers_and_gradients_are_those_of_a_sequential(activation, out_dim):
    ours, theirs = twins(activation, out_dim)
    x = torch.randn(5, 3)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = ours(own), theirs(other)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(own.grad, other.grad)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(own.detach(), x)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_what_is_not_its_own_is_not_written_over():
    x = torch.randn(5, 3)
    kept = x.clone()
    assert torch.equal(MLP(nn.Tanh(), nn.ReLU())(x), kept.tanh().relu())
    assert torch.equal(MLP(nn.Identity(), nn.Tanh())(x), kept.tanh())
    assert torch.equal(MLP()(x), x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "global"])
def test_hooks_are_heard(kind):
    ours, _ = twins()
    heard = []

    def hear(module, *args):
        heard.append(type(module).__name__)

    for layer in ours:
        if kind == "forward":
            layer.register_forward_hook(hear)
        elif kind == "pre":
            layer.register_forward_pre_hook(hear)
        elif kind == "backward":
            layer.register_full_backward_hook(hear)
    handle = nn.modules.module.register_module_forward_hook(hear) if kind == "global" else None
    try:
        ours(torch.randn(5, 3, requires_grad=True)).sum().backward()
    finally:
        if handle is not None:
            handle.remove()
    assert heard.count("Linear") == 3
    assert heard.count("Tanh") == 2


def test_other_layers_are_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2.0 * super().forward(x)

    layer, x = Doubled(3, 2), torch.randn(5, 3)
    assert torch.equal(linear(layer, x), layer(x))
    assert torch.equal(MLP(layer, nn.Tanh())(x), layer(x).tanh())
    plain = nn.Linear(3, 2)
    nn.utils.parametrizations.weight_norm(plain)
    assert torch.equal(linear(plain, x), plain(x))


def test_pruned_and_compiled_layers_stay_what_they_are():
    ours, _ = twins()
    nn.utils.prune.l1_unstructured(ours[0], "weight", 0.5)
    x = torch.randn(5, 3)
    assert torch.equal(ours(x), nn.Sequential(*ours)(x))
    assert (ours[0].weight == 0).float().mean() == 0.5
    bf16 = twins()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bf16[0](x), bf16[1](x))
