"""The contract with torch: all insides that `rl_lightning.nn.insides` uses mean what they did."""

import torch
from torch import nn

from rl_lightning.nn import insides


def tensors():
    return [torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 2.0], [2.0, 0.0]])]


def test_many_tensors_at_once():
    assert insides.norms(tensors()).tolist() == [5.0, 3.0]
    mine = tensors()
    insides.multiply_all(mine, torch.tensor(2.0))
    assert [t.sum().item() for t in mine] == [14.0, 10.0]
    insides.lerp_all(mine, tensors(), 0.5)
    assert [t.sum().item() for t in mine] == [10.5, 7.5]
    insides.copy_all(mine, tensors())
    assert all(map(torch.equal, mine, tensors()))


def test_a_step_of_adam_by_hand():
    x, gradient = torch.tensor([1.0]), torch.tensor([2.0])
    state = [[torch.zeros(1)], [torch.zeros(1)], [torch.tensor(0.0)]]
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.0, "weight_decay": 0.0}
    insides.fused_adam([x], [gradient], state, group)
    assert abs(x.item() - 0.9) < 1e-6  # the first step is as long as the rate
    decoupled = {**group, "weight_decay": 0.5, "decoupled_weight_decay": True}
    y = torch.tensor([1.0])
    fresh = [[torch.zeros(1)], [torch.zeros(1)], [torch.tensor(0.0)]]
    insides.fused_adam([y], [gradient], fresh, decoupled)
    assert abs(y.item() - (1.0 * (1 - 0.1 * 0.5) - 0.1)) < 1e-6


def test_who_watches_an_optimizer():
    def make():
        return torch.optim.Adam([torch.zeros(1, requires_grad=True)], fused=True)

    assert not insides.steps_are_watched(make())
    for register in ("register_step_pre_hook", "register_step_post_hook"):
        optimizer = make()
        getattr(optimizer, register)(lambda *args: None)
        assert insides.steps_are_watched(optimizer)
    optimizer = make()
    optimizer.step = lambda: None
    assert insides.steps_are_watched(optimizer)
    insides.unscale_before_step(optimizer)
    assert not optimizer._step_supports_amp_scaling


def test_who_hears_a_module():
    for register in (
        "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ):  # fmt: skip
        layer = nn.Linear(1, 1)
        assert not insides.is_heard(layer)
        handle = getattr(layer, register)(lambda *args: None)
        assert insides.is_heard(layer)
        handle.remove()
        assert not insides.is_heard(layer)
    assert insides.own_parameters(layer)["weight"] is layer.weight
    assert insides.children(nn.Sequential(layer)) == {"0": layer}


def test_hooks_of_in_between_are_taken_away():
    network, said = nn.Sequential(nn.Linear(2, 2)), []
    network[0].register_forward_hook(lambda *_: said.append("before"))
    with insides.without_new_hooks(network):
        network[0].register_forward_hook(lambda *_: said.append("between"))
        network(torch.zeros(1, 2))
    network(torch.zeros(1, 2))
    assert said == ["before", "between", "before"]
