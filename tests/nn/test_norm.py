"""Running statistics against the statistics of everything at once."""

import numpy as np
import pytest
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


def test_inputs_that_have_changed_are_normalised_to_where_they_were():
    torch.manual_seed(0)
    norm, x = RunningNorm(3), torch.randn(50, 3) * torch.tensor([1.0, 2.0, 3.0])
    norm.update(torch.randn(200, 3) * 2 + 1)
    before, moments = norm(x), norm.running.moments.clone()
    norm.follow(x, x.clone())
    assert torch.equal(norm.running.moments, moments)  # bit for bit: nothing has changed
    stretched = x * torch.tensor([0.5, 4.0, 1.0]) + torch.tensor([3.0, 0.0, -7.0])
    norm.follow(x, stretched)
    torch.testing.assert_close(norm(stretched), before, rtol=1e-4, atol=1e-5)
    assert norm.running.count == 200
    # By hand: what lay 1 above the mean at σ = 2 lies 2 above it at σ = 4.
    norm = RunningNorm(1)
    norm.update(torch.tensor([[-2.0], [2.0]]))
    former = torch.arange(8.0).view(8, 1) - 2.5  # of mean 1
    norm.follow(former, former * 2 + 5)
    assert norm.running.mean.item() == 5.0  # 7 − (1 − 0) · 2
    assert norm.running.variance.item() == 16.0


@pytest.mark.parametrize("few", [1, 2, 7])
def test_of_few_different_inputs_the_mean_alone_is_known(few):
    norm = RunningNorm(1)
    norm.update(torch.tensor([[-1.0], [1.0]]))
    x = torch.arange(float(few)).repeat(30).view(-1, 1)
    norm.follow(x, x * 3 + 2)
    assert norm.running.variance.item() == 1.0
    assert norm.running.mean.item() == pytest.approx((few - 1) + 2)  # m′ − m = 2 m + 2


def test_inputs_that_stand_still_or_break_are_not_stretched():
    norm = RunningNorm(4)
    norm.update(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    still, moving = torch.zeros(8, 4), torch.linspace(-1, 1, 8).view(8, 1).repeat(1, 4)
    norm.follow(still, moving)  # it did not vary: only its mean can follow
    assert norm.running.variance.tolist() == [1.0] * 4
    norm.follow(moving, still + 5)  # it does no more: not to infinity
    assert norm.running.mean.tolist() == pytest.approx([5.0] * 4)
    assert norm.running.variance.tolist() == pytest.approx([0.05**2] * 4)
    former, broken = norm.running.moments.clone(), moving.clone()
    broken[0, 0], broken[3, 1] = torch.nan, torch.inf
    norm.follow(moving, broken)
    assert torch.equal(norm.running.moments[:, :2], former[:, :2])
    assert norm.running.moments.isfinite().all()


def test_all_ranks_go_on_from_what_has_followed(monkeypatch):
    from rl_lightning.nn import norm as module

    def all_gather(out, own):  # of two ranks that saw the same
        for each in out:
            each.copy_(own)

    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_gather", all_gather)
    norm, x = RunningNorm(1), torch.arange(10.0).view(10, 1)
    norm.update(x)
    norm.synchronize()
    norm.follow(x, x * 2 + 7)
    followed = norm.running.moments.clone()
    assert followed[1].item() == 16.0
    norm.synchronize()
    assert torch.equal(norm.running.moments, followed)


def test_what_has_seen_nothing_stays_as_it_is():
    norm, x = RunningNorm(2), torch.arange(20.0).view(10, 2)
    norm.follow(x, x * 2 + 1)
    assert torch.equal(norm(x), x.clamp(-10, 10))


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
