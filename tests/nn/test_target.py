"""Target networks: what they share, what they copy, and how they follow."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from llm_tiny import tiny_model
from torch import nn

from rl_lightning import DQN, SAC, LLMEncoder, MLPEncoder, QNetwork
from rl_lightning.core.charset import PRINTABLE
from rl_lightning.core.types import EnvSpec
from rl_lightning.nn.norm import RunningNorm
from rl_lightning.nn.target import TargetUpdate, make_target

TEXT = EnvSpec(gym.spaces.Text(40, charset=PRINTABLE), gym.spaces.Discrete(3))
VECTOR = EnvSpec(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(3))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = RunningNorm(3)
        self.mixed = nn.Linear(3, 3)
        self.mixed.bias.requires_grad_(False)
        self.batch = nn.BatchNorm1d(3)


def test_what_is_trained_is_copied_and_the_rest_is_shared():
    net = Net()
    target = make_target(net)
    assert target is not net
    assert target.frozen is net.frozen
    assert target.norm is net.norm
    assert target.mixed.weight is not net.mixed.weight
    assert target.mixed.bias is net.mixed.bias
    assert target.batch is not net.batch
    assert torch.equal(target.mixed.weight, net.mixed.weight)
    assert not any(p.requires_grad for p in target.parameters())
    assert net.mixed.weight.requires_grad
    assert set(target.state_dict()) == set(net.state_dict())


@pytest.mark.parametrize("tau", [1.0, 0.25, 0.0])
def test_the_target_moves_by_tau(tau):
    net = Net()
    target = make_target(net)
    update = TargetUpdate(net, target)
    before = target.mixed.weight.clone()
    with torch.no_grad():
        net.mixed.weight += 8
        net.batch.running_mean += 3
        net.norm.update(torch.ones(5, 3))
    online = net.mixed.weight.clone()
    update(tau)
    torch.testing.assert_close(target.mixed.weight, before + 8 * tau)
    assert torch.equal(net.mixed.weight, online)
    assert (target.batch.running_mean == 3).all()  # statistics are copied
    assert target.norm.running.count == 5  # and shared ones are the same


def test_moving_several_times_is_an_exponential_average():
    net = nn.Linear(2, 1)
    target = make_target(net)
    update, expected = TargetUpdate(net, target), net.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net.weight += step
        update(0.1)
        expected = 0.9 * expected + 0.1 * net.weight.detach()
    torch.testing.assert_close(target.weight, expected)


def test_a_part_of_a_target_is_enough():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    target = make_target(net)
    del target["b"]
    update = TargetUpdate(net, target)
    assert len(update.pairs) == 2
    with torch.no_grad():
        net["a"].weight += 1
    update()
    assert torch.equal(target["a"].weight, net["a"].weight)


def pointers(module):
    return {p.data_ptr(): p.numel() for p in module.parameters()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("bert", tmp_path_factory.mktemp("model"), layers=1, hidden=16)


def text_agent(model, tune):
    encoder = partial(LLMEncoder, model=model, tune=tune, max_length=16)
    return DQN(TEXT, encoder=encoder, network=partial(QNetwork, hidden=(8,)))


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_a_language_model_is_in_memory_once_unless_all_of_it_is_trained(model, tune):
    agent = text_agent(model, tune)
    online, target = pointers(agent.policy), pointers(agent.target)
    trained = sum(p.numel() for p in agent.policy.parameters() if p.requires_grad)
    own = sum(size for at, size in target.items() if at not in online)
    assert own == trained
    if tune == "frozen":
        assert agent.target.encoder is agent.policy.encoder
    else:
        assert agent.target.encoder is not agent.policy.encoder
    x = agent.preprocess(["go to the red ball", "You see a wall"])
    agent.policy.eval()
    agent.target.eval()
    torch.testing.assert_close(agent.policy(x), agent.target(x))


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_agents_with_targets_load_what_they_saved(model, tune):
    agent, other = text_agent(model, tune), text_agent(model, tune)
    with torch.no_grad():
        for p in agent.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    state = agent.state_dict()
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        if isinstance(value, torch.Tensor):  # else what a backbone is called
            assert torch.equal(value, state[name]), name
    if tune == "frozen":  # only what training changes is saved
        assert not any("backbone" in k and isinstance(v, torch.Tensor) for k, v in state.items())
    x = agent.preprocess(["go to the red ball"])
    for which in ("policy", "target"):
        nets = [getattr(a, which).eval() for a in (agent, other)]
        torch.testing.assert_close(nets[0](x), nets[1](x))
    assert not torch.allclose(agent.policy(x), agent.target(x))


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_moving_to_another_place_keeps_what_is_shared(model, tune):
    agent = text_agent(model, tune).to(torch.float64).to("cpu")
    own = sum(n for at, n in pointers(agent.target).items() if at not in pointers(agent.policy))
    assert own == sum(p.numel() for p in agent.policy.parameters() if p.requires_grad)
    norm = agent.policy.encoder.norm
    assert (agent.target.encoder.norm is norm) == (norm is not None)


def test_agents_share_running_statistics_with_their_targets():
    encoder = partial(MLPEncoder, normalize=True, hidden=(5,))
    box = EnvSpec(VECTOR.observation_space, gym.spaces.Box(-1, 1, (2,)))
    for agent in (DQN(VECTOR, encoder=encoder), SAC(box, encoder=encoder)):
        assert agent.target.encoder is not agent.policy.encoder
        assert agent.target.encoder.norm is agent.policy.encoder.norm
        fresh = type(agent)(agent.spec, encoder=encoder)
        agent.policy.encoder.observe(torch.randn(9, 4).numpy())
        fresh.load_state_dict(agent.state_dict())
        assert fresh.target.encoder.norm.running.count == 9
