"""QTable: each method's update by hand, and each knob."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from tabular_probes import constant, train

from rl_lightning import MLPEncoder, QTable
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.exploration import Boltzmann

s = gym.spaces
GREEDY = constant(0.0)


def build(method="q_learning", start=0, q=((1, 2), (3, 4)), **kwargs):
    """An agent of 2 states and 2 actions, numbered from `start`."""
    agent = QTable(EnvSpec(s.Discrete(2), s.Discrete(2, start=start)), method=method, **kwargs)
    agent.policy.q.copy_(torch.tensor(q))
    return agent


def row(obs=0, action=1, reward=1.0, discount=0.5, next_obs=1, **more):
    """One transition, or several where an argument is a list."""
    given = {"obs": obs, "action": action, "reward": reward, "discount": discount}
    given |= {"next_obs": next_obs, **more}
    size = max(len(v) if isinstance(v, list) else 1 for v in given.values())
    return {k: torch.tensor(v if isinstance(v, list) else [v] * size) for k, v in given.items()}


# --- updates, by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    ("method", "more", "target"),
    [
        ("q_learning", {}, 1 + 0.5 * 4),
        ("q_learning", {"next_action_mask": [[True, False]]}, 1 + 0.5 * 3),
        ("sarsa", {"next_action": 0}, 1 + 0.5 * 3),
        ("sarsa", {"next_action": 1}, 1 + 0.5 * 4),
        ("expected_sarsa", {}, 1 + 0.5 * (0.2 * 3 + 0.8 * 4)),  # ε = 0.4: half of it on each
        ("expected_sarsa", {"next_action_mask": [[True, False]]}, 1 + 0.5 * 3),
    ],
)
def test_one_update(method, more, target, start):
    agent = build(method, start, alpha=0.25, exploration=constant(0.4))
    more = {k: v + start if k == "next_action" else v for k, v in more.items()}
    error = agent.learn(row(action=1 + start, **more))
    assert error.tolist() == pytest.approx([target - 2])
    expected = [1, 2 + 0.25 * (target - 2), 3, 4]
    assert agent.policy.q.flatten().tolist() == pytest.approx(expected)
    assert agent.policy.updates.flatten().tolist() == [0, 1, 0, 0]


def test_double_q_asks_the_other_table_about_its_own_choice():
    tables = ((1.0, 2.0), (3.0, 4.0)), ((1.0, 2.0), (10.0, 0.0))
    seen = []
    for seed in range(40):
        torch.manual_seed(seed)
        agent = build("double_q", alpha=0.5)
        agent.policy.q = torch.tensor(tables)
        agent.learn(row())
        moved = agent.policy.updates[:, 0, 1].tolist()
        seen.append(moved.index(1))
        # Table 0 prefers action 1, of which table 1 says 0; table 1 action 0, of which 0 says 3.
        target = [1 + 0.5 * 0, 1 + 0.5 * 3][seen[-1]]
        expected = torch.tensor(tables)
        expected[seen[-1], 0, 1] += 0.5 * (target - 2)
        assert torch.equal(agent.policy.q, expected)
    assert 8 < sum(seen) < 32


def test_double_q_acts_by_the_mean_of_its_tables():
    agent = build("double_q", exploration=GREEDY)
    agent.policy.q = torch.tensor([[[1.0, 0.0], [0, 0]], [[0.0, 3.0], [0, 0]]])
    x = torch.tensor([0])
    assert agent.inspect(x)["values"].tolist() == [[0.5, 1.5]]
    for explore in (True, False):
        assert agent.act(x, explore)["action"].tolist() == [1]


def test_a_terminal_step_does_not_bootstrap():
    agent = build(alpha=1.0)
    agent.learn(row(discount=0.0))
    assert agent.policy.q[0, 0, 1] == 1.0


def test_duplicates_move_a_cell_once_towards_the_mean_of_their_targets():
    agent = build(alpha=0.5)
    rows = row(obs=[0, 0, 0, 1], action=[1, 1, 0, 1], reward=[1.0, 4.0, 1.0, 2.0], discount=0.0)
    assert agent.learn(rows).tolist() == [-1, 2, 0, -2]
    assert agent.policy.q.flatten().tolist() == [1, 2.25, 3, 3]
    assert agent.policy.updates.flatten().tolist() == [1, 1, 0, 1]


def test_targets_are_found_before_anything_moves():
    agent = build(alpha=1.0)
    agent.learn(row(obs=[0, 1], action=[1, 1], reward=[0.0, 9.0], discount=[1.0, 0.0]))
    assert agent.policy.q.flatten().tolist() == [1, 4, 3, 9]


def test_the_step_a_native_environment_spends_on_a_reset_is_left_out():
    agent, rows = build(alpha=1.0), row(reward=[-100.0, 1.0], valid=[False, True])
    assert len(agent.learn(rows)) == 1
    assert agent.policy.q[0, 0, 1] == 3.0
    agent.learn(row(valid=False))
    assert agent.policy.updates.sum() == 1


def test_steps_of_a_rollout_are_learned_from_in_their_order():
    # Two episodes of two steps: Q(1) moves to ½ before Q(0) is updated again.
    data = {"num_envs": 2, "rollout_steps": 4, "env_kwargs": {"length": 2}}
    agent = train("Steps-v0", 8, data=data, gamma=0.5, alpha=0.5, exploration=GREEDY)
    assert agent.policy.q[0, :2, 0].tolist() == [0.5 + 0.5 * (1 + 0.5 * 0.5 - 0.5), 0.75]
    assert agent.policy.updates[0, :2, 0].tolist() == [2, 2]


# --- knobs ------------------------------------------------------------------------------------


def test_step_size():
    n = torch.tensor([1, 4])
    assert build(alpha=0.5).step_size(n).tolist() == [0.5, 0.5]
    assert build(alpha=0.5, alpha_decay=0.5).step_size(n).tolist() == [0.5, 0.25]
    agent = build(alpha=0.5, alpha_schedule="linear")
    agent.progress = 0.75
    assert agent.step_size(n).tolist() == [0.125, 0.125]


def test_with_full_decay_a_cell_is_the_mean_of_its_targets():
    agent = build(alpha=1.0, alpha_decay=1.0)
    for reward in (1.0, 5.0, -3.0, 0.0):
        agent.learn(row(reward=reward, discount=0.0))
    assert agent.policy.q[0, 0, 1] == pytest.approx(0.75)


def test_initial_value():
    spec = EnvSpec(s.Discrete(2), s.Discrete(3))
    assert QTable(spec, initial_value=7).policy.q.tolist() == [[[7, 7, 7], [7, 7, 7]]]
    assert QTable(spec, method="double_q").policy.q.tolist() == [[[0] * 3] * 2] * 2


def test_exploration_chooses_while_training_only():
    q = ((0.0, 1.0), (0.0, 0.0))
    x = torch.zeros(4000, dtype=torch.int64)
    for exploration, share in [(constant(0.5), 0.75), (partial(Boltzmann, 1.0, 1.0), 0.731)]:
        agent = build(q=q, exploration=exploration)
        assert agent.act(x)["action"].float().mean() == pytest.approx(share, abs=0.03)
        assert agent.act(x, explore=False)["action"].all()


@pytest.mark.parametrize("mask", [None, [True, True, False]])
@pytest.mark.parametrize(
    "exploration",
    [constant(0.3), GREEDY, partial(Boltzmann, 0.5, 0.5), partial(Boltzmann, 0.0, 0.0)],
)
def test_probabilities_are_those_of_the_choices(exploration, mask):
    values = torch.tensor([[0.5, 0.2, 0.9]]).expand(20_000, -1)
    allowed = None if mask is None else torch.tensor([mask]).expand(20_000, -1)
    strategy = exploration()
    share = torch.bincount(strategy(values, 0.0, allowed), minlength=3) / len(values)
    probabilities = strategy.probabilities(values, 0.0, allowed)
    assert torch.allclose(probabilities.sum(-1), torch.ones(len(values)))
    assert torch.allclose(probabilities[0], share, atol=0.015)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "td"}, "method must be one of q_learning.*not 'td'"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1, not 1.5"),
        ({"alpha_decay": -1}, "alpha_decay must be between"),
        ({"alpha_schedule": "fast"}, "schedule must be constant"),
        ({"gamma": 2}, "gamma must be"),
        ({"encoder": MLPEncoder}, "MLPEncoder computes features.*use TableEncoder"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QTable(EnvSpec(s.Discrete(2), s.Discrete(2)), **kwargs)


def test_only_discrete_actions():
    with pytest.raises(ConfigurationError, match=r"Discrete space, not Box.*SAC"):
        QTable(EnvSpec(s.Discrete(2), s.Box(-1, 1, (1,))))
