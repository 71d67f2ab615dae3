"""Updates that skip Lightning's way from loss to step are the same updates."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from training import fit

from rl_lightning import DQN, TD3, ContinuousNetwork, QNetwork, ReplayDataModule
from rl_lightning.nn.clip import clip_gradients


class Listener(Callback):
    """Hears every update, and what it finds there."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = [p.grad.norm() for p in pl_module.policy.parameters() if p.grad is not None]
        self.norms.append(torch.stack(grads).norm().item())


class Hooked(DQN):
    heard = 0

    def on_after_backward(self):
        self.heard += 1


CASES = {
    "dqn": (partial(DQN, network=partial(QNetwork, hidden=(8,))), "CartPole-v1"),
    "td3": (partial(TD3, network=partial(ContinuousNetwork, hidden=(8,))), "Pendulum-v1"),
    "hooked": (partial(Hooked, network=partial(QNetwork, hidden=(8,))), "CartPole-v1"),
}


def train(name, **trainer):
    torch.manual_seed(0)
    make, env = CASES[name]
    data = ReplayDataModule(
        env, batch_size=16, warmup_frames=20, frames_per_epoch=20, total_frames=100, seed=0
    )
    agent = make(data.spec, max_grad_norm=0.1)
    return fit(agent, data, gradient_clip_val=None, **trainer)


@pytest.mark.parametrize("name", ["dqn", "td3"])
def test_plain_updates_are_those_of_lightning(name):
    listener = Listener()
    plain, heard = train(name), train(name, callbacks=[listener])
    assert plain._plain
    assert not heard._plain
    assert plain.trainer.global_step == heard.trainer.global_step == len(listener.norms) == 80
    states = plain.state_dict(), heard.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert min(listener.norms) > 0.1  # heard before clipping, which did something


@pytest.mark.parametrize("trainer", [{"precision": "bf16-mixed"}, {"profiler": "simple"}])
def test_whatever_needs_lightnings_way_gets_it(trainer):
    assert not train("dqn", **trainer)._plain


def test_functions_that_listen_are_called():
    """They are attributes of the callback, not methods of its class."""
    heard = []
    listener = LambdaCallback(on_before_optimizer_step=lambda *args: heard.append(args))
    assert not train("dqn", callbacks=[listener])._plain
    assert len(heard) == 80


def test_an_agents_own_hooks_are_called():
    agent = train("hooked")
    assert not agent._plain
    assert agent.heard == 80


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, float("nan")])
def test_clipping_is_torchs_to_the_last_bit(size):
    torch.manual_seed(0)
    ours = [size * torch.randn(shape) for shape in [(7, 5), (5,), (3, 4, 2)]]
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in ours]
    for parameter, gradient in zip(theirs, ours, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 5.0)
    assert (norm <= 5.0) == (size <= 0.01)
    clip_gradients(ours, 5.0)
    for parameter, gradient in zip(theirs, ours, strict=True):
        assert torch.equal(parameter.grad.nan_to_num(), gradient.nan_to_num())
        assert torch.equal(parameter.grad.isnan(), gradient.isnan())
    clip_gradients([], 5.0)  # nothing is trained
