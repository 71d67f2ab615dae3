"""Dynamic programming: exact values where the environment publishes its model.

Gymnasium's toy-text environments do, as `env.unwrapped.P`, so what an agent has learned there can
be compared with what is best. S states, A actions; everything in float64.
"""

from typing import NamedTuple

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import check_range

# Sweeps in which the largest change must halve: it never does where undiscounted values diverge, or
# where rounding alone is left of it.
PATIENCE = 10_000


class Model(NamedTuple):
    """A finite Markov decision process.

    Attributes:
        transition: p(s′ | s, a) of the transitions that go on, `[S, A, S]`; what is missing to 1 is
            the probability that the episode terminates.
        reward: Expected reward r(s, a), `[S, A]`.
    """

    transition: np.ndarray
    reward: np.ndarray


def read_model(env: gym.Env) -> Model:
    """The model that a toy-text environment publishes, without its time limit and its wrappers.

    Args:
        env: Environment whose `unwrapped.P[s][a]` lists `(probability, next state, reward,
            terminated)`, with states and actions counted from 0.

    Raises:
        ValueError: If it has no such model, or one whose probabilities do not add up to 1.
    """
    table = getattr(env.unwrapped, "P", None)
    if table is None:
        raise ValueError(
            f"{env} publishes no model: env.unwrapped.P is missing; planning needs a toy-text "
            "environment such as FrozenLake-v1, CliffWalking-v1 or Taxi-v4"
        )
    states, actions = len(table), len(table[0])
    transition = np.zeros((states, actions, states))
    reward = np.zeros((states, actions))
    for s in range(states):
        for a in range(actions):
            for probability, next_state, gain, terminated in table[s][a]:
                reward[s, a] += probability * gain
                if not terminated:
                    transition[s, a, next_state] += probability
            total = sum(entry[0] for entry in table[s][a])
            if abs(total - 1) > 1e-9:
                raise ValueError(
                    f"P[{s}][{a}] of {env} has probabilities that add up to {total}, not 1"
                )
    return Model(transition, reward)


def value_iteration(
    model: Model, gamma: float, tolerance: float = 1e-10
) -> tuple[np.ndarray, np.ndarray]:
    """Optimal values: the fixed point of the Bellman optimality equation.

        Q(s, a) = r(s, a) + γ Σ p(s′ | s, a) V(s′)        V(s) = maxₐ Q(s, a)

    Iterated from V = 0 (Sutton & Barto 2018, eq. 4.10).

    Args:
        model: See `read_model`.
        gamma: Discount γ; 1 where episodes end or rewards do.
        tolerance: Largest error of V, or what rounding allows, if γ < 1. For γ = 1 there is no such
            bound: the largest change in the last sweep.

    Returns:
        V `[S]` and Q `[S, A]`.

    Raises:
        ValueError: If γ or the tolerance is out of range, or the values grow without limit.
    """
    check_range("gamma", gamma, 0, 1)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance}")
    states, actions = model.reward.shape
    transition = model.transition.reshape(states * actions, states)
    # |V − V*| ≤ γ / (1 − γ) · change, and the change halves in 0.7 / (1 − γ) sweeps.
    bound = tolerance * (1 - gamma) / gamma if 0 < gamma < 1 else tolerance
    patience = max(PATIENCE, 1 / (1 - gamma)) if gamma < 1 else PATIENCE
    v = np.zeros(states)
    halved, since = np.inf, 0
    while True:
        q = model.reward + gamma * (transition @ v).reshape(states, actions)
        next_v = q.max(1)
        change = float(np.abs(next_v - v).max())
        v = next_v
        if change <= max(bound, 4 * np.finfo(v.dtype).eps * float(np.abs(v).max())):
            return v, q
        if change <= halved / 2:
            halved, since = change, 0
        since += 1
        if since > patience:
            if gamma < 1:
                return v, q
            raise ValueError(
                f"gamma = 1: values still change by {change:g} a sweep and do not settle, because "
                "some policy gathers reward for ever or none ends; use gamma < 1"
            )


def policy_value(model: Model, policy: np.ndarray, gamma: float) -> np.ndarray:
    """Values of a policy, by solving V = r_π + γ P_π V (Sutton & Barto 2018, eq. 4.4).

    Args:
        model: See `read_model`.
        policy: An action for each state, integers `[S]`, or probabilities π(a | s), `[S, A]`.
        gamma: Discount γ. With γ = 1, every state must lead to an end, or to states without reward.

    Returns:
        V `[S]`.

    Raises:
        ValueError: If γ or the policy is no such thing, or with γ = 1 a state gathers reward for
            ever.
    """
    check_range("gamma", gamma, 0, 1)
    policy = _probabilities(policy, *model.reward.shape)
    transition = np.einsum("sa,sat->st", policy, model.transition)
    reward = (policy * model.reward).sum(1)
    open_ = np.ones(len(reward), dtype=bool)
    if gamma == 1:
        # Of what never meets a reward the value is 0, though its equation has many solutions; the
        # others have one solution if each of them leaves at some time.
        open_ = _reaching(transition, reward != 0)
        leaves = transition[:, open_].sum(1) < 1 - 1e-9
        stuck = np.flatnonzero(open_ & ~_reaching(transition, leaves))
        if len(stuck):
            raise ValueError(
                f"gamma = 1: from state {stuck[0]} ({len(stuck)} states in all) this policy never "
                "ends and meets rewards for ever, so its value is not defined; use gamma < 1"
            )
    v = np.zeros(len(reward))
    inside = transition[np.ix_(open_, open_)]
    v[open_] = np.linalg.solve(np.eye(len(inside)) - gamma * inside, reward[open_])
    return v


def start_value(env: gym.Env, v: np.ndarray) -> float:
    """Expected value of an episode's first state: Σ p₀(s) V(s).

    Args:
        env: Environment with `unwrapped.initial_state_distrib`, `[S]`.
        v: V, `[S]`.

    Raises:
        ValueError: If the environment publishes no such distribution.
    """
    start = getattr(env.unwrapped, "initial_state_distrib", None)
    if start is None:
        raise ValueError(
            f"{env} does not say where episodes start: env.unwrapped.initial_state_distrib is "
            "missing; weigh the entries of V yourself"
        )
    return float(np.asarray(start, dtype=np.float64) @ v)


def _probabilities(policy: np.ndarray, states: int, actions: int) -> np.ndarray:
    policy = np.asarray(policy)
    if policy.shape == (states,) and np.issubdtype(policy.dtype, np.integer):
        if policy.min() < 0 or policy.max() >= actions:
            raise ValueError(
                f"policy must hold actions from 0 to {actions - 1}, "
                f"not {policy.min()} to {policy.max()}"
            )
        return np.eye(actions)[policy]
    if policy.shape != (states, actions):
        raise ValueError(
            f"policy must be integers of shape ({states},) or probabilities of shape "
            f"({states}, {actions}), not {policy.dtype} of shape {policy.shape}"
        )
    if not (policy.min() >= 0 and np.allclose(policy.sum(1), 1)):
        raise ValueError("policy must hold probabilities: not negative, adding up to 1 per state")
    return policy


def _reaching(transition: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether a chain `[S, S]` can get from each state to the targets, themselves included."""
    reached = target
    while True:
        wider = reached | ((transition > 0) @ reached)
        if np.array_equal(wider, reached):
            return reached
        reached = wider
