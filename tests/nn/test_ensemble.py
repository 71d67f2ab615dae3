"""An ensemble against its members as networks of their own."""

import pytest
import torch
from torch import nn

from rl_lightning.nn.ensemble import Ensemble

SHAPES = [((), False), ((8,), False), ((8, 6), False), ((8, 6), True)]


def member(ensemble, index):
    """One network as separate layers."""
    layers = []
    last = len(ensemble.weights) - 1
    for number, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[index].T.clone(), bias[index, 0].clone()
        layers.append(linear)
        if number < last:
            if ensemble.layer_norm:
                layers.append(nn.LayerNorm(weight.shape[2], elementwise_affine=False))
            layers.append(ensemble.activation)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("hidden", "layer_norm"), SHAPES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_an_ensemble_equals_its_members(hidden, layer_norm, activation):
    ensemble, x = Ensemble(3, 5, hidden, 2, activation, layer_norm), torch.randn(7, 5)
    out = ensemble(x)
    assert out.shape == (3, 7, 2)
    out[1].square().sum().backward()
    for index in range(3):
        alone = member(ensemble, index)
        torch.testing.assert_close(out[index], alone(x))
        if index == 1:
            alone(x).square().sum().backward()
            linears = [layer for layer in alone if isinstance(layer, nn.Linear)]
            for weight, linear in zip(ensemble.weights, linears, strict=True):
                torch.testing.assert_close(weight.grad[1], linear.weight.grad.T)
                assert weight.grad[[0, 2]].abs().sum() == 0  # members do not touch


def test_frozen_lets_gradient_through_to_the_input_only():
    ensemble = Ensemble(2, 5, (8,), 1, layer_norm=True)
    x = torch.randn(7, 5, requires_grad=True)
    (plain,) = torch.autograd.grad(ensemble(x).sum(), x)
    ensemble(x, frozen=True).sum().backward()
    torch.testing.assert_close(x.grad, plain)
    assert plain.abs().sum() > 0
    assert all(p.grad is None for p in ensemble.parameters())
    torch.testing.assert_close(ensemble(x, frozen=True), ensemble(x))


def test_layers_start_as_torch_starts_them_and_differ():
    ensemble = Ensemble(2, 100, (50,), 1)
    for weight in ensemble.weights:
        bound = weight.shape[1] ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
        assert not torch.equal(weight[0], weight[1])


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation must be one of .*, not 'sine'"):
        Ensemble(2, 3, (), 1, "sine")  # type: ignore[arg-type]
