"""A time limit is not an end: V = 1 + γ + γ² + … = 1/(1 − γ), however short the episodes.

The probe pays 1 a step and is cut off after 5. Without the bootstrap from the final observation the
best a critic can do is what is left of the 5 steps, on average 2.3 for γ = 0.8.
"""

import pytest
from training import CRITICS, train_probe, values

from rl_lightning.agents import a2c, ppo, reinforce
from rl_lightning.maths.returns import gae

pytestmark = pytest.mark.learning

GAMMA, HORIZON = 0.8, 5
FOREVER = 1 / (1 - GAMMA)
LEFT = [(1 - GAMMA**k) / (1 - GAMMA) for k in range(HORIZON, 0, -1)]  # 3.4, 3.0, 2.4, 1.8, 1
NETWORKS = {
    "mlp": {},
    "lstm": {"recurrent": "lstm", "recurrent_size": 16},
    "gru": {"recurrent": "gru", "recurrent_size": 16},
}


def learned_values(name, vectorization="sync", network="mlp", **env):
    # All environments run in step, so a rollout holds whole episodes, and a native env's resets.
    steps = 2 * (HORIZON + (vectorization == "native"))
    half = {"minibatch_size": 8 * steps} if name == "ppo" else {}
    agent = train_probe(
        name,
        "truncated",
        gamma=GAMMA,
        env={"horizon": HORIZON, **env},
        data={"vectorization": vectorization, "rollout_steps": steps, **half},
        network=NETWORKS[network],
        rollouts=50 if name == "ppo" else 200,
    )
    return values(agent, "vector", *[0] * HORIZON)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("name", ["ppo", "reinforce", pytest.param("a2c", marks=pytest.mark.slow)])
def test_a_truncated_episode_is_worth_as_much_as_an_endless_one(name, vectorization, network):
    assert learned_values(name, vectorization, network) == pytest.approx([FOREVER] * 5, abs=0.25)


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("name", CRITICS)
def test_a_terminated_episode_is_worth_what_it_pays(name, vectorization):
    learned = learned_values(name, vectorization, terminate=True)
    assert learned == pytest.approx([sum(LEFT) / HORIZON] * 5, abs=0.2)
    remembered = learned_values(name, vectorization, "gru", terminate=True)
    assert remembered == pytest.approx(LEFT, abs=0.4)


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("name", CRITICS)
def test_without_the_bootstrap_the_value_is_too_low(name, vectorization, monkeypatch):
    def cut(reward, value, next_value, terminated, done, gamma, gae_lambda):
        return gae(reward, value, next_value, done, done, gamma, gae_lambda)

    for module in (a2c, ppo, reinforce):
        monkeypatch.setattr(module, "gae", cut)
    assert max(learned_values(name, vectorization)) < 0.6 * FOREVER
