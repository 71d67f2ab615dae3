"""What agents make of a rollout, by hand: V(s) is the observation, so every number can be checked.

Two environments, three steps. Rewards are 1, 2, 4 in the first and 0, 0, 8 in the second; values
are 10, 20, 30 and 1, 2, 3; what follows the last step is worth 40 and 4.
"""

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic
from rl_lightning.core.types import EnvSpec, Rollout

SPEC = EnvSpec(gym.spaces.Box(-100.0, 100.0, (1,)), gym.spaces.Discrete(2))
REWARD = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 8.0]])
VALUE = torch.tensor([[10.0, 1.0], [20.0, 2.0], [30.0, 3.0]])
G, L = 0.5, 0.25  # γ and λ, exact in binary


def network(spec, encoder, **kwargs):
    """V(s) = s."""
    policy = ActorCritic(spec, encoder, hidden=(), **kwargs)
    if policy.critic is not None:
        torch.nn.init.ones_(policy.critic[-1].weight)
    return policy


def rollout(terminated=(), truncated=(), final=None, valid=None):
    """Ends at the given (t, b); `final` maps truncated ones to their final observations."""
    steps = TensorDict(
        {
            "obs": VALUE[..., None].clone(),
            "action": torch.zeros(3, 2, dtype=torch.int64),
            "reward": REWARD.clone(),
            "terminated": marked(terminated),
            "truncated": marked(truncated),
        },
        batch_size=(3, 2),
    )
    if valid is not None:
        steps["valid"] = ~marked(valid)
    out = Rollout(steps, last_obs=torch.tensor([[40.0], [4.0]]))
    if final:
        t, b = zip(*final, strict=True)
        out.final_index = (torch.tensor(t), torch.tensor(b))
        out.final_obs = torch.tensor(list(final.values()))[:, None]
    return out


def marked(places):
    out = torch.zeros(3, 2, dtype=torch.bool)
    for t, b in places:
        out[t, b] = True
    return out


@torch.no_grad()
def prepare(agent, **ends):
    return agent.prepare(rollout(**ends))


def ppo(**kwargs):
    return PPO(SPEC, network=network, **{"gamma": G, "gae_lambda": L, **kwargs})


def a2c(**kwargs):
    return A2C(SPEC, network=network, **{"gamma": G, "gae_lambda": L, **kwargs})


def column(batch, key, b=0):
    return batch[key][:, b].tolist()


@pytest.mark.parametrize("make", [ppo, a2c])
def test_advantages_by_hand(make):
    batch = prepare(make())
    # δ = r + ½ V' − V: 1 + 10 − 10, 2 + 15 − 20, 4 + 20 − 30; Â = δ + ⅛ Â'.
    delta = [1.0, -3.0, -6.0]
    last = delta[2]
    middle = delta[1] + last / 8
    assert column(batch, "advantage") == [delta[0] + middle / 8, middle, last]
    assert column(batch, "target") == [
        a + v for a, v in zip(column(batch, "advantage"), [10, 20, 30], strict=True)
    ]
    assert column(batch, "value") == [10, 20, 30]
    # 0 + 1 − 1, 0 + 1.5 − 2, 8 + 2 − 3.
    assert column(batch, "advantage", 1) == [(-0.5 + 7 / 8) / 8, -0.5 + 7 / 8, 7]


@pytest.mark.parametrize("make", [ppo, a2c])
def test_lambda_zero_is_the_td_error(make):
    assert column(prepare(make(gae_lambda=0.0)), "advantage") == [1, -3, -6]


@pytest.mark.parametrize("make", [ppo, a2c])
def test_lambda_one_is_the_bootstrapped_return(make):
    # 4 + ½·40 = 24, 2 + 12 = 14, 1 + 7 = 8.
    assert column(prepare(make(gae_lambda=1.0)), "target") == [8, 14, 24]


@pytest.mark.parametrize("make", [ppo, a2c])
def test_gamma_zero_looks_at_the_reward_alone(make):
    assert column(prepare(make(gamma=0.0)), "target") == [1, 2, 4]


def test_the_paper_a2c_and_the_usual_ppo_are_the_defaults():
    assert (A2C(SPEC).gae_lambda, A2C(SPEC).gamma) == (1.0, 0.99)
    assert (PPO(SPEC).gae_lambda, PPO(SPEC).gamma) == (0.95, 0.99)


@pytest.mark.parametrize("make", [ppo, a2c])
def test_termination_cuts_bootstrap_and_trace(make):
    batch = prepare(make(), terminated=[(1, 0)])
    assert column(batch, "advantage") == [1 + (2 - 20) / 8, 2 - 20, -6]
    assert column(batch, "advantage", 1) == column(prepare(make()), "advantage", 1)


@pytest.mark.parametrize("make", [ppo, a2c])
def test_truncation_cuts_the_trace_and_bootstraps_from_the_final_observation(make):
    batch = prepare(make(), truncated=[(1, 0)], final={(1, 0): 60.0})
    # V(final) = 60, and not the 30 of the next episode's first observation.
    assert column(batch, "advantage") == [1 + (2 + 30 - 20) / 8, 2 + 30 - 20, -6]


@pytest.mark.parametrize("make", [ppo, a2c])
def test_an_episode_truncated_at_the_rollouts_end(make):
    batch = prepare(make(), truncated=[(2, 0), (2, 1)], final={(2, 0): 60.0, (2, 1): 6.0})
    assert batch["advantage"][2].tolist() == [4 + 30 - 30, 8 + 3 - 3]


def reinforce(**kwargs):
    return REINFORCE(SPEC, network=network, **{"gamma": G, **kwargs})


def test_reinforce_with_baseline_is_the_return_minus_the_value():
    batch = prepare(reinforce())
    assert column(batch, "target") == [8, 14, 24]
    assert column(batch, "advantage") == [-2, -6, -6]


def test_reinforce_with_baseline_bootstraps_at_time_limits():
    batch = prepare(reinforce(), truncated=[(1, 0)], final={(1, 0): 60.0}, terminated=[(1, 1)])
    assert column(batch, "target") == [1 + 16, 2 + 30, 24]
    assert column(batch, "target", 1) == [0, 0, 8 + 2]


def test_reinforce_without_baseline_uses_rewards_of_finished_episodes_only():
    agent = reinforce(baseline=False)
    batch = prepare(agent, terminated=[(1, 0)], truncated=[(2, 1)], final={(2, 1): 6.0})
    # 1 + ½·2, 2, and nothing is known of the last step's episode.
    assert column(batch, "advantage")[:2] == [2, 2]
    assert column(batch, "valid") == [True, True, False]
    # A time limit counts as an end: ½·½·8, ½·8, 8.
    assert column(batch, "advantage", 1) == [2, 4, 8]
    assert column(batch, "valid", 1) == [True, True, True]
    assert "target" not in batch


def test_reinforce_without_baseline_leaves_out_resets_too():
    batch = prepare(reinforce(baseline=False), terminated=[(2, 0)], valid=[(1, 0)])
    assert column(batch, "valid") == [True, False, True]
    assert column(batch, "valid", 1) == [False, False, False]


@pytest.mark.parametrize("make", [ppo, a2c, reinforce])
def test_targets_carry_no_gradient(make):
    with torch.no_grad():  # as the data module calls it
        batch = make().prepare(rollout())
    assert not any(value.requires_grad for value in batch.values())
