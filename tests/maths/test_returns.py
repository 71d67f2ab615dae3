"""Returns against hand-worked numbers, identities, a plain loop, and torchrl."""

import warnings

import pytest
import torch

from rl_lightning.maths import returns

FALSE = torch.zeros(3, 1, dtype=torch.bool)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def flags(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)[:, None]


def random_rollout(steps: int = 40, envs: int = 5, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    rand = lambda: torch.rand(steps, envs, generator=g, dtype=torch.float64)  # noqa: E731
    terminated, truncated = rand() < 0.1, rand() < 0.1
    truncated &= ~terminated
    return rand() * 2 - 1, rand() * 3, rand() * 3, terminated, terminated | truncated


def gae_by_loop(reward, value, next_value, terminated, done, gamma, lam):
    advantage = torch.zeros_like(reward)
    for b in range(reward.shape[1]):
        trace = 0.0
        for t in reversed(range(reward.shape[0])):
            follow = 0.0 if terminated[t, b] else gamma * next_value[t, b].item()
            delta = reward[t, b].item() + follow - value[t, b].item()
            trace = delta + (0.0 if done[t, b] else gamma * lam * trace)
            advantage[t, b] = trace
    return advantage


def test_gae_by_hand():
    # γ = 0.5, λ = 0.5: δ = (1 + .5·4 − 2, 1 + .5·6 − 4, 1 + .5·8 − 6) = (1, 0, −1)
    # Â₂ = −1, Â₁ = 0 + .25·(−1) = −.25, Â₀ = 1 + .25·(−.25) = .9375
    advantage = returns.gae(
        column(1, 1, 1), column(2, 4, 6), column(4, 6, 8), FALSE, FALSE, 0.5, 0.5
    )
    torch.testing.assert_close(advantage, column(0.9375, -0.25, -1.0))


def test_termination_cuts_bootstrap_and_trace_truncation_only_the_trace():
    reward, value, following = column(1, 1, 1), column(2, 4, 6), column(4, 6, 8)
    ended = flags(0, 1, 0)
    terminated = returns.gae(reward, value, following, ended, ended, 0.5, 0.5)
    # δ₁ = 1 − 4 = −3 without bootstrap; Â₀ = 1 + .25·(−3)
    torch.testing.assert_close(terminated, column(0.25, -3.0, -1.0))
    truncated = returns.gae(reward, value, following, FALSE, ended, 0.5, 0.5)
    # δ₁ = 1 + .5·6 − 4 = 0 keeps its bootstrap, and nothing of Â₂ comes through
    torch.testing.assert_close(truncated, column(1.0, 0.0, -1.0))


def test_lambda_zero_is_td_error():
    reward, value, following, terminated, done = random_rollout()
    advantage = returns.gae(reward, value, following, terminated, done, 0.9, 0.0)
    torch.testing.assert_close(advantage, reward + 0.9 * following * ~terminated - value)


def test_lambda_one_is_bootstrapped_monte_carlo_minus_value():
    reward, value, _, terminated, _ = random_rollout()
    following = torch.cat([value[1:], value[:1] * 0 + 2.0])
    advantage = returns.gae(reward, value, following, terminated, terminated, 0.9, 1.0)
    ended = returns.discounted_returns(reward, terminated, 0.9, last=following[-1])
    torch.testing.assert_close(advantage + value, ended)


def test_discounted_returns_by_hand():
    result = returns.discounted_returns(column(1, 2, 3), flags(0, 1, 0), 0.5)
    torch.testing.assert_close(result, column(2.0, 2.0, 3.0))
    bootstrapped = returns.discounted_returns(
        column(1, 2, 3), FALSE, 0.5, last=torch.tensor([8.0], dtype=torch.float64)
    )
    torch.testing.assert_close(bootstrapped, column(1 + 0.5 * 5.5, 5.5, 7.0))


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.5), (0.0, 0.9)])
def test_gae_equals_a_plain_loop(gamma, lam):
    rollout = random_rollout()
    torch.testing.assert_close(
        returns.gae(*rollout, gamma, lam), gae_by_loop(*rollout, gamma, lam), atol=1e-12, rtol=0
    )


def test_gae_equals_torchrl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("torchrl.objectives.value.functional")
    reward, value, following, terminated, done = random_rollout()
    swap = lambda x: x.transpose(0, 1)[..., None]  # noqa: E731
    advantage, target = functional.generalized_advantage_estimate(
        0.97, 0.9, swap(value), swap(following), swap(reward), swap(done), swap(terminated)
    )
    ours = returns.gae(reward, value, following, terminated, done, 0.97, 0.9)
    torch.testing.assert_close(swap(ours), advantage, atol=1e-6, rtol=0)
    torch.testing.assert_close(swap(ours + value), target, atol=1e-6, rtol=0)


def test_next_values_uses_final_observations():
    value = torch.arange(6.0).view(3, 2)
    index = (torch.tensor([0, 2]), torch.tensor([1, 0]))
    result = returns.next_values(
        value, torch.tensor([10.0, 11.0]), index, torch.tensor([-1.0, -2.0])
    )
    expected = torch.tensor([[2.0, -1.0], [4.0, 5.0], [-2.0, 11.0]])
    torch.testing.assert_close(result, expected)


def test_ends_within_leaves_out_the_unfinished_tail():
    done = torch.tensor([[0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    expected = torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.bool)
    assert torch.equal(returns.ends_within(done), expected)
