"""Layers with learned noise."""

import pytest
import torch
from torch import nn

from rl_lightning.nn.noisy import NoisyLinear, resample_noise, silence_noise


def f(x):
    return x.sign() * x.abs().sqrt()


def test_a_silenced_layer_is_the_plain_one():
    layer, x = NoisyLinear(4, 3), torch.randn(5, 4)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), plain)  # no noise before the first draw
    layer.resample()
    assert not torch.allclose(layer(x), plain)
    layer.silence()
    assert torch.equal(layer(x), plain)


def test_noise_is_factorised():
    layer = NoisyLinear(4, 3)
    torch.manual_seed(2)
    layer.resample()
    torch.manual_seed(2)
    inner, outer = f(torch.randn(4)), f(torch.randn(3))
    weight = layer.weight + layer.weight_sigma * outer[:, None] * inner
    bias = layer.bias + layer.bias_sigma * outer
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer(x), x @ weight.T + bias)


def test_initial_values():
    layer = NoisyLinear(16, 3, sigma=0.5)
    assert (layer.weight_sigma == 0.125).all()
    assert (layer.bias_sigma == 0.125).all()
    assert layer.weight.abs().max() <= 0.25
    assert (NoisyLinear(16, 3, sigma=0.1).bias_sigma == 0.025).all()


def test_a_new_draw_changes_every_layer_of_a_network():
    net = nn.Sequential(NoisyLinear(4, 8), nn.ReLU(), nn.Sequential(NoisyLinear(8, 2)))
    x = torch.randn(3, 4)
    outs = []
    for _ in range(3):
        resample_noise(net)
        outs.append((net[0].noise_in.clone(), net[2][0].noise_out.clone(), net(x)))
    for a, b in [(0, 1), (1, 2)]:
        assert all(not torch.equal(p, q) for p, q in zip(outs[a], outs[b], strict=True))
    silence_noise(net)
    assert net[0].noise_in.abs().sum() == net[2][0].noise_out.abs().sum() == 0


def test_noise_is_learned_and_not_saved():
    layer = NoisyLinear(4, 3)
    layer.resample()
    layer(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert set(layer.state_dict()) == {"weight", "bias", "weight_sigma", "bias_sigma"}


@pytest.mark.parametrize("size", [1, 5])
def test_the_noise_has_mean_zero(size):
    layer = NoisyLinear(3, size)
    x, total = torch.ones(1, 3), torch.zeros(1, size)
    plain = layer(x)
    for _ in range(2000):
        layer.resample()
        total += layer(x).detach()
    torch.testing.assert_close(total / 2000, plain.detach(), atol=0.06, rtol=0)
