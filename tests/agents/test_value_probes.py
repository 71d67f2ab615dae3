"""Tasks whose values, or whose best action, everybody can work out by hand."""

import pytest
from training import ACTIONS, AGENTS, CRITICS, judge, train_probe, values

pytestmark = pytest.mark.learning

OTHER_ENCODERS = (
    "one_hot",
    "nature",
    "impala",
    "dict",
    "tuple",
    "llm_frozen",
    "llm_lora",
    "llm_full",
)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", CRITICS)
def test_constant_reward_has_value_one(name, action):
    agent = train_probe(name, "constant", action=action)
    assert values(agent, "vector", 0) == pytest.approx([1.0], abs=0.1)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", CRITICS)
def test_reward_that_the_observation_tells(name, action):
    agent = train_probe(name, "observation", action=action)
    seen = values(agent, "vector", 0) + values(agent, "vector", 1)
    assert seen == pytest.approx([-1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", CRITICS)
def test_reward_one_step_later_is_discounted_once(name, action):
    agent = train_probe(name, "delayed", action=action, gamma=0.7)
    assert values(agent, "vector", 0, 1) == pytest.approx([0.7, 1.0], abs=0.1)


@pytest.mark.parametrize(
    "name", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a2c", "reinforce"))]
)
@pytest.mark.parametrize("encoder", OTHER_ENCODERS)
def test_every_encoder_learns_discounted_values(encoders, encoder, name):
    observation, build = encoders[encoder]
    slow = {"lr": 4e-3} if encoder in ("nature", "impala", "dict") else {}
    if encoder in ("llm_lora", "llm_full"):
        slow = {"encoder_lr": 1e-3}
    rollouts = 20 if name == "ppo" else 80
    agent = train_probe(
        name, "delayed", observation, rollouts=rollouts, encoder=build, gamma=0.7, **slow
    )
    assert values(agent, observation, 0, 1) == pytest.approx([0.7, 1.0], abs=0.12)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_critics_learn_discounted_values(kind, name, share):
    network = {"recurrent": kind, "recurrent_size": 16, "share_encoder": share}
    agent = train_probe(name, "delayed", gamma=0.7, network=network, sequence_length=2)
    assert values(agent, "vector", 0, 1) == pytest.approx([0.7, 1.0], abs=0.12)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", AGENTS)
def test_the_greedy_policy_finds_the_rewarded_action(name, action):
    agent = train_probe(name, "action", action=action)
    found = judge(agent, "vector", action, (0,), 1, explore=False)
    assert found >= (0.6 if "box" in action else 1.0)


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_memory_recalls_what_was_shown_before(kind, name, length):
    """In the dark, only the state carried over from the first step says what is right."""
    agent = train_probe(
        name,
        "recall",
        network={"recurrent": kind, "recurrent_size": 16},
        sequence_length=length,
        rollouts=24 if name == "ppo" else 90,
    )
    assert [judge(agent, "vector", "discrete", (s, 2), s, explore=False) for s in (0, 1)] == [1, 1]


def test_without_memory_nothing_is_recalled():
    agent = train_probe("ppo", "recall")
    found = [judge(agent, "vector", "discrete", (s, 2), s, explore=False) for s in (0, 1)]
    assert sorted(found) == [-1, 1]
