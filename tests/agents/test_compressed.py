"""Agents whose policies were pruned or quantised, in and out of checkpoints."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model

from rl_lightning import DQN, IQL, PPO, SAC, TD3, ActorCritic, EnvSpec, LLMEncoder
from rl_lightning.agents.compressed import PolicyCall
from rl_lightning.agents.language_parts import language_models
from rl_lightning.compress import fake_quantise, harden, prune_nodes, prune_weights, quantise
from rl_lightning.core.errors import ConfigurationError

BOX = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
DISCRETE = EnvSpec(BOX, gym.spaces.Discrete(3), "probe")
CONTINUOUS = EnvSpec(BOX, gym.spaces.Box(-2.0, 2.0, (2,), np.float32), "probe")
AGENTS = {
    "ppo": (PPO, DISCRETE),
    "ppo of a box": (PPO, CONTINUOUS),
    "recurrent ppo": (partial(PPO, network=partial(ActorCritic, recurrent="lstm")), DISCRETE),
    "dqn": (partial(DQN, distribution="quantile"), DISCRETE),
    "sac": (SAC, CONTINUOUS),
    "td3": (TD3, CONTINUOUS),
    "iql": (IQL, DISCRETE),
}
X = torch.linspace(-1, 1, 28).view(7, 4)
OPERATORS = {
    "prune_weights": partial(prune_weights, sparsity=0.5),
    "prune_nodes": lambda policy: prune_nodes(policy, 0.5, X),
    "quantise": partial(quantise, bits=8),
    "fake_quantise": partial(fake_quantise, bits=4),
}


def saved(agent):
    checkpoint = {}
    agent.on_save_checkpoint(checkpoint)
    return {**checkpoint, "state_dict": agent.state_dict()}


def rebuilt(make, spec, checkpoint):
    agent = make(spec)
    agent.on_load_checkpoint(checkpoint)
    agent.load_state_dict(checkpoint["state_dict"])
    return agent.eval()


def said(agent):
    with torch.no_grad():
        return agent.inspect(X)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", AGENTS)
def test_a_checkpoint_rebuilds_what_was_compressed(name, operator):
    make, spec = AGENTS[name]
    torch.manual_seed(1)
    agent = make(spec).eval()
    before = said(agent)
    record = agent.compress(OPERATORS[operator])
    assert agent.compression == [record]
    assert not same(said(agent), before)
    assert same(said(rebuilt(make, spec, saved(agent))), said(agent))


def test_one_operator_after_another(tmp_path):
    agent = PPO(DISCRETE).eval()
    agent.compress(OPERATORS["prune_nodes"])
    agent.compress(OPERATORS["prune_weights"])
    agent.compress(OPERATORS["fake_quantise"])
    agent.compress(harden)
    torch.save(saved(agent), tmp_path / "agent.pt")
    checkpoint = torch.load(tmp_path / "agent.pt", weights_only=True)
    assert [r["operator"] for r in checkpoint["compression"]] == [
        "prune_nodes",
        "prune_weights",
        "fake_quantise",
        "quantise",
    ]
    assert same(said(rebuilt(PPO, DISCRETE, checkpoint)), said(agent))


def test_a_plain_checkpoint_says_nothing_of_it():
    assert "compression" not in saved(PPO(DISCRETE))


@pytest.mark.parametrize("name", ["dqn", "sac", "td3", "iql"])
def test_targets_have_the_shape_of_the_policy_and_follow_it(name):
    make, spec = AGENTS[name]
    agent = make(spec)
    children = [child for child, _ in agent.target.named_children()]
    agent.move_target(0.5)  # what moves it holds on to its tensors
    agent.compress(OPERATORS["prune_nodes"])
    assert [child for child, _ in agent.target.named_children()] == children
    own = dict(agent.policy.named_parameters())
    for parameter in own.values():
        parameter.data.add_(1.0)
    agent.move_target(1.0)
    for key, value in agent.target.named_parameters():
        assert torch.equal(value, own[key]), key
        assert not value.requires_grad


def test_a_checkpoint_of_another_compression_is_refused():
    agent = PPO(DISCRETE)
    agent.compress(OPERATORS["prune_weights"])
    other = PPO(DISCRETE)
    other.compress(OPERATORS["prune_nodes"])
    with pytest.raises(ConfigurationError, match="was compressed in another way"):
        agent.on_load_checkpoint(saved(other))
    with pytest.raises(ConfigurationError, match="was compressed in another way"):
        agent.on_load_checkpoint(saved(PPO(DISCRETE)))


def test_going_on_from_its_own_checkpoint_does_it_once():
    agent = PPO(DISCRETE)
    agent.compress(OPERATORS["prune_nodes"])
    agent.on_load_checkpoint(saved(agent))
    assert len(agent.compression) == 1


@pytest.mark.parametrize("records", [3, "prune", [3], [{"operator": "os.system"}], [{}]])
def test_a_strangers_records_are_refused(records):
    agent = PPO(DISCRETE)
    with pytest.raises(ConfigurationError):
        agent.on_load_checkpoint({**saved(agent), "compression": records})


def test_what_an_operator_follows_is_what_the_policy_says():
    agent = SAC(CONTINUOUS)
    (actor,) = PolicyCall(agent)(X)
    assert torch.equal(actor, agent.policy.actor(X))
    assert [name for name, _ in PolicyCall(agent).named_children()] == ["policy"]


def test_a_language_model_inside_is_left_alone(tmp_path):
    """A checkpoint holds nothing of a frozen one, so that nothing of it could be restored."""
    text = EnvSpec(gym.spaces.Text(20), gym.spaces.Discrete(3), "probe")
    model = tiny_model("bert", tmp_path / "bert", layers=1)
    agent = PPO(text, partial(LLMEncoder, model=model))
    assert language_models(PolicyCall(agent)) == ["policy.encoder.backbone"]
    with pytest.raises(ConfigurationError, match="is part of a language model"):
        agent.compress(partial(quantise, bits=8))
    agent = PPO(text, partial(LLMEncoder, model=model))
    agent.compress(partial(quantise, bits=8, keep=["policy.encoder.backbone"]))
    assert not any("backbone" in name for name in agent.compression[0]["layers"])
