"""Running statistics against the statistics of everything at once."""

import numpy as np
import torch

from rl_lightning.data.collect.reward_norm import RewardNorm
from rl_lightning.nn.norm import RunningNorm


def test_batches_add_up_to_the_whole():
    torch.manual_seed(0)
    x = torch.randn(1000, 3) * torch.tensor([1.0, 10.0, 0.1]) + 1e4
    norm = RunningNorm(3)
    for part in x.split([1, 99, 400, 500]):
        norm.update(part)
    torch.testing.assert_close(norm.running.mean, x.double().mean(0))
    torch.testing.assert_close(norm.running.variance, x.double().var(0, correction=0))


def test_normalised_and_clipped():
    torch.manual_seed(0)
    norm = RunningNorm(2, clip=1.5)
    norm.update(torch.randn(500, 2) * 3 + 7)
    y = norm(torch.randn(500, 2) * 3 + 7)
    assert y.abs().max() == 1.5
    assert RunningNorm(2)(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]  # nothing seen yet


def test_statistics_travel_in_the_state_dict():
    norm, other = RunningNorm(2), RunningNorm(2)
    norm.update(torch.randn(50, 2))
    other.load_state_dict(norm.state_dict())
    norm.update(torch.ones(5, 2))
    other.update(torch.ones(5, 2))
    assert torch.equal(norm.running.moments, other.running.moments)


def test_reward_norm_measures_discounted_returns():
    torch.manual_seed(0)
    reward, done = torch.rand(200, 1), torch.rand(200, 1) < 0.1
    carry, returns = 0.0, []
    for r, ended in zip(reward[:, 0].tolist(), done[:, 0].tolist(), strict=True):
        carry = carry * 0.9 + r
        returns.append(carry)
        carry = 0.0 if ended else carry
    norm = RewardNorm(1, gamma=0.9)
    scaled = norm(reward, done)
    torch.testing.assert_close(scaled, reward / float(np.std(returns)))


def test_reward_norm_carries_over_rollouts_and_resumes():
    torch.manual_seed(0)
    reward, done = torch.rand(40, 3), torch.rand(40, 3) < 0.1
    whole, halves = RewardNorm(3, 0.9), RewardNorm(3, 0.9)
    whole(reward, done)
    halves(reward[:20], done[:20])
    resumed = RewardNorm(3, 0.9)
    resumed.load_state_dict(halves.state_dict())
    resumed(reward[20:], done[20:])
    torch.testing.assert_close(resumed.running.moments, whole.running.moments)


def test_reward_norm_leaves_out_resets():
    norm = RewardNorm(1, 0.9)
    valid = torch.tensor([[True], [False], [True]])
    norm(torch.tensor([[1.0], [0.0], [3.0]]), torch.tensor([[True], [False], [True]]), valid)
    assert norm.running.moments[0] == 2
