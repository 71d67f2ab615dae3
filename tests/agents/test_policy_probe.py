"""Every agent, action space and encoder on one task whose best policy and values are known.

The first observation shows one of two states and asks for an action that fits it; the reward, 1 for
the right one and −1 for the most wrong one, comes one step later and in the dark. So the encoder
must tell states apart, the head must emit the right action, credit must go one step back, and the
critic must learn V(first) = γ E[r] and V(dark) = E[r], γ = ½, where E[r] is what the policy
earns as it is. A policy that ignores the state has a greedy return of 0.
"""

import pytest
from training import ACTIONS, AGENTS, judge, train_probe, values

pytestmark = pytest.mark.learning

# Learning rates at which narrow ReLUs and whole language models survive.
TRAINING = {
    "mlp": {},
    "one_hot": {},
    "nature": {"lr": 4e-3},
    "impala": {"lr": 4e-3},
    "dict": {"lr": 4e-3},
    "tuple": {},
    "llm_frozen": {},
    "llm_lora": {"encoder_lr": 2e-3},
    "llm_full": {"encoder_lr": 1e-3},
}
RECURRENT = {"hidden": (16,), "recurrent_size": 16}


def check(agent, observation, action):
    greedy = [judge(agent, observation, action, (s,), s, explore=False) for s in (0, 1)]
    assert min(greedy) >= (0.3 if "box" in action else 1.0), greedy
    if agent.policy.critic is None:
        return
    earned = sum(judge(agent, observation, action, (s,), s, explore=True) for s in (0, 1)) / 2
    (first_0, dark_0), (first_1, dark_1) = (values(agent, observation, s, 2) for s in (0, 1))
    assert (first_0 + first_1) / 2 == pytest.approx(0.5 * earned, abs=0.2)
    assert (dark_0 + dark_1) / 2 == pytest.approx(earned, abs=0.25)


def with_all(kinds, most_used):
    """Each kind, agent and action space; what no other test needs is `slow`, since it resembles
    one that is not: a kind with PPO, or with discrete actions."""
    for kind in kinds:
        for name in AGENTS:
            for action in ACTIONS:
                usual = kind == most_used or name == "ppo" or (name, action) == ("a2c", "discrete")
                marks = () if usual else pytest.mark.slow
                yield pytest.param(kind, name, action, marks=marks, id=f"{kind}-{name}-{action}")


@pytest.mark.parametrize(("encoder", "name", "action"), list(with_all(TRAINING, "mlp")))
def test_every_agent_action_space_and_encoder(encoders, encoder, name, action):
    observation, build = encoders[encoder]
    agent = train_probe(name, "policy", observation, action, encoder=build, **TRAINING[encoder])
    check(agent, observation, action)


@pytest.mark.parametrize(("kind", "name", "action"), list(with_all(["lstm", "gru"], "lstm")))
def test_every_recurrent_agent_and_action_space(kind, name, action):
    network = {**RECURRENT, "recurrent": kind}
    agent = train_probe(name, "policy", "vector", action, network=network, sequence_length=2)
    check(agent, "vector", action)
