"""One update from the same weights and the same batch: Stable-Baselines3's and ours."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN as DQN3
from stable_baselines3 import SAC as SAC3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from tensordict import TensorDict

from rl_lightning import DQN, SAC, ContinuousNetwork, QNetwork
from rl_lightning.core.types import EnvSpec

OBS = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
HIDDEN, ROWS, GAMMA, LR = (6, 5), 32, 0.9, 0.05


class Empty(gym.Env):
    """Spaces, and nothing to play."""

    observation_space = OBS

    def __init__(self, actions):
        self.action_space = actions


def batch_of(actions):
    """The same transitions for either, in the agents' units of actions, [−1, 1] or numbers."""
    torch.manual_seed(1)
    obs, following = torch.rand(2, ROWS, 3)
    reward, done = 3.0 * torch.randn(ROWS), (torch.rand(ROWS) < 0.3).float()
    theirs = ReplayBufferSamples(obs, actions, following, done[:, None], reward[:, None])
    ours = {"obs": obs, "next_obs": following, "reward": reward, "discount": GAMMA * (1.0 - done)}
    return theirs, TensorDict({**ours, "action": actions.squeeze(-1)}, [ROWS])


def peer(make, actions, **kwargs):
    model = make(
        "MlpPolicy",
        Empty(actions),
        gamma=GAMMA,
        learning_rate=LR,
        buffer_size=10,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": list(HIDDEN), "optimizer_class": torch.optim.SGD},
        **kwargs,
    )
    model.set_logger(configure(None, []))
    return model


def linears(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


@torch.no_grad()
def copy_linears(sources, targets):
    for source, target in zip(linears(sources), linears(targets), strict=True):
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)


@pytest.mark.parametrize("max_norm", [1e6, 0.1])
def test_an_update_of_dqn(max_norm):
    space = gym.spaces.Discrete(4)
    model = peer(DQN3, space, max_grad_norm=max_norm)
    agent = DQN(EnvSpec(OBS, space), network=partial(QNetwork, hidden=HIDDEN))
    copy_linears(model.q_net, agent.policy)
    for layer in linears(model.q_net_target):  # another network than the online one
        torch.nn.init.normal_(layer.weight, std=0.5)
    copy_linears(model.q_net_target, agent.target)
    theirs, ours = batch_of(torch.randint(4, (ROWS, 1)))

    model.replay_buffer.sample = lambda *args, **kwargs: theirs
    model.train(1, ROWS)

    optimizer = torch.optim.SGD(agent.policy.parameters(), lr=LR)
    agent.loss(ours).value.backward()
    agent.max_grad_norm = max_norm
    agent.clip(optimizer)
    before = agent.policy.advantage[0].weight.clone()
    optimizer.step()
    assert (agent.policy.advantage[0].weight - before).abs().max() > 1e-4
    for a, b in zip(linears(agent.policy), linears(model.q_net), strict=True):
        torch.testing.assert_close(a.weight, b.weight)
        torch.testing.assert_close(a.bias, b.bias)


@torch.no_grad()
def copy_actor(model, agent):
    *hidden, head = linears(agent.policy.actor)
    for source, target in zip(linears(model.actor.latent_pi), hidden, strict=True):
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)
    head.weight.copy_(torch.cat([model.actor.mu.weight, model.actor.log_std.weight]))
    head.bias.copy_(torch.cat([model.actor.mu.bias, model.actor.log_std.bias]))


@torch.no_grad()
def copy_critics(source, target):
    layers = [linears(network) for network in source.q_networks]
    for number, (weight, bias) in enumerate(zip(target.weights, target.biases, strict=True)):
        weight.copy_(torch.stack([network[number].weight.T for network in layers]))
        bias.copy_(torch.stack([network[number].bias[None] for network in layers]))


@pytest.mark.parametrize("moves", ["critics", "actor"])
def test_an_update_of_sac(moves, monkeypatch):
    """Critics from the same weights; the actor with critics that stand still, because theirs moves
    against those of one step later."""
    space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    model = peer(SAC3, space, ent_coef="auto_0.3")
    spec = EnvSpec(OBS, space)
    network = partial(ContinuousNetwork, hidden=HIDDEN)
    agent = SAC(spec, network=network, temperature=0.3)
    copy_actor(model, agent)
    copy_critics(model.critic, agent.policy.critics)
    for layer in linears(model.critic_target):
        torch.nn.init.normal_(layer.weight, std=0.5)
    copy_critics(model.critic_target, agent.target.critics)
    theirs, ours = batch_of(2.0 * torch.rand(ROWS, 2) - 1.0)
    now, following = torch.randn(2, ROWS, 2)

    noise = iter([now, following])
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda *a, **k: next(noise))
    model.replay_buffer.sample = lambda *args, **kwargs: theirs
    if moves == "actor":
        monkeypatch.setattr(model.critic.optimizer, "step", lambda: None)
    model.train(1, ROWS)

    noise = iter([following, now])
    monkeypatch.setattr(torch, "randn_like", lambda *args, **kwargs: next(noise))
    optimizer = torch.optim.SGD(agent.parameters(), lr=LR)
    agent.loss(ours).value.backward()
    before = [p.clone() for p in getattr(agent.policy, moves).parameters()]
    optimizer.step()
    wanted = SAC(spec, network=network)
    copy_actor(model, wanted)
    copy_critics(model.critic, wanted.policy.critics)
    ours, theirs = (getattr(a.policy, moves).parameters() for a in (agent, wanted))
    for own, other, old in zip(ours, theirs, before, strict=True):
        assert (own - old).abs().max() > 1e-4
        # Their log π has a small ε in it.
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    gradient = model.log_ent_coef.grad.squeeze()
    torch.testing.assert_close(agent.log_alpha.grad, gradient, rtol=1e-4, atol=1e-5)
