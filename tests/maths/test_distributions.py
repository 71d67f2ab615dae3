"""Distributions against torch.distributions, and what a mask must do."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as td

from rl_lightning.maths import distributions as d
from rl_lightning.nn.heads import make_head

LOGITS = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.0, 0.0]])


def head(space, **kwargs):
    torch.manual_seed(0)
    made = make_head(space, 4, **kwargs)
    torch.nn.init.normal_(made.linear.weight)
    return made


def test_categorical_equals_torch():
    ours, theirs = d.Categorical(LOGITS), td.Categorical(logits=LOGITS)
    latent = torch.tensor([2, 1])
    torch.testing.assert_close(ours.log_prob(latent), theirs.log_prob(latent))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.probabilities(), theirs.probs)
    assert ours.mode()[0] == 2


def test_categorical_sampling_frequencies():
    torch.manual_seed(0)
    samples = d.Categorical(LOGITS[:1].expand(200_000, 3)).sample()
    frequency = torch.bincount(samples, minlength=3) / len(samples)
    torch.testing.assert_close(frequency, LOGITS[0].softmax(0), atol=5e-3, rtol=0)


def test_masked_actions_never_happen_and_give_no_nan():
    torch.manual_seed(0)
    logits = LOGITS.clone().requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, True]])
    policy = d.Categorical(d.mask_logits(logits, mask))
    assert (policy.probabilities()[~mask] == 0).all()
    assert policy.entropy()[1] == 0
    samples = d.Categorical(d.mask_logits(LOGITS[:1].expand(1000, 3), mask[:1])).sample()
    assert samples.max() < 2
    (policy.log_prob(torch.tensor([0, 2])).sum() + policy.entropy().sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all()


def test_multi_categorical_is_the_product_of_its_parts():
    space = gym.spaces.MultiDiscrete([2, 4, 3])
    made = head(space)
    x = torch.randn(5, 4)
    policy = made(x)
    parts = [td.Categorical(logits=p) for p in made.linear(x).split([2, 4, 3], dim=-1)]
    latent = torch.stack([p.sample() for p in parts], -1)
    expected = sum(p.log_prob(latent[:, k]) for k, p in enumerate(parts))
    torch.testing.assert_close(policy.log_prob(latent), expected)
    torch.testing.assert_close(policy.entropy(), sum(p.entropy() for p in parts))
    assert all(space.contains(a) for a in made.to_action(policy.sample()).numpy())


def test_multi_categorical_mask_is_concatenated():
    made = head(gym.spaces.MultiDiscrete([2, 3]))
    mask = torch.tensor([[True, False, False, False, True]]).expand(50, 5)
    assert (made(torch.randn(50, 4), mask).sample() == torch.tensor([0, 2])).all()


def test_bernoulli_equals_torch():
    ours = d.Bernoulli(LOGITS)
    theirs = td.Independent(td.Bernoulli(logits=LOGITS), 1)
    latent = torch.tensor([[1, 0, 1], [0, 0, 1]])
    torch.testing.assert_close(ours.log_prob(latent), theirs.log_prob(latent.float()))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode()[0], torch.tensor([1, 0, 1]))


def test_bernoulli_mask_forces_zero_bits():
    made = head(gym.spaces.MultiBinary(3))
    mask = torch.tensor([[True, False, True]]).expand(200, 3)
    policy = made(torch.randn(200, 4), mask)
    sample = policy.sample()
    assert (sample[:, 1] == 0).all()
    assert (sample[:, 0] == 1).any()
    assert policy.entropy().isfinite().all()
    assert policy.log_prob(sample).isfinite().all()


def test_gaussian_equals_torch():
    mean, log_std = torch.randn(5, 2), torch.tensor([0.3, -1.0]).expand(5, 2)
    ours = d.DiagonalGaussian(mean, log_std)
    theirs = td.Independent(td.Normal(mean, log_std.exp()), 1)
    latent = torch.randn(5, 2)
    torch.testing.assert_close(ours.log_prob(latent), theirs.log_prob(latent))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_squashed_gaussian_equals_torch():
    space = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    made = head(space, squash=True, log_std_init=-0.5)
    policy = made(torch.randn(5, 4))
    latent = policy.sample()
    action = made.to_action(latent)
    assert all(space.contains(a) for a in action.detach().numpy())
    affine = td.AffineTransform(torch.tensor([0.0, 0.5]), torch.tensor([2.0, 0.5]), event_dim=1)
    theirs = td.TransformedDistribution(
        td.Independent(td.Normal(policy.mean, policy.log_std.exp()), 1),
        [td.TanhTransform(), affine],
    )
    torch.testing.assert_close(
        policy.log_prob(latent), theirs.log_prob(action), atol=1e-4, rtol=1e-4
    )
    far = torch.full((5, 2), 30.0)  # where atanh(tanh(u)) is infinite
    assert policy.log_prob(far).isfinite().all()


def test_squashed_entropy_estimate_is_unbiased():
    torch.manual_seed(0)
    space = gym.spaces.Box(-1.0, 1.0, (1,))
    made = head(space, squash=True)
    policy = made(torch.zeros(1, 4).expand(200_000, 4))
    grid = torch.linspace(-8, 8, 20_001)[:, None]
    log_p = made(torch.zeros(1, 4)).log_prob(grid)
    u_density = td.Normal(policy.mean[0], policy.log_std[0].exp()).log_prob(grid).squeeze(1).exp()
    exact = -(u_density * log_p).sum() * (grid[1] - grid[0])
    assert abs(policy.entropy().mean() - exact) < 0.01


def test_clipped_gaussian_stays_inside_and_keeps_its_latent():
    made = head(gym.spaces.Box(-0.1, 0.1, (2, 2)))
    latent = made(torch.randn(6, 4)).sample()
    action = made.to_action(latent)
    assert action.shape == (6, 2, 2)
    assert action.abs().max() <= 0.1 + 1e-7
    assert latent.abs().max() > 0.1


def test_log_std_init():
    made = head(gym.spaces.Box(-1, 1, (3,)), log_std_init=-2.0)
    assert (made(torch.zeros(1, 4)).log_std == -2.0).all()


def test_discrete_start():
    made = head(gym.spaces.Discrete(3, start=5))
    action = made.to_action(made(torch.randn(20, 4)).sample())
    assert ((action >= 5) & (action < 8)).all()
    assert not made.latent_is_action


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Text(5), "cannot emit"),
        (gym.spaces.Box(0, 255, (2,), np.uint8), "integer Box"),
        (gym.spaces.MultiBinary((2, 2)), "one-dimensional"),
        (gym.spaces.MultiDiscrete([[2, 3], [4, 5]]), r"one-dimensional, not .*\[\[2 3\] \[4 5\]\]"),
        (gym.spaces.Box(-1.0, 1.0, (0,)), "leaves nothing to choose"),
    ],
)
def test_spaces_no_head_can_emit(space, message):
    with pytest.raises(ValueError, match=message):
        make_head(space, 4)


def test_squash_needs_bounds():
    with pytest.raises(ValueError, match="squash: false"):
        make_head(gym.spaces.Box(-np.inf, np.inf, (1,)), 4, squash=True)
