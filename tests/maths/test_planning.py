"""Dynamic programming: values by hand, and identities on Gymnasium's own models."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lightning.maths import planning
from rl_lightning.maths.planning import (
    Model,
    policy_value,
    read_model,
    start_value,
    value_iteration,
)

# State 0: action 0 stays for 1, action 1 goes to state 1 for 0.
# State 1: action 0 ends for 10, action 1 goes back to 0 for 2, or with probability ½ ends.
TWO = Model(
    transition=np.array([[[1, 0], [0, 1]], [[0, 0], [0.5, 0]]], np.float64),
    reward=np.array([[1, 0], [10, 2]], np.float64),
)
GAMES = [
    ("FrozenLake-v1", {"map_name": "4x4", "is_slippery": False}),
    ("FrozenLake-v1", {"map_name": "4x4", "is_slippery": True}),
    ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}),
    ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": True}),
    ("CliffWalking-v1", {}),
    ("CliffWalking-v1", {"is_slippery": True}),
    ("Taxi-v4", {}),
]


def test_value_iteration_by_hand():
    # γ = ½: staying is worth 1 / (1 − ½) = 2, going 0 + ½ · 10 = 5; state 1 ends for 10.
    v, q = value_iteration(TWO, 0.5)
    np.testing.assert_allclose(v, [5, 10], atol=1e-10)
    np.testing.assert_allclose(q, [[3.5, 5], [10, 2 + 0.5 * 0.5 * 5]], atol=1e-10)
    # γ = 0.95: staying is worth 20, going 9.5; state 1 ends for 10 or goes back for 2 + .475 · 20.
    v, q = value_iteration(TWO, 0.95)
    np.testing.assert_allclose(v, [20, 11.5], atol=1e-9)
    np.testing.assert_allclose(q, [[20, 0.95 * 11.5], [10, 11.5]], atol=1e-9)


def test_policy_value_by_hand():
    # 0 → 1 → 0 or the end: V₁ = 2 + ½ γ V₀ and V₀ = γ V₁, so V₁ = 2 / (1 − ½ γ²).
    np.testing.assert_allclose(policy_value(TWO, np.array([1, 1]), 1.0), [4, 4])
    expected = [0.5 * 2 / (1 - 0.125), 2 / (1 - 0.125)]
    np.testing.assert_allclose(policy_value(TWO, np.array([1, 1]), 0.5), expected)
    # Even odds in state 0, the end in state 1: V₀ = ½ (1 + γ V₀) + ½ γ 10.
    mixed = np.array([[0.5, 0.5], [1, 0]])
    np.testing.assert_allclose(policy_value(TWO, mixed, 1.0), [11, 10])
    np.testing.assert_allclose(policy_value(TWO, mixed, 0.5), [3 / 0.75, 10])


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_gamma_zero_is_the_reward_of_one_step(gamma):
    v, q = value_iteration(TWO, gamma)
    assert np.array_equal(q, TWO.reward) == (gamma == 0)
    assert np.array_equal(policy_value(TWO, np.array([0, 1]), gamma), [1, 2]) == (gamma == 0)
    assert np.array_equal(v, q.max(1))


@pytest.mark.parametrize(("env", "kwargs"), GAMES)
def test_the_greedy_policy_has_the_optimal_value(env, kwargs):
    model = read_model(gym.make(env, **kwargs))
    for gamma in (0.9, 0.99):
        v, q = value_iteration(model, gamma)
        np.testing.assert_allclose(policy_value(model, q.argmax(1), gamma), v, atol=1e-9)
        backup = model.reward + gamma * model.transition @ v
        np.testing.assert_allclose(q, backup, atol=1e-9)
        uniform = np.full(q.shape, 1 / q.shape[1])
        assert np.all(policy_value(model, uniform, gamma) <= v + 1e-9)


@pytest.mark.parametrize(("env", "kwargs"), GAMES)
def test_models_leave_out_what_terminates(env, kwargs):
    made = gym.make(env, **kwargs)
    model = read_model(made)
    table = made.unwrapped.P
    assert model.transition.shape == (len(table), len(table[0]), len(table))
    for s in (0, len(table) // 2, len(table) - 2):
        for a in range(len(table[0])):
            going_on = sum(p for p, _, _, terminated in table[s][a] if not terminated)
            assert model.transition[s, a].sum() == pytest.approx(going_on)
            expected = sum(p * r for p, _, r, _ in table[s][a])
            assert model.reward[s, a] == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.9, 0.99, 1.0])
def test_known_start_values(gamma):
    lake = gym.make("FrozenLake-v1", is_slippery=False)
    v, _ = value_iteration(read_model(lake), gamma)
    assert start_value(lake, v) == pytest.approx(gamma**5)
    large = gym.make("FrozenLake-v1", map_name="8x8", is_slippery=False)
    v, _ = value_iteration(read_model(large), gamma)
    assert start_value(large, v) == pytest.approx(gamma**13)
    cliff = gym.make("CliffWalking-v1")
    v, _ = value_iteration(read_model(cliff), gamma)
    assert start_value(cliff, v) == pytest.approx(-sum(gamma**t for t in range(13)))


def test_slippery_lakes_without_discount():
    # The success rates that perfect play has without a time limit: 14/17, and 1 on the large lake.
    small = gym.make("FrozenLake-v1", is_slippery=True)
    v, _ = value_iteration(read_model(small), 1.0, tolerance=1e-13)
    assert start_value(small, v) == pytest.approx(14 / 17, abs=1e-9)
    large = gym.make("FrozenLake-v1", map_name="8x8", is_slippery=True)
    v, _ = value_iteration(read_model(large), 1.0, tolerance=1e-13)
    assert start_value(large, v) == pytest.approx(1, abs=1e-6)


def test_values_are_what_episodes_return():
    env = gym.make("Taxi-v4")
    v, q = value_iteration(read_model(env), 1.0)
    returns = []
    for seed in range(30):
        state, _ = env.reset(seed=seed)
        expected, terminated, rewards = v[state], False, []
        while not terminated:
            state, reward, terminated, _, _ = env.step(int(q[state].argmax()))
            rewards.append(reward)
        assert sum(rewards) == expected
        returns.append(expected)
    assert start_value(env, v) == pytest.approx(np.mean(returns), abs=3 * np.std(returns) / 5)


def test_the_tolerance_bounds_the_error():
    model = read_model(gym.make("FrozenLake-v1", is_slippery=True))
    exact, _ = value_iteration(model, 0.99, tolerance=1e-15)
    errors = []
    for tolerance in (1e-2, 1e-6):
        v, _ = value_iteration(model, 0.99, tolerance)
        errors.append(np.abs(v - exact).max())
        assert 0 < errors[-1] <= tolerance
    assert errors[1] < errors[0]


def test_slow_convergence_is_awaited(monkeypatch):
    monkeypatch.setattr(planning, "PATIENCE", 3)
    for gamma in (0.5, 0.9, 0.999):
        v, _ = value_iteration(Model(np.ones((1, 1, 1)), np.ones((1, 1))), gamma, 1e-8)
        assert v[0] == pytest.approx(1 / (1 - gamma), abs=1.1e-8)


def test_without_discount_a_policy_must_end_or_meet_no_reward():
    with pytest.raises(ValueError, match=r"gamma = 1: from state 0 \(1 states in all\).*gamma < 1"):
        policy_value(TWO, np.array([0, 0]), 1.0)
    # Walking west for ever in the lake's corner gathers nothing, and that is its value.
    lake = read_model(gym.make("FrozenLake-v1", is_slippery=False))
    west = np.zeros(16, np.int64)
    assert np.array_equal(policy_value(lake, west, 1.0), np.zeros(16))
    # A reward on the way into such a state counts: 0 → 1 for 3, then 1 → 1 for nothing.
    rest = Model(np.array([[[0, 1]], [[0, 1]]], np.float64), np.array([[3.0], [0.0]]))
    assert policy_value(rest, np.array([0, 0]), 1.0).tolist() == [3, 0]
    assert value_iteration(rest, 1.0)[0].tolist() == [3, 0]


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_without_discount_endless_reward_is_refused(reward):
    endless = Model(np.ones((1, 1, 1)), np.array([[reward]]))
    with pytest.raises(ValueError, match=r"gamma = 1: values still change by 1 .*gamma < 1"):
        value_iteration(endless, 1.0)
    assert value_iteration(endless, 0.5)[0] == pytest.approx(2 * reward)


def test_mistakes_are_explained():
    cart = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"CartPole.* publishes no model: env\.unwrapped\.P"):
        read_model(cart)
    with pytest.raises(ValueError, match="does not say where episodes start"):
        start_value(cart, np.zeros(1))
    lake = gym.make("FrozenLake-v1")
    lake.unwrapped.P = {0: {0: [(0.5, 0, 0.0, False)]}}
    with pytest.raises(ValueError, match=r"P\[0\]\[0\] of .* add up to 0\.5, not 1"):
        read_model(lake)
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"gamma must be between 0 and 1, not {gamma}"):
            value_iteration(TWO, gamma)
        with pytest.raises(ValueError, match=f"gamma must be between 0 and 1, not {gamma}"):
            policy_value(TWO, np.array([0, 0]), gamma)
    with pytest.raises(ValueError, match="tolerance must be positive, not 0"):
        value_iteration(TWO, 0.5, tolerance=0)
    for policy, message in [
        (np.array([0, 2]), "actions from 0 to 1, not 0 to 2"),
        (np.array([0.5, 1.0]), r"integers of shape \(2,\) or .*not float64 of shape \(2,\)"),
        (np.array([0, 1, 1]), r"not int64 of shape \(3,\)"),
        (np.array([[1.0, 0.5], [1, 0]]), "adding up to 1"),
        (np.array([[1.5, -0.5], [1, 0]]), "not negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            policy_value(TWO, policy, 0.5)
