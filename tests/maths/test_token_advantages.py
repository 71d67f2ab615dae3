"""Rewards, returns and advantages of completions: by hand, against plain loops, identities."""

import math

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths import returns
from rl_lightning.maths import token_advantages as advantages
from rl_lightning.maths.token_losses import KLEstimator

REWARD = torch.tensor([1.0, 3.0, 2.0, 2.0])  # groups of two: std √2 and 0


def hollow(n=5, t=9, seed=0):
    """Rewards and values in float64, and a mask with holes and padding."""
    g = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, n, t, generator=g, dtype=torch.float64).unbind()
    mask = (torch.rand(n, t, generator=g) < 0.6) & (torch.arange(t) < t - 2)
    return reward, value, mask


def insert(x, column=3):
    """x with nan, or False, in a column of its own and one at the end."""
    filling = torch.full_like(x[:, :1], False if x.dtype == torch.bool else math.nan)
    return torch.cat([x[:, :column], filling, x[:, column:], filling], dim=1)


def test_group_advantages_by_hand():
    found = advantages.group_advantages(REWARD, 2)
    unit = 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(found, torch.tensor([-unit, unit, 0.0, 0.0]))
    none = advantages.group_advantages(REWARD, 2, "none")
    torch.testing.assert_close(none, torch.tensor([-1.0, 1.0, 0.0, 0.0]))
    # All four: mean 2, squares 1 + 1 + 0 + 0, over 3.
    batch = advantages.group_advantages(REWARD, 2, "batch")
    torch.testing.assert_close(batch, none / (math.sqrt(2 / 3) + 1e-4))
    torch.testing.assert_close(
        advantages.group_advantages(REWARD, 2, eps=1.0)[1], torch.tensor(1 / (math.sqrt(2) + 1))
    )


def test_groups_may_be_of_any_order_and_size():
    index = torch.tensor([7, 3, 7, 3, 3])
    reward = torch.tensor([1.0, 0.0, 3.0, 6.0, 3.0])
    found = advantages.group_advantages(reward, index)
    for i in (7, 3):
        alone = reward[index == i]
        expected = (alone - alone.mean()) / (alone.std() + 1e-4)
        torch.testing.assert_close(found[index == i], expected)
        torch.testing.assert_close(
            advantages.rloo_advantages(reward, index)[index == i],
            (alone - (alone.sum() - alone) / (len(alone) - 1)),
        )
    blocks = torch.arange(12) // 4
    reward = torch.randn(12)
    for function in (advantages.group_advantages, advantages.rloo_advantages):
        torch.testing.assert_close(function(reward, 4), function(reward, blocks))


def test_rloo_is_the_centred_reward_times_g_over_g_minus_one():
    reward = torch.randn(12, dtype=torch.float64)
    rloo = advantages.rloo_advantages(reward, 4)
    torch.testing.assert_close(rloo, advantages.group_advantages(reward, 4, "none") * 4 / 3)
    torch.testing.assert_close(rloo[0], reward[0] - reward[1:4].mean())


def test_which_groups_have_no_spread():
    reward = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.2, 0.1])
    assert advantages.groups_without_spread(reward, 3).tolist() == [True, False]
    index = torch.tensor([9, 9, 2, 9, 2, 2])
    assert advantages.groups_without_spread(reward, index).tolist() == [False, True]
    assert advantages.groups_without_spread(reward, 1).all()
    # Rounding does not make a constant reward worth learning.
    assert advantages.group_advantages(reward[:3], 3).abs().max() < 1e-3


@pytest.mark.parametrize("group", [1, torch.tensor([0, 0, 1, 2])])
def test_a_completion_alone_in_its_group_is_refused(group):
    mask = torch.ones(4, 2, dtype=torch.bool)
    for compare in (
        lambda: advantages.group_advantages(REWARD, group),
        lambda: advantages.rloo_advantages(REWARD, group),
        lambda: advantages.reinforce_pp_baseline_advantages(REWARD, mask, group),
    ):
        with pytest.raises(
            ConfigurationError, match=r"^group must have at least 2 .*, not 1: .*; sample more"
        ):
            compare()


def test_wrong_arguments_are_named():
    for group, message in [
        (3, "group must divide the number of completions, 4, not be 3"),
        (0, "group must be at least 1, not 0"),
        (torch.zeros(3, dtype=torch.long), r"group must have one index a completion, 4, not \[3\]"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            advantages.group_advantages(REWARD, group)
    with pytest.raises(ConfigurationError, match="scale='x': use one of group, batch, none"):
        advantages.group_advantages(REWARD, 2, "x")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match=r"must be given with kl_coef=0\.1, or kl_coef be 0"
    ):
        advantages.token_rewards(REWARD, torch.ones(4, 1, dtype=torch.bool), kl_coef=0.1)
    for cache in (0, 11):
        with pytest.raises(ConfigurationError, match="cache must be between 1 and 10"):
            advantages.overlong_penalty(torch.tensor([5]), 10, cache)


def test_whitening_by_hand():
    x = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.inf, 6.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    # Mean 3, squares 4 + 1 + 0 + 9, over 3.
    std = math.sqrt(14 / 3)
    expected = torch.tensor([[-2.0, -1.0, 0.0], [0.0, 0.0, 3.0]]) / std
    torch.testing.assert_close(advantages.whiten(x, mask), expected)
    kept = advantages.whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(kept, torch.where(mask, expected + 3.0, 0.0))
    assert advantages.whiten(x.half(), mask).dtype == torch.float32
    assert not advantages.whiten(x, torch.zeros_like(mask)).any()
    alone = torch.zeros_like(mask)
    alone[0, 1] = True
    assert not advantages.whiten(x, alone).any()


def test_whitening_a_constant_does_not_enlarge_rounding_errors():
    x = torch.full((7, 1001), 0.1)
    assert advantages.whiten(x, torch.ones(7, 1001, dtype=torch.bool)).abs().max() < 1e-2


def test_rewards_of_tokens_by_hand():
    mask = torch.tensor([[True, False, True, False], [False] * 4, [True, True, True, True]])
    score = torch.tensor([5.0, 7.0, 1.0])
    plain = torch.tensor([[0.0, 0.0, 5.0, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 1.0]])
    assert torch.equal(advantages.token_rewards(score, mask), plain)
    log_prob = torch.where(mask, torch.tensor([-1.0, -2.0, -3.0, -4.0]), math.nan)
    reference = torch.full((3, 4), -2.5)
    difference = torch.where(mask, log_prob - reference, 0.0)
    estimates: dict[KLEstimator, torch.Tensor] = {
        "k1": difference,
        "k2": difference.square() / 2,
        "k3": (-difference).exp() - 1 + difference,
    }
    for estimator, kl in estimates.items():
        found = advantages.token_rewards(score, mask, log_prob, reference, 0.2, estimator)
        torch.testing.assert_close(found, plain - 0.2 * kl)


def test_returns_by_hand():
    reward = torch.tensor([[1.0, 99.0, 2.0, 4.0, 99.0]])
    mask = torch.tensor([[True, False, True, True, False]])
    found = advantages.returns_to_go(reward, mask, gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([[1 + 1 + 1.0, 0.0, 2 + 2.0, 4.0, 0.0]]))
    assert advantages.returns_to_go(reward, mask)[0, 0] == 7.0


def test_gae_by_hand():
    reward = torch.tensor([[0.0, 9.0, 0.0, 1.0]])
    value = torch.tensor([[0.5, math.nan, 0.25, 0.75]])
    mask = torch.tensor([[True, False, True, True]])
    # δ = 0.25·0.9 − 0.5, 0.75·0.9 − 0.25, 1 − 0.75; γλ = 0.45
    delta = [0.225 - 0.5, 0.675 - 0.25, 0.25]
    last, middle = delta[2], delta[1] + 0.45 * delta[2]
    expected = torch.tensor([[delta[0] + 0.45 * middle, 0.0, middle, last]])
    advantage, target = advantages.token_gae(reward, value, mask, gamma=0.9, gae_lambda=0.5)
    torch.testing.assert_close(advantage, expected)
    own_value = torch.where(mask, value, 0.0)
    torch.testing.assert_close(target, expected + own_value)


def test_gae_is_that_of_the_completion_without_what_lies_between():
    reward, value, mask = hollow()
    advantage, target = advantages.token_gae(reward, value, mask, 0.9, 0.8)
    for row in range(len(mask)):
        own = mask[row]
        r, v = reward[row, own][:, None], value[row, own][:, None]
        done = torch.zeros_like(r, dtype=torch.bool)
        done[-1] = True
        following = torch.cat([v[1:], torch.zeros_like(v[:1])])
        expected = returns.gae(r, v, following, done, done, 0.9, 0.8)
        torch.testing.assert_close(advantage[row, own], expected[:, 0])
        torch.testing.assert_close(target[row, own], (expected + v)[:, 0])


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    reward, value, mask = hollow(seed=1)
    advantage, target = advantages.token_gae(reward, value, mask, 0.9, 1.0)
    expected = advantages.returns_to_go(reward, mask, 0.9)
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(advantage, torch.where(mask, expected - value, 0.0))


def test_padding_and_environment_tokens_change_nothing():
    reward, value, mask = hollow(seed=2)
    score, group = reward[:, 0], torch.tensor([0, 1, 0, 1, 1])
    longer = insert(mask)

    def check(function, *tensors):
        found = function(*map(insert, tensors), longer)
        expected = function(*tensors, mask)
        if isinstance(found, torch.Tensor):
            found, expected = (found,), (expected,)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[longer], other[mask])
            assert not one[~longer].any()

    check(lambda r, v, m: advantages.token_gae(r, v, m, 0.9, 0.8), reward, value)
    check(lambda r, m: advantages.returns_to_go(r, m, 0.9), reward)
    check(lambda r, m: advantages.reinforce_pp_advantages(r, m, 0.9), reward)
    check(lambda m: advantages.reinforce_pp_baseline_advantages(score, m, group))
    check(lambda p, q, m: advantages.token_rewards(score, m, p, q, 0.1), reward, value)
    check(advantages.whiten, reward)


def test_reinforce_pp_whitens_the_returns_of_all_tokens():
    reward, _, mask = hollow(seed=3)
    found = advantages.reinforce_pp_advantages(reward, mask, gamma=0.7)
    target = advantages.returns_to_go(reward, mask, 0.7)[mask]
    expected = (target - target.mean()) / target.std()
    torch.testing.assert_close(found[mask], expected, rtol=1e-6, atol=1e-6)
    other = advantages.reinforce_pp_advantages(reward, mask)
    assert not torch.allclose(found, other)


def test_the_baseline_of_reinforce_pp_is_the_mean_of_the_group():
    mask = torch.tensor([[True, True, True], [True, False, False]] * 2)
    reward = torch.tensor([1.0, 3.0, 2.0, 6.0])
    found = advantages.reinforce_pp_baseline_advantages(reward, mask, 2)
    # −1 and −2 three times, 1 and 2 once: mean −¾, squares 3 + 12 + 1 + 4 − 8 · 9/16, over 7.
    std = math.sqrt(15.5 / 7)
    expected = torch.tensor([-0.25, 1.75, -1.25, 2.75])[:, None] / std * mask
    torch.testing.assert_close(found, expected)


def test_the_overlong_penalty_falls_over_the_last_tokens():
    length = torch.tensor([1, 12, 13, 16, 20, 25])
    found = advantages.overlong_penalty(length, 20, 8)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, -1 / 8, -0.5, -1.0, -1.0]))
    assert advantages.overlong_penalty(torch.tensor([16, 18]), 20, 4).tolist() == [0.0, -0.5]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_rewards_whose_squares_float32_does_not_hold(scale):
    large = advantages.group_advantages(REWARD * 1e20, 2, scale)
    assert large.dtype == torch.float32
    torch.testing.assert_close(large, advantages.group_advantages(REWARD * 1e4, 2, scale))
    ones = torch.ones(2, 2, dtype=torch.bool)
    white = advantages.whiten(REWARD.view(2, 2) * 1e20, ones)
    assert white.dtype == torch.float32
    torch.testing.assert_close(white, advantages.whiten(REWARD.view(2, 2), ones))
    most = torch.tensor([3e38, 3e38, 3e38, 2e38])
    assert advantages.rloo_advantages(most, 4).isfinite().all()
