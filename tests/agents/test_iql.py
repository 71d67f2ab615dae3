"""IQL finds the best of what was recorded; its values are right by hand."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import ACTIONS as SPACES
from probes import OBSERVATIONS, batch
from recorded import learn, offline, record
from tensordict import TensorDict
from training import judge, make_trainer

from rl_lightning import BC, IQL, ActorCritic, MLPEncoder, OfflineNetwork
from rl_lightning.agents.agent import adam
from rl_lightning.agents.iql import MAX_WEIGHT
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths import losses

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")
NARROW = partial(OfflineNetwork, hidden=(32,))


def train(path, task, updates=500, n_step=1, horizon=None, data=None, lr=1e-2, **kwargs):
    """Train IQL on a probe's file for a second or two."""
    own = {"n_step": n_step, "total_updates": updates, "batch_size": 64, **(data or {})}
    make = partial(
        IQL,
        **{
            "network": NARROW,
            "optimizer": partial(adam, lr=lr),
            "gamma": 0.5,
            "tau": 0.1,
            **kwargs,
        },
    )
    return learn(make, offline(path, task, **own))


def value(agent, state, observation="vector"):
    with torch.no_grad():
        return agent.inspect(agent.preprocess(batch(observation, state)))["value"].item()


def q(agent, state, action):
    with torch.no_grad():
        features = agent.policy.features(agent.preprocess(batch("vector", state)))
        return agent.policy.q(features, torch.as_tensor(action)[None]).mean().item()


# --- the point of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        "discrete",
        pytest.param("box", marks=pytest.mark.slow),
        pytest.param("multi_discrete", marks=pytest.mark.slow),
        pytest.param("multi_binary", marks=pytest.mark.slow),
    ],
)
def test_the_best_action_of_random_ones_is_found_where_imitation_finds_none(action, tmp_path):
    """Actions are uniformly random and judged a step later, so that n = 2 sees the judgement."""
    path = record(tmp_path / "data.hdf5", action=action, episodes=400)
    data = {"action": action}
    agent = train(path, "policy", 600, n_step=2, beta=20.0, expectile=0.9, data=data)
    good = [judge(agent, "vector", action, (s,), s, explore=False) for s in (0, 1)]
    assert min(good) > 0.7, good
    cloned = learn(
        partial(BC, network=partial(ActorCritic, hidden=(32,)), optimizer=partial(adam, lr=1e-2)),
        offline(path, total_updates=300, batch_size=64, **data),
    )
    # Greedily, imitation may be lucky in a discrete space: so as it acts while exploring.
    chance = [judge(cloned, "vector", action, (s,), s, explore=True) for s in (0, 1)]
    assert max(chance) < 0.35, chance


# --- values by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("expectile", [0.5, 0.9, pytest.param(0.7, marks=pytest.mark.slow)])
def test_v_is_the_expectile_of_q(expectile, tmp_path):
    """Rewards of 1 and −1, equally often: τ (1 − V) = (1 − τ) (V + 1), so V = 2 τ − 1."""
    turns = iter(range(400))

    def choose(env, rng):
        return next(turns) % 2

    path = record(tmp_path / "data.hdf5", "action", choose=choose, episodes=200)
    agent = train(path, "action", expectile=expectile)
    assert q(agent, 0, 0) == pytest.approx(-1.0, abs=0.1)
    assert q(agent, 0, 1) == pytest.approx(1.0, abs=0.1)
    assert value(agent, 0) == pytest.approx(2 * expectile - 1, abs=0.12)


def test_values_of_a_chain(tmp_path):
    agent = train(record(tmp_path / "data.hdf5", "delayed"), "delayed")
    assert value(agent, 1) == pytest.approx(1.0, abs=0.05)
    assert value(agent, 0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("terminate", "expected"), [(False, 2.0), (True, 1 / 0.6)])
def test_a_truncation_is_no_end(terminate, expected, tmp_path):
    """1 for ever is worth 1 / (1 − γ); where a fifth of all steps are the last, V = 1 + 0.8 γV."""
    path = record(tmp_path / "data.hdf5", "truncated", terminate=terminate)
    data = {"terminate": terminate}
    agent = train(path, "truncated", expectile=0.5, data=data, lr=3e-3)
    assert value(agent, 0) == pytest.approx(expected, abs=0.12)


@pytest.mark.slow
def test_n_step_sees_what_one_step_cannot(tmp_path):
    path = record(tmp_path / "data.hdf5", episodes=200)
    one = train(path, "policy", 400, n_step=1)
    two = train(path, "policy", 400, n_step=2)
    for state in (0, 1):
        assert abs(q(one, state, state) - q(one, state, 1 - state)) < 0.2
        assert q(two, state, state) == pytest.approx(0.5, abs=0.1)
        assert q(two, state, 1 - state) == pytest.approx(-0.5, abs=0.1)


def test_half_an_expectile_is_the_mean():
    torch.manual_seed(0)
    error = torch.randn(50)
    torch.testing.assert_close(losses.expectile_loss(error, 0.5), 0.5 * error.square().mean())
    data = torch.randn(1000)
    prediction = torch.zeros((), requires_grad=True)
    losses.expectile_loss(data - (prediction + data.mean()), 0.5).backward()
    assert prediction.grad.abs() < 1e-6


# --- knobs ------------------------------------------------------------------------------------


def test_beta(tmp_path):
    """0 imitates; a large one leaves nothing but the best."""
    path = record(tmp_path / "data.hdf5", "action", episodes=400)
    none, strong = (train(path, "action", beta=beta, lr=5e-3) for beta in (0.0, 5.0))
    x = none.preprocess(batch("vector", 0))
    with torch.no_grad():
        right = [agent.inspect(x)["probabilities"][0, 1].item() for agent in (none, strong)]
    assert right[0] == pytest.approx(0.5, abs=0.15)
    assert right[1] > 0.97


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_tau(tau):
    agent = build(tau=tau)
    before = [p.clone() for p in agent.target.critics.parameters()]
    with torch.no_grad():
        for p in agent.policy.parameters():
            p.add_(1.0)
    agent.after_update()
    for old, new in zip(before, agent.target.critics.parameters(), strict=True):
        torch.testing.assert_close(new, old + tau)
    names = {name.partition(".")[0] for name, _ in agent.target.named_parameters()}
    assert names == {"critics"}


def test_learning_rates_of_groups():
    encoder = partial(MLPEncoder, hidden=(8,))
    agent = build(
        encoder=encoder,
        optimizer=partial(adam, lr=0.1),
        encoder_lr=0.2,
        actor_lr=0.3,
        value_lr=0.4,
    )
    rates = {
        id(p): group["lr"]
        for group in agent.configure_optimizers().param_groups
        for p in group["params"]
    }
    policy = agent.policy
    parts = {
        0.1: policy.critics,
        0.2: policy.encoder,
        0.3: torch.nn.ModuleList([policy.actor, policy.action_head]),
        0.4: policy.value,
    }
    expected = {id(p): lr for lr, part in parts.items() for p in part.parameters()}
    assert rates == expected


def test_gamma_and_max_grad_norm_are_the_bases():
    agent = build(gamma=0.7, max_grad_norm=0.5)
    assert (agent.gamma, agent.max_grad_norm) == (0.7, 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"expectile": 0.4}, "expectile must be between 0.5 and"),
        ({"expectile": 1.0}, "expectile must be between 0.5 and"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"tau": 2.0}, "tau must be between 0 and 1"),
        ({"actor_lr": -1.0}, "actor_lr must be at least 0"),
        ({"value_lr": -1.0}, "value_lr must be at least 0"),
    ],
)
def test_impossible_arguments(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        build(**kwargs)


# --- the loss ---------------------------------------------------------------------------------


def build(action="discrete", **kwargs):
    agent = IQL(EnvSpec(OBSERVATIONS["vector"], SPACES[action]), **{"network": NARROW, **kwargs})
    return agent


def rows(action, count=16):
    space = SPACES[action]
    space.seed(1)
    taken = torch.from_numpy(np.stack([space.sample() for _ in range(count)]))
    return TensorDict(
        {
            "obs": torch.randn(count, 2),
            "next_obs": torch.randn(count, 2),
            "action": taken if action == "box" else taken.long(),
            "reward": torch.randn(count),
            "discount": torch.rand(count),
        },
        [count],
    )


@pytest.mark.parametrize("action", SPACES)
def test_each_part_learns_from_its_own_loss_and_from_no_other(action):
    """Equations 5 to 7, each differentiated by itself, at a target that is not the online one."""
    torch.manual_seed(0)
    agent = build(action, encoder=partial(MLPEncoder, hidden=(8,)), expectile=0.8, beta=2.0)
    policy, target, given = agent.policy, agent.target, rows(action)
    with torch.no_grad():
        for p in [*target.critics.parameters(), *policy.value.parameters()]:
            p.add_(0.1 * torch.randn_like(p))
    agent.loss(given).value.backward()

    taken = given["action"]
    with torch.no_grad():
        known = target.q(target.features(given["obs"]), taken).min(0).values
        following = policy.v(policy.features(given["next_obs"]))
        v_now = policy.v(policy.features(given["obs"]))
        weight = (2.0 * (known - v_now)).exp().clamp(max=MAX_WEIGHT)
    seen = policy.features(given["obs"])
    error = known - policy.v(seen)
    v_loss = (torch.where(error > 0, 0.8, 0.2) * error.square()).mean()
    goal = given["reward"] + given["discount"] * following
    q_loss = sum((out - goal).square().mean() for out in policy.q(seen, taken))
    log_prob = policy.policy(seen).log_prob(policy.action_head.to_latent(taken))
    policy_loss = -(weight * log_prob).mean()
    parts = [
        (v_loss, [*policy.value.parameters()]),
        (q_loss, [*policy.critics.parameters(), *policy.encoder.parameters()]),
        (policy_loss, [*policy.actor.parameters(), *policy.action_head.parameters()]),
    ]
    assert sum(len(own) for _, own in parts) == len(list(policy.parameters()))
    for loss, own in parts:
        for p, expected in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
            torch.testing.assert_close(p.grad, expected)
    assert all(p.grad is None for p in target.parameters())


def test_weights_are_clipped():
    agent = build(beta=1e6)
    loss = agent.loss(rows("discrete")).value
    assert torch.isfinite(loss)
    agent = build(beta=1e6)
    with torch.no_grad():
        agent.target.critics.biases[-1].fill_(1e3)  # every action is far better than V
    given = rows("discrete")
    loss = agent.loss(given).value
    features = agent.policy.features(given["obs"])
    log_prob = agent.policy.policy(features).log_prob(given["action"])
    (actor,) = torch.autograd.grad(loss, agent.policy.action_head.linear.weight)
    (own,) = torch.autograd.grad(
        -MAX_WEIGHT * log_prob.mean(), agent.policy.action_head.linear.weight
    )
    torch.testing.assert_close(actor, own)


def test_a_trained_encoder_has_a_target():
    agent = build(encoder=partial(MLPEncoder, hidden=(8,)))
    assert agent.target.encoder is not agent.policy.encoder
    shared = build()
    assert shared.target.encoder is shared.policy.encoder


def test_observations_are_standardised():
    agent = build(encoder=partial(MLPEncoder, normalize=True))
    agent.observe(np.array([[0.0, 10.0], [2.0, 30.0], [4.0, 50.0]], np.float32))
    raw = np.array([[4.0, 10.0]], np.float32)
    x = agent.preprocess(raw)
    assert torch.equal(x, torch.from_numpy(raw))
    with torch.no_grad():
        seen = agent.encoder.standardized(x)
        expected = agent.policy.value(seen).item()
        assert agent.inspect(x)["value"].item() == pytest.approx(expected)
        probabilities = agent.policy.action_head(agent.policy.actor(seen)).probabilities()
        torch.testing.assert_close(agent.inspect(x)["probabilities"], probabilities)
        assert agent.act(x, explore=False)["action"] == probabilities.argmax()


# --- what critics read of actions -------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (gym.spaces.Discrete(3, start=1), 3, [0, 0, 1]),
        (gym.spaces.MultiDiscrete([2, 3], start=[0, -1]), [1, 0], [0, 1, 0, 1, 0]),
        (gym.spaces.MultiBinary(2), [1, 0], [0, 1, 1, 0]),
        (gym.spaces.Box(-2.0, 4.0, (1, 2), np.float32), [[1.0, 4.0]], [0, 1]),
        (gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), [3.0, -5.0], [3, -5]),
    ],
)
def test_actions_as_critics_read_them(space, action, expected):
    network = OfflineNetwork(EnvSpec(OBSERVATIONS["vector"], space), MLPEncoder)
    assert network.read_action(torch.tensor(action)[None]).tolist() == [expected]


def test_layers_are_as_wide_as_asked():
    spec = EnvSpec(OBSERVATIONS["vector"], SPACES["box"])
    network = OfflineNetwork(
        spec, MLPEncoder, hidden=(7, 5), activation="tanh", layer_norm=True, squash=True,
        log_std_init=-1.5, critics=3,
    )  # fmt: skip
    assert [w.shape[0] for w in network.critics.weights] == [3, 3, 3]
    assert [w.shape[2] for w in network.critics.weights] == [7, 5, 1]
    assert network.critics.layer_norm
    assert isinstance(network.critics.activation, torch.nn.Tanh)
    widths = [m.out_features for m in network.actor if isinstance(m, torch.nn.Linear)]
    assert widths == [7, 5]
    assert network.action_head.squash
    assert network.action_head.log_std.tolist() == [-1.5]


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_load_from_checkpoint(action, tmp_path):
    agent = build(action, expectile=0.9, beta=1.0, encoder=partial(MLPEncoder, hidden=(6,)))
    with torch.no_grad():
        agent.policy.action_head.linear.weight.normal_()
    trainer = make_trainer()
    trainer.strategy.connect(agent)
    trainer.save_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    loaded = IQL.load_from_checkpoint(tmp_path / "agent.ckpt")
    assert (loaded.expectile, loaded.beta) == (0.9, 1.0)
    x = agent.preprocess(batch("vector", 0, 1, 2))
    with torch.no_grad():
        for key, thought in agent.eval().inspect(x).items():
            assert torch.equal(loaded.eval().inspect(x)[key], thought)
        assert torch.equal(
            agent.act(x, explore=False)["action"], loaded.act(x, explore=False)["action"]
        )
