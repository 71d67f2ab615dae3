"""What enters an agent's loss, and with which weight, by hand.

The policy is uniform over two actions and V = 3, so the loss of a batch can be written down.
"""

import math

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic, Loss
from rl_lightning.core.types import EnvSpec

SPEC = EnvSpec(gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2))
LOG2 = math.log(2.0)
ADVANTAGE = [1.0, -2.0, 4.0]
PLAIN = {"normalize_advantage": False}


def network(spec, encoder, **kwargs):
    policy = ActorCritic(spec, encoder, hidden=(), **kwargs)
    torch.nn.init.zeros_(policy.action_head.linear.weight)
    if policy.critic is not None:
        torch.nn.init.zeros_(policy.critic[-1].weight)
        torch.nn.init.constant_(policy.critic[-1].bias, 3.0)
    return policy


def batch(ratio=(1.0, 1.0, 1.0), target=(3.0, 3.0, 3.0), value=(3.0, 3.0, 3.0), **more):
    """Rows whose old policy makes the ratio what is asked for."""
    rows = len(ratio)
    log_prob = -LOG2 - torch.tensor(ratio).log()
    return TensorDict(
        {
            "obs": torch.ones(rows, 2),
            "action": torch.tensor([0, 1, 0])[:rows],
            "log_prob": log_prob,
            "advantage": torch.tensor(ADVANTAGE)[:rows],
            "target": torch.tensor(target)[:rows],
            "value": torch.tensor(value)[:rows],
            **more,
        },
        batch_size=rows,
    )


def loss(agent, **kwargs):
    return agent.loss(batch(**kwargs)).value.item()


def ppo(**kwargs):
    return PPO(SPEC, network=network, **{**PLAIN, **kwargs})


def a2c(**kwargs):
    return A2C(SPEC, network=network, **{**PLAIN, **kwargs})


def reinforce(**kwargs):
    return REINFORCE(SPEC, network=network, **{**PLAIN, **kwargs})


EVERYONE = [ppo, a2c, reinforce]


# --- the policy's part ------------------------------------------------------------------------


def test_ppo_surrogate_at_ratio_one_is_the_mean_advantage():
    assert loss(ppo()) == pytest.approx(-sum(ADVANTAGE) / 3)


@pytest.mark.parametrize("make", [a2c, reinforce])
def test_policy_gradient_loss(make):
    assert loss(make()) == pytest.approx(LOG2 * sum(ADVANTAGE) / 3)


@pytest.mark.parametrize("make", EVERYONE)
def test_gradient_raises_the_probability_of_good_actions(make):
    agent = make()
    agent.loss(batch(ratio=(1.0,))).value.backward()  # action 0, advantage 1
    bias = agent.policy.action_head.linear.bias.grad
    # d/dz log softmax(z)[0] at a uniform policy = (½, −½); descending goes the other way.
    assert bias.tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize(("clip_range", "kept"), [(0.2, 1.2), (0.4, 1.4), (0.6, 1.5)])
def test_clip_range_limits_what_can_be_gained(clip_range, kept):
    assert loss(ppo(clip_range=clip_range), ratio=(1.5,)) == pytest.approx(-kept)


def test_clip_range_does_not_limit_what_can_be_lost():
    # Advantages 1 and −2: a ratio of 0.5 hurts in full, one of 1.5 too where Â < 0.
    assert loss(ppo(clip_range=0.2), ratio=(0.5, 1.5)) == pytest.approx(-(0.5 - 3.0) / 2)


@pytest.mark.parametrize(
    ("schedule", "kept"), [("constant", 1.4), ("linear", 1.3), ("cosine", 1.2 + 0.2 * 0.5**0.5)]
)
def test_clip_schedule(schedule, kept):
    agent = ppo(clip_range=0.4, clip_schedule=schedule)
    agent.progress = 0.25
    assert loss(agent, ratio=(1.5,)) == pytest.approx(-kept)


@pytest.mark.parametrize("make", EVERYONE)
def test_normalize_advantage(make):
    mean, std = 1.0, 3.0  # of 1, −2, 4, with the unbiased deviation
    normalised = [(a - mean) / std for a in ADVANTAGE]
    agent = make(normalize_advantage=True)
    agent.loss(batch()).value.backward()
    # d loss / d z₀ = −mean(Â (1[a=0] − ½))
    expected = -(0.5 * normalised[0] - 0.5 * normalised[1] + 0.5 * normalised[2]) / 3
    assert agent.policy.action_head.linear.bias.grad[0].item() == pytest.approx(expected)
    plain = make()
    plain.loss(batch()).value.backward()
    expected = -(0.5 * 1.0 + 0.5 * 2.0 + 0.5 * 4.0) / 3
    assert plain.policy.action_head.linear.bias.grad[0].item() == pytest.approx(expected)


def test_defaults_of_normalisation():
    assert PPO(SPEC).normalize_advantage
    assert not A2C(SPEC).normalize_advantage
    assert REINFORCE(SPEC).normalize_advantage


# --- the other parts --------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("make", EVERYONE)
def test_value_coef(make, coefficient):
    base = loss(make(value_coef=coefficient))
    # ½ mean((3 − 1)², 0, (3 − 7)²) = 10/3
    extra = loss(make(value_coef=coefficient), target=(1.0, 3.0, 7.0)) - base
    assert extra == pytest.approx(coefficient * 10 / 3, abs=1e-5)


@pytest.mark.parametrize("make", EVERYONE)
def test_the_critic_learns_from_the_value_loss_alone(make):
    agent = make(value_coef=0.0, entropy_coef=1.0)
    agent.loss(batch(target=(1.0, 3.0, 7.0))).value.backward()
    assert agent.policy.critic[-1].bias.grad.item() == 0
    agent = make(value_coef=0.5)
    agent.loss(batch(target=(1.0, 3.0, 7.0))).value.backward()
    # ½ · mean(V − G) = ½ (2 + 0 − 4) / 3
    assert agent.policy.critic[-1].bias.grad.item() == pytest.approx(-1 / 3)


@pytest.mark.parametrize("coefficient", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("make", EVERYONE)
def test_entropy_coef(make, coefficient):
    without = loss(make())
    assert loss(make(entropy_coef=coefficient)) == pytest.approx(
        without - coefficient * LOG2, abs=1e-6
    )


@pytest.mark.parametrize("make", EVERYONE)
def test_the_entropy_bonus_evens_out_probabilities(make):
    agent = make(entropy_coef=1.0)
    with torch.no_grad():
        agent.policy.action_head.linear.bias[0] = 1.0
    one = batch(ratio=(1.0,))
    one["advantage"] = torch.zeros(1)
    agent.loss(one).value.backward()
    assert agent.policy.action_head.linear.bias.grad[0].item() > 0.01  # descending lowers it


def test_clip_range_value():
    """Old value 1, target 0, V = 3: clipped to 1 ± 0.5 the error would be less, so 9 counts; with
    target 5 the clipped error (1.5 − 5)² counts, not (3 − 5)²."""
    kwargs = {"ratio": (1.0, 1.0), "target": (0.0, 5.0), "value": (1.0, 1.0)}
    base = -(1.0 - 2.0) / 2
    plain, clipped = ppo(), ppo(clip_range_value=0.5)
    assert loss(plain, **kwargs) - base == pytest.approx(0.5 * 0.5 * (9 + 4) / 2)
    assert loss(clipped, **kwargs) - base == pytest.approx(0.5 * 0.5 * (9 + 3.5**2) / 2)
    halfway = ppo(clip_range_value=0.5, clip_schedule="linear")
    halfway.progress = 0.5
    assert loss(halfway, **kwargs) - base == pytest.approx(0.5 * 0.5 * (9 + 3.75**2) / 2)


def test_without_baseline_there_is_no_critic_and_no_value_loss():
    agent = reinforce(baseline=False, value_coef=100.0)
    assert agent.policy.critic is None
    assert loss(agent) == pytest.approx(LOG2 * sum(ADVANTAGE) / 3)
    assert "value" not in agent.inspect(torch.ones(1, 2))
    assert reinforce().policy.critic is not None


@pytest.mark.parametrize("make", [*EVERYONE, lambda **k: reinforce(baseline=False, **k)])
@pytest.mark.parametrize("normalize", [True, False])
def test_invalid_rows_do_not_count(make, normalize):
    agent = make(normalize_advantage=normalize, entropy_coef=0.1)
    kwargs = {"ratio": (1.1, 0.9, 1.0), "target": (1.0, 2.0, 1e6), "value": (3.0, 2.0, 1e6)}
    rows = batch(**kwargs, valid=torch.tensor([True, True, False]))
    rows["advantage"][2] = 1e6
    two = batch(**{key: value[:2] for key, value in kwargs.items()})
    assert agent.loss(rows).value.item() == pytest.approx(agent.loss(two).value.item())


# --- a loss is a function ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [PPO, A2C, REINFORCE])
def test_a_loss_is_called_without_a_trainer_and_tells_its_metrics(make):
    loss = make(SPEC, network=network).loss(batch())
    assert isinstance(loss, Loss)
    assert loss.value.requires_grad
    assert {"loss/policy", "policy/entropy"} <= loss.metrics.keys()
    assert not any(torch.is_tensor(m) and m.requires_grad for m in loss.metrics.values())
    assert "loss/policy=" in repr(loss)


def test_metrics_are_computed_where_they_are_wanted():
    asked = []
    loss = Loss(torch.tensor(1.0), lambda: asked.append(1) or {"a": 2.0})
    assert not asked
    assert loss.metrics == {"a": 2.0}
    assert Loss(torch.tensor(1.0)).metrics == {}


def test_a_stop_is_above_zero_where_the_policy_has_moved_too_far():
    assert ppo().loss(batch(ratio=(2.0, 2.0, 2.0))).stop is None
    near, far = (ppo(target_kl=0.1).loss(batch(ratio=(r, r, r))).stop for r in (1.01, 4.0))
    assert near < 0 < far
