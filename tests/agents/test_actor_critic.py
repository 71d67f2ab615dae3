"""Every argument of the network changes what it says it changes."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rl_lightning import ActorCritic, MLPEncoder
from rl_lightning.core.types import EnvSpec, Rollout
from rl_lightning.data.collect.collector import Collector
from rl_lightning.envs import make_vector_env
from rl_lightning.maths.distributions import SquashedGaussian

BOX = gym.spaces.Box(-2.0, 6.0, (3,))
SPEC = EnvSpec(gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2))
CONTINUOUS = EnvSpec(SPEC.observation_space, BOX)
encoder = partial(MLPEncoder, hidden=(5,))


def build(spec=SPEC, encoder=encoder, **kwargs):
    return ActorCritic(spec, encoder, **kwargs)


def widths(trunk):
    return [m.out_features for m in trunk if isinstance(m, nn.Linear)]


def value_gradient(policy, of):
    policy.zero_grad()
    policy.value(torch.randn(4, 2)).sum().backward()
    return any(p.grad is not None and p.grad.any() for p in of.parameters())


@pytest.mark.parametrize("hidden", [(), (7,), (8, 9)])
def test_hidden(hidden):
    policy = build(hidden=hidden)
    assert widths(policy.actor) == list(hidden)
    assert widths(policy.critic) == [*hidden, 1]
    assert policy.action_head.linear.in_features == (hidden[-1] if hidden else 5)


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("elu", nn.ELU)])
def test_activation(name, kind):
    policy = build(activation=name, hidden=(4, 4))
    for trunk in (policy.actor, policy.critic):
        assert [type(m) for m in trunk if not isinstance(m, nn.Linear)] == [kind, kind]


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be .*tanh.*'sine'"):
        build(activation="sine")


@pytest.mark.parametrize("bad", [0, -3])
def test_impossible_widths_are_refused(bad):
    with pytest.raises(ValueError, match="hidden must hold positive widths"):
        build(hidden=(4, bad))
    with pytest.raises(ValueError, match=f"recurrent_size must be at least 1, not {bad}"):
        build(recurrent="gru", recurrent_size=bad)


@pytest.mark.parametrize("bad", ["LSTM", "", True])
def test_a_memory_that_there_is_not(bad):
    with pytest.raises(ValueError, match="recurrent must be lstm or gru, or None, not"):
        build(recurrent=bad)


def test_a_shared_encoder_learns_from_actor_and_critic():
    policy = build()
    assert policy.critic_encoder is None
    assert value_gradient(policy, policy.encoder)


def test_separate_encoders_do_not_touch_each_other():
    policy = build(share_encoder=False)
    assert policy.critic_encoder is not None
    assert not value_gradient(policy, policy.encoder)
    assert value_gradient(policy, policy.critic_encoder)
    policy.zero_grad()
    policy.action_head(policy.actor(policy.encoder(torch.randn(4, 2)))).entropy().sum().backward()
    assert all(p.grad is None for p in policy.critic_encoder.parameters())


def test_there_is_nothing_to_separate_in_an_encoder_that_learns_nothing():
    policy = build(encoder=MLPEncoder, share_encoder=False)
    assert policy.critic_encoder is None
    assert not list(policy.encoder.parameters())


@pytest.mark.parametrize(("kind", "states"), [("lstm", 2), ("gru", 1)])
def test_recurrent_and_its_size(kind, states):
    shared = build(recurrent=kind, recurrent_size=6)
    assert isinstance(shared.memory.cell, nn.LSTM if kind == "lstm" else nn.GRU)
    assert shared.memory.cell.hidden_size == shared.actor[0].in_features == 6
    assert shared.state_dim == states * 6
    assert build(recurrent=kind, recurrent_size=6, share_encoder=False).state_dim == 2 * states * 6
    assert build().state_dim == 0
    assert build().memory is None


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_separate_memories_do_not_touch_each_other(kind):
    policy = build(recurrent=kind, recurrent_size=6, share_encoder=False)
    assert not value_gradient(policy, policy.memory)
    assert value_gradient(policy, policy.critic_memory)
    shared = build(recurrent=kind, recurrent_size=6)
    assert shared.critic_memory is None
    assert value_gradient(shared, shared.memory)


def test_without_critic_there_is_no_value():
    policy = build(critic=False, share_encoder=False)
    assert policy.critic is None
    assert policy.critic_encoder is None
    assert "value" not in policy.act(torch.zeros(1, 2))
    with pytest.raises(AssertionError, match="without a critic"):
        policy.value(torch.zeros(1, 2))


@pytest.mark.parametrize("log_std", [-2.0, 0.5])
@pytest.mark.parametrize("squash", [True, False])
def test_log_std_init_is_the_initial_spread(squash, log_std):
    torch.manual_seed(0)
    policy = build(CONTINUOUS, squash=squash, log_std_init=log_std)
    spread = policy.act(torch.zeros(4000, 2))["latent"].std(0).log()
    assert spread.tolist() == pytest.approx([log_std] * 3, abs=0.05)


def test_clipped_actions_end_at_the_bounds():
    torch.manual_seed(0)
    out = build(CONTINUOUS, log_std_init=3.0).act(torch.zeros(200, 2))
    assert out["action"].min() == -2
    assert out["action"].max() == 6
    assert (out["latent"] > 6).any()
    inside = (out["latent"] > -2) & (out["latent"] < 6)
    assert torch.equal(out["action"][inside], out["latent"][inside])


def test_squashed_actions_stay_inside_the_bounds():
    torch.manual_seed(0)
    policy = build(CONTINUOUS, squash=True)
    out = policy.act(torch.zeros(200, 2))
    assert ((out["action"] > -2) & (out["action"] < 6)).all()
    torch.testing.assert_close(out["action"], 2 + 4 * out["latent"].tanh())
    assert isinstance(policy.action_head(policy.actor(torch.zeros(1, 5))), SquashedGaussian)


def test_squash_needs_bounds():
    unbounded = EnvSpec(SPEC.observation_space, gym.spaces.Box(-1.0, float("inf"), (1,)))
    with pytest.raises(ValueError, match=r"finite bounds.*set squash: false"):
        build(unbounded, squash=True)


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3, start=2), gym.spaces.MultiDiscrete([2, 3], start=[5, 7])]
)
def test_spaces_that_do_not_start_at_zero(space):
    policy = build(EnvSpec(SPEC.observation_space, space))
    out = policy.act(torch.zeros(50, 2))
    assert all(space.contains(a) for a in out["action"].numpy())
    assert (out["action"] - out["latent"] == torch.as_tensor(space.start)).all()


def test_exploring_samples_and_greedy_does_not():
    torch.manual_seed(0)
    policy, x = build(), torch.zeros(100, 2)
    assert len(policy.act(x, explore=True)["action"].unique()) == 2
    assert len(policy.act(x, explore=False)["action"].unique()) == 1


# --- what acting notes and what is recalled ---------------------------------------------------


class Alone:
    """A policy as the collector sees an agent."""

    device = torch.device("cpu")

    def __init__(self, policy):
        self.policy, self.act = policy, policy.act

    def observe(self, obs):
        self.policy.encoder.observe(obs)

    def preprocess(self, obs):
        return self.policy.encoder.preprocess(obs)

    def read_mask(self, info):
        mask = info.get("action_mask")
        return None if mask is None else torch.as_tensor(mask).bool()

    def initial_state(self, num_envs):
        width = self.policy.state_dim
        return torch.zeros(num_envs, width) if width else None


def collect(policy, **kwargs) -> Rollout:
    env = make_vector_env("Probe-v0", 3, env_kwargs=kwargs)
    return Collector(env, 8, seed=0).collect(Alone(policy))


@pytest.mark.parametrize("kwargs", [{"task": "policy"}, {"task": "truncated", "mask": True}])
@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary", "box"])
def test_what_is_recalled_is_what_acting_noted(action, kwargs):
    kwargs = {**kwargs, "action": action, "mask": kwargs.get("mask", False) and action != "box"}
    spec = EnvSpec(
        SPEC.observation_space,
        make_vector_env("Probe-v0", 1, env_kwargs=kwargs).single_action_space,
    )
    policy = build(spec, MLPEncoder)
    nn.init.normal_(policy.action_head.linear.weight)  # type: ignore[arg-type]
    assert not policy.evaluates_while_acting
    assert "log_prob" not in collect(policy, **kwargs).steps
    policy.evaluates_while_acting = True
    steps = collect(policy, **kwargs).steps
    with torch.no_grad():
        noted = policy.recall(steps)
        recalled = policy.recall(steps.exclude("log_prob", "value"))
    for a, b in zip(noted, recalled, strict=True):
        assert kwargs["task"] == "truncated" or a.std() > 0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_acting_notes_what_would_be_expensive_to_recall():
    assert build().evaluates_while_acting
    assert build(encoder=MLPEncoder, recurrent="gru").evaluates_while_acting
    assert not build(encoder=MLPEncoder).evaluates_while_acting


# --- memory and episodes ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_nothing_crosses_an_episodes_start(kind):
    """Values after a start depend neither on observations nor on the state before it."""
    policy = build(recurrent=kind, recurrent_size=6)
    x = torch.randn(5, 1, 2)
    batch = TensorDict(
        {
            "obs": x,
            "action": torch.zeros(5, 1, dtype=torch.int64),
            "state": torch.randn(5, 1, policy.state_dim),
            "start": torch.tensor([0, 0, 0, 1, 0], dtype=torch.bool)[:, None],
        },
        batch_size=(5, 1),
    )
    before = policy.evaluate(batch).value
    batch["obs"] = torch.cat([x[:3] + 1, x[3:]])
    batch["state"] = batch["state"] + 1
    after = policy.evaluate(batch).value
    assert torch.equal(before[3:], after[3:])
    assert (before[:3] != after[:3]).all()
    fresh = policy.value(x[3], torch.zeros(1, policy.state_dim))
    torch.testing.assert_close(after[3], fresh)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_every_gate_starts_orthogonal(kind):
    memory = build(recurrent=kind, recurrent_size=6).memory
    for gate in memory.cell.weight_hh_l0.split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), rtol=0, atol=1e-5)
    assert not memory.cell.bias_ih_l0.any()
