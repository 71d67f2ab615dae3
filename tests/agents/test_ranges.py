"""No agent takes a number that is none: NaN or infinity in any argument, zero in its widths."""

import inspect
import math
from functools import partial

import pytest
import torch
from every_agent import AGENTS, CONTINUOUS, DISCRETE, SPECS, TABLE

from rl_lightning import agents as package
from rl_lightning import nn as parts
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.encoders import MLPEncoder, TableEncoder
from rl_lightning.exploration import Boltzmann, EpsilonGreedy, GaussianNoise, OrnsteinUhlenbeck


def floats(made):
    """Names of the arguments that are floats."""
    parameters = inspect.signature(made).parameters.values()
    return [p.name for p in parameters if "float" in str(p.annotation)]


def cases(things):
    return [(thing, name) for thing in things for name in floats(thing)]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", AGENTS)
def test_every_float_of_every_agent_is_finite(name, wrong):
    agent, spec = getattr(package, name), SPECS.get(name, DISCRETE)
    assert len(floats(agent)) >= 3
    for argument in floats(agent):
        more = {argument: (0.0, wrong) if argument == "value_range" else wrong}
        with pytest.raises(ConfigurationError, match=f"{argument} must be"):
            agent(spec, **more)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("made", "argument"), cases([EpsilonGreedy, Boltzmann, GaussianNoise, OrnsteinUhlenbeck])
)
def test_every_float_of_every_exploration_is_finite(made, argument, wrong):
    with pytest.raises(ConfigurationError, match=f"{argument} must be"):
        made(**{argument: wrong})


NETWORKS = {
    "ActorCritic": (DISCRETE, ("hidden", "recurrent_size")),
    "QNetwork": (DISCRETE, ("hidden",)),
    "ContinuousNetwork": (CONTINUOUS, ("hidden", "critic_hidden")),
    "OfflineNetwork": (DISCRETE, ("hidden",)),
}


@pytest.mark.parametrize("wrong", [0, -3, 1.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_layers_without_width(name, wrong):
    spec, arguments = NETWORKS[name]
    for argument in arguments:
        more = {argument: (4, wrong)} if "hidden" in argument else {argument: wrong}
        more |= {"recurrent": "gru"} if argument == "recurrent_size" else {}
        with pytest.raises(ConfigurationError, match=f"{argument} must "):
            getattr(parts, name)(spec, MLPEncoder, **more)
    with pytest.raises(ConfigurationError, match="hidden must hold positive widths"):
        MLPEncoder(DISCRETE, hidden=(wrong,))


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_may_be_whole_floats(name):
    network = getattr(parts, name)(NETWORKS[name][0], MLPEncoder, hidden=(4.0, 3.0))
    assert any(p.shape[-1] == 3 or p.shape[0] == 3 for p in network.parameters())


def test_counts_of_agents_may_be_whole_floats():
    agent = package.DQN(DISCRETE, distribution="quantile", atoms=4.0, target_update_frames=1e2)
    assert agent.support.shape == (4,)
    assert agent.target_update_frames == 100
    assert package.TD3(CONTINUOUS, policy_delay=3.0).policy_delay == 3
    assert TableEncoder(TABLE, capacity=1e2).capacity == 100
    for wrong in (0.5, math.nan):
        with pytest.raises(ConfigurationError, match="atoms must be a whole number"):
            package.DQN(DISCRETE, distribution="quantile", atoms=wrong)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (partial(torch.optim.Adam, lr=-1.0), "Invalid learning rate: -1.0"),
        (partial(torch.optim.Adam, lr=math.nan), "Invalid learning rate: nan"),
        (partial(torch.optim.SGD, lr=math.nan), "lr must be finite, not nan"),
        (partial(torch.optim.SGD, lr=0.1, momentum=math.inf), "momentum must be finite, not inf"),
        (partial(torch.optim.Adam, betas=(2.0, 2.0)), "Invalid beta parameter"),
        (partial(torch.optim.Adam, nonsense=1), "unexpected keyword argument 'nonsense'"),
    ],
)
def test_a_wrong_optimizer_is_named(optimizer, message):
    for agent in (package.PPO, package.DQN, package.DiscreteSAC):
        with pytest.raises(ConfigurationError, match=rf"model\.optimizer: .*{message}"):
            agent(DISCRETE, optimizer=optimizer).configure_optimizers()
