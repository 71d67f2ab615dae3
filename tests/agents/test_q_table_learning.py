"""QTable against what dynamic programming says is true."""

from functools import partial

import gymnasium as gym
import pytest
from tabular_probes import constant
from tabular_probes import train as train_table

from rl_lightning.exploration import EpsilonGreedy
from rl_lightning.maths.planning import policy_value, read_model, start_value, value_iteration

pytestmark = pytest.mark.learning


def train(env, frames, env_kwargs=None, **kwargs):
    data = {"num_envs": 32, "rollout_steps": 16, "rollouts_per_epoch": 20}
    return train_table(env, frames, data={**data, "env_kwargs": env_kwargs}, **kwargs)


def greedy(agent):
    return agent.policy.q.mean(0).argmax(-1).numpy()


def behaviour(agent):
    """π(a | s) of the exploring policy, `[S, A]`."""
    values = agent.policy.q.mean(0)
    return agent.exploration.probabilities(values.double(), 1.0).numpy()


def shortfall(agent, env):
    """What the greedy policy misses of the best value at the start, as a share of it."""
    model = read_model(env)
    best = start_value(env, value_iteration(model, agent.gamma)[0])
    return (best - start_value(env, policy_value(model, greedy(agent), agent.gamma))) / abs(best)


@pytest.mark.parametrize(
    ("method", "slippery", "tolerance"),
    [
        ("q_learning", False, 1e-6),
        ("double_q", False, 1e-6),
        ("q_learning", True, 0.01),
        ("double_q", True, 0.02),  # each of its tables sees half of the frames
    ],
)
def test_frozen_lake_against_value_iteration(method, slippery, tolerance):
    kwargs = {"is_slippery": slippery}
    agent = train(
        "FrozenLake-v1",
        80_000 if slippery else 20_000,
        env_kwargs=kwargs,
        method=method,
        alpha=0.5,
        alpha_decay=0.25,
        alpha_schedule="linear",
        exploration=partial(EpsilonGreedy, start=1.0, end=0.5, fraction=0.5),
    )
    assert shortfall(agent, gym.make("FrozenLake-v1", **kwargs)) < tolerance


@pytest.mark.parametrize("method", ["sarsa", "expected_sarsa"])
def test_sarsa_judges_the_policy_that_it_follows(method):
    agent = train(
        "FrozenLake-v1",
        80_000,
        method=method,
        alpha=0.5,
        alpha_decay=0.3,
        alpha_schedule="linear",
        gamma=0.9,
        exploration=constant(0.3),
    )
    env = gym.make("FrozenLake-v1")
    model, pi = read_model(env), behaviour(agent)
    truth = start_value(env, policy_value(model, pi, 0.9))
    best = start_value(env, value_iteration(model, 0.9)[0])
    q = agent.policy.q[0, 0].double().numpy()
    assert (pi[0] * q).sum() == pytest.approx(truth, rel=0.15)
    assert truth < 0.8 * best  # Q-learning would say `best`


def test_the_safe_path_along_the_cliff():
    """Sutton & Barto 2018, example 6.6: SARSA knows that it explores, Q-learning does not."""
    env = gym.make("CliffWalking-v1")
    model = read_model(env)
    paths, online = {}, {}
    for method in ("q_learning", "sarsa", "expected_sarsa"):
        agent = train(
            env.spec.id, 50_000, method=method, gamma=1.0, alpha=0.5, alpha_schedule="linear",
            exploration=constant(0.1),
        )  # fmt: skip
        online[method] = start_value(env, policy_value(model, behaviour(agent), 1.0))
        state, policy, path = 36, greedy(agent), []
        while state != 47 and len(path) < 50:
            path.append(state)
            state = max(env.unwrapped.P[state][int(policy[state])])[1]
        paths[method] = path
    assert len(paths["q_learning"]) == 13
    assert set(range(24, 36)) <= set(paths["q_learning"])  # along the edge
    for method in ("sarsa", "expected_sarsa"):
        assert 15 <= len(paths[method]) <= 17
        assert not set(range(25, 35)) & set(paths[method])
        assert online[method] > online["q_learning"] + 10


def test_double_q_learning_overestimates_less():
    """Sutton & Barto 2018, example 6.7, with uniform actions, so that both see all of it."""
    found = {}
    for method in ("q_learning", "double_q"):
        agent = train(
            "MaximizationBias-v0", 10_000, method=method, gamma=1.0, alpha=0.1,
            exploration=constant(1.0),
        )  # fmt: skip
        found[method] = float(agent.policy.q[:, 0, 1].mean())
    # The truth is −0.1: who thinks that the best of ten noisy estimates is a value goes left.
    assert found["q_learning"] > 0.05
    assert -0.2 < found["double_q"] < 0.05
