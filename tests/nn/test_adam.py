"""Steps that skip the optimizer's way to them are the optimizer's steps."""

import copy
from functools import partial

import pytest
import torch
from torch.optim import Adam, AdamW

from rl_lightning.nn.adam import DirectAdam

FUSED = partial(Adam, lr=1e-2, fused=True)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def train(net, take, steps=range(6), skip=()):
    for step in steps:
        torch.manual_seed(step)
        for parameter in net.parameters():
            parameter.grad = None
        net(torch.randn(5, 3)).square().mean().backward()
        if step in skip:
            net[2].weight.grad = None
        take()


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        FUSED,
        partial(FUSED, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-3),
        partial(AdamW, lr=1e-2, fused=True, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("skip", [(), (0,), (3, 4)])
def test_to_the_last_bit(make, skip):
    ours, theirs = network(), network()
    direct, optimizer = DirectAdam(make(ours.parameters())), make(theirs.parameters())
    assert DirectAdam.can_step(direct.optimizer)
    train(ours, direct.step, skip=skip)
    train(theirs, optimizer.step, skip=skip)
    assert equal(ours, theirs)
    assert not equal(ours, network())
    state = direct.optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    for key, entries in state[0].items():
        for name, value in entries.items():
            assert torch.equal(value, state[1][key][name])


def test_groups_rates_and_states_may_change():
    ends = []
    for how in (lambda o: DirectAdam(o).step, lambda o: o.step):
        net = network()
        optimizer = FUSED(
            [{"params": net[0].parameters()}, {"params": [*net[2].parameters()], "lr": 1.0}]
        )
        take = how(optimizer)
        train(net, take, range(3))
        kept = copy.deepcopy(optimizer.state_dict())
        optimizer.param_groups[1]["lr"] = 0.1
        train(net, take, range(3, 5))
        optimizer.load_state_dict(kept)
        train(net, take, range(5, 8))
        ends.append(net)
    assert equal(*ends)


@pytest.mark.parametrize("how", ["unfrozen", "added"])
def test_what_comes_later_is_trained_too(how):
    ends = []
    for direct in (True, False):
        net = network()
        first, last = list(net[0].parameters()), list(net[2].parameters())
        optimizer = FUSED([*first, *last] if how == "unfrozen" else first)
        net[2].requires_grad_(how == "added")
        take = DirectAdam(optimizer).step if direct else optimizer.step
        train(net, take, range(3))
        if how == "unfrozen":
            net[2].requires_grad_(True)
        else:
            optimizer.add_param_group({"params": last})
        train(net, take, range(3, 6))
        ends.append(net)
    assert equal(*ends)
    assert not torch.equal(ends[0][2].weight, network()[2].weight)


def test_what_it_leaves_to_torch():
    parameters = [*network().parameters()]
    for other in (
        Adam(parameters),
        torch.optim.SGD(parameters, lr=0.1),
        FUSED(parameters, amsgrad=True),
        FUSED(parameters, maximize=True),
        torch.optim.NAdam(parameters),
        FUSED(
            [
                {"params": parameters[:2]},
                {"params": [torch.zeros(1).double().requires_grad_(), parameters[2]]},
            ]
        ),
    ):
        assert not DirectAdam.can_step(other)
    hooked = FUSED(parameters)
    hooked.register_step_pre_hook(lambda *args: None)
    assert not DirectAdam.can_step(hooked)
    scheduled = FUSED(parameters)
    torch.optim.lr_scheduler.ConstantLR(scheduled)
    assert not DirectAdam.can_step(scheduled)

    class Own(Adam):
        pass

    assert not DirectAdam.can_step(Own(parameters, fused=True))
