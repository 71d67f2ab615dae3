"""Returns of n steps, and the losses of value functions, against hand-worked numbers."""

import pytest
import torch
import torch.nn.functional as F

from rl_lightning.maths import losses
from rl_lightning.maths.returns import n_step_return

NO = [False] * 3


def n_step(reward, present=(True,) * 3, terminated=NO, truncated=NO, gamma=0.5):
    tensors = (torch.tensor([list(x)]) for x in (present, terminated, truncated))
    out = n_step_return(torch.tensor([reward]), *tensors, gamma)
    return [x.item() for x in out]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [1 + 1 + 1, 0.125, 3]),
        ({"terminated": [0, 1, 0]}, [2, 0, 2]),
        ({"truncated": [0, 1, 0]}, [2, 0.25, 2]),
        ({"terminated": [0, 0, 1]}, [3, 0, 3]),
        ({"truncated": [0, 0, 1]}, [3, 0.125, 3]),
        ({"terminated": [1, 0, 0]}, [1, 0, 1]),
        ({"truncated": [1, 0, 0]}, [1, 0.5, 1]),
        ({"present": [1, 0, 1]}, [1, 0.5, 1]),
        ({"present": [1, 1, 0]}, [2, 0.25, 2]),
        ({"truncated": [1, 0, 0], "terminated": [0, 1, 0]}, [1, 0.5, 1]),
        ({"gamma": 0.0}, [1, 0, 3]),
        ({"gamma": 1.0}, [7, 1, 3]),
    ],
)
def test_n_step_return_by_hand(kwargs, expected):
    kwargs = {k: [bool(x) for x in v] if isinstance(v, list) else v for k, v in kwargs.items()}
    assert n_step([1.0, 2.0, 4.0], **kwargs) == expected


def test_one_step_is_the_td_target_and_many_are_monte_carlo():
    torch.manual_seed(0)
    reward, ended = torch.rand(50, 6), torch.rand(50, 6) < 0.2
    yes, no = torch.ones_like(ended), torch.zeros_like(ended)
    one = n_step_return(reward[:, :1], yes[:, :1], ended[:, :1], no[:, :1], 0.9)
    assert torch.equal(one[0], reward[:, 0])
    torch.testing.assert_close(one[1], 0.9 * (~ended[:, 0]).float())
    ended[:, -1] = True
    total, discount, steps = n_step_return(reward, yes, ended, no, 0.9)
    for row in range(50):
        count = ended[row].tolist().index(True) + 1
        by_hand = sum(0.9**k * reward[row, k] for k in range(count))
        assert total[row].item() == pytest.approx(by_hand.item(), rel=1e-5)
        assert (discount[row], steps[row]) == (0, count)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_huber_is_that_of_torch(delta):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    ours = losses.huber(x, delta)
    theirs = F.huber_loss(x, torch.zeros_like(x), delta=delta, reduction="none")
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)


# --- distributions of returns -----------------------------------------------------------------

SUPPORT = torch.tensor([-1.0, 0.0, 1.0])


def project(probabilities, reward, discount, support=SUPPORT):
    row = torch.tensor([probabilities])
    out = losses.project_distribution(
        support, row, torch.tensor([reward]), torch.tensor([discount])
    )
    return out[0].tolist()


@pytest.mark.parametrize(
    ("p", "reward", "discount", "expected"),
    [
        ([0.2, 0.3, 0.5], 0.0, 1.0, [0.2, 0.3, 0.5]),  # exactly on atoms
        ([0.2, 0.3, 0.5], 1.0, 1.0, [0.0, 0.2, 0.8]),  # shifted, and over the end
        ([0.2, 0.3, 0.5], -9.0, 1.0, [1.0, 0.0, 0.0]),
        ([0.2, 0.3, 0.5], 9.0, 1.0, [0.0, 0.0, 1.0]),
        ([0.2, 0.3, 0.5], 0.25, 0.0, [0.0, 0.75, 0.25]),  # terminal, or γ = 0
        ([0.2, 0.3, 0.5], -1.0, 0.0, [1.0, 0.0, 0.0]),
        ([0.2, 0.3, 0.5], 0.0, 0.5, [0.1, 0.65, 0.25]),  # halves go to both neighbours
        ([0.0, 0.0, 1.0], 0.25, 0.5, [0.0, 0.25, 0.75]),
    ],
)
def test_projection_by_hand(p, reward, discount, expected):
    assert project(p, reward, discount) == pytest.approx(expected, abs=1e-6)


def test_projection_keeps_probability_and_inside_the_support_the_mean():
    torch.manual_seed(0)
    support = torch.linspace(-10, 10, 51)
    p = torch.randn(200, 51).softmax(-1)
    reward, discount = torch.rand(200) * 4 - 2, torch.rand(200) * 0.7
    out = losses.project_distribution(support, p, reward, discount)
    torch.testing.assert_close(out.sum(1), torch.ones(200))
    assert (out >= 0).all()
    torch.testing.assert_close(
        out @ support, reward + discount * (p @ support), atol=1e-4, rtol=1e-4
    )
    far = losses.project_distribution(support, p, reward * 100, discount)
    torch.testing.assert_close(far.sum(1), torch.ones(200))


def test_projection_equals_a_loop():
    torch.manual_seed(0)
    support = torch.linspace(-2, 3, 7)
    p = torch.randn(20, 7).softmax(-1)
    reward, discount = torch.randn(20) * 2, torch.rand(20).round(decimals=1)
    expected = torch.zeros(20, 7)
    for n in range(20):
        for j in range(7):
            z = float((reward[n] + discount[n] * support[j]).clamp(-2, 3))
            for i in range(7):
                near = max(0.0, 1.0 - abs(z - float(support[i])) / (5 / 6))
                expected[n, i] += p[n, j] * near
    got = losses.project_distribution(support, p, reward, discount)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_quantile_huber_equals_a_loop(kappa):
    torch.manual_seed(0)
    quantiles, target = torch.randn(5, 4) * 2, torch.randn(5, 3) * 2
    got = losses.quantile_huber(quantiles, target, kappa)
    for n in range(5):
        total = 0.0
        for i in range(4):
            tau = (i + 0.5) / 4
            for j in range(3):
                u = float(target[n, j] - quantiles[n, i])
                size = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                total += abs(tau - (u < 0)) * size / kappa / 3
        assert got[n].item() == pytest.approx(total, rel=1e-5)


def test_quantile_huber_is_least_at_the_quantiles():
    target = torch.linspace(0, 1, 1001)[None]
    quantiles = torch.full((1, 4), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([quantiles], lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        losses.quantile_huber(quantiles, target, 0.01).sum().backward()
        optimizer.step()
    torch.testing.assert_close(
        quantiles.detach()[0], torch.tensor([0.125, 0.375, 0.625, 0.875]), atol=0.02, rtol=0
    )


def test_the_middle_expectile_is_half_the_mean_square():
    x = torch.tensor([1.0, -3.0, 2.0])
    assert losses.expectile_loss(x, 0.5) == 0.5 * (1 + 9 + 4) / 3
    # By hand: 0.9 · 1, 0.1 · 9, 0.9 · 4.
    assert losses.expectile_loss(x, 0.9).item() == pytest.approx((0.9 + 0.9 + 3.6) / 3)


@pytest.mark.parametrize(("expectile", "best"), [(0.5, 0.5), (0.9, 0.75), (0.1, 0.25)])
def test_the_loss_is_least_at_the_expectile(expectile, best):
    """Of a uniform distribution on [0, 1] it is √τ / (√τ + √(1 − τ))."""
    x = torch.linspace(0, 1, 2001)
    guesses = torch.linspace(0, 1, 201)
    found = guesses[
        torch.stack([losses.expectile_loss(x - g, expectile) for g in guesses]).argmin()
    ]
    assert found.item() == pytest.approx(best, abs=0.006)


def test_weighted_mean():
    x, weight = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 0.5, 0.0])
    assert losses.weighted_mean(x, None) == 3
    assert losses.weighted_mean(x, torch.ones(3)) == 3
    assert losses.weighted_mean(x, weight).item() == pytest.approx(2 / 3)
