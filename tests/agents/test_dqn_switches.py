"""Each switch of DQN changes the target, the loss or the policy in the way that the papers say."""

import math
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from training import make_trainer

from rl_lightning import (
    DDPG,
    DQN,
    SAC,
    TD3,
    DiscreteSAC,
    EnvSpec,
    QNetwork,
    ReplayDataModule,
)
from rl_lightning.exploration import Boltzmann, EpsilonGreedy

SPEC = EnvSpec(gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2))
BOX = EnvSpec(gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Box(-2.0, 2.0, (1,), np.float32))


class Fixed(nn.Module):
    """A Q-network that says the same whatever it sees."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x):
        return self.rows.expand(len(x), *self.rows.shape)

    def resample(self):
        pass

    silence = resample

    def allowed(self, x, mask):
        return mask


def make(online, target, **kwargs):
    agent = DQN(SPEC, gamma=0.5, **kwargs)
    agent.policy, agent.target = Fixed(*online), Fixed(*target)
    return agent


def batch(**kwargs):
    entries = {
        "obs": torch.zeros(1, 1),
        "next_obs": torch.zeros(1, 1),
        "action": torch.tensor([0]),
        "reward": torch.tensor([1.0]),
        "discount": torch.tensor([0.5]),
        **kwargs,
    }
    return TensorDict(entries, batch_size=[1])


def test_plain_q_learning_takes_the_target_networks_best():
    agent = make([3.0, 4.0], [10.0, 2.0])
    assert agent.bootstrap(batch()).item() == 10.0
    _, error, value = agent.errors(batch())
    assert value.item() == 3.0
    assert error.item() == 1 + 0.5 * 10 - 3


def test_double_lets_the_online_network_choose():
    agent = make([3.0, 4.0], [10.0, 2.0], double=True)
    assert agent.bootstrap(batch()).item() == 2.0
    assert agent.errors(batch())[1].item() == 1 + 0.5 * 2 - 3


def test_double_leaves_masked_actions_out():
    agent = make([3.0, 4.0], [10.0, 2.0], double=True)
    mask = torch.tensor([[True, False]])
    assert agent.bootstrap(batch(next_action_mask=mask)).item() == 10.0


def test_a_terminal_step_has_no_bootstrap():
    agent = make([3.0, 4.0], [10.0, 2.0])
    assert agent.errors(batch(discount=torch.tensor([0.0])))[1].item() == 1 - 3


def test_huber_or_half_the_square():
    errors = {}
    for kind in ("huber", "mse"):
        errors[kind] = make([3.0, 4.0], [10.0, 2.0], error=kind).errors(batch())[0].item()
    assert errors == {"huber": 3 - 0.5, "mse": 0.5 * 3**2}


def test_importance_weights_scale_the_loss():
    agent = make([3.0, 4.0], [10.0, 2.0], error="mse")
    loss = agent.loss(batch(weight=torch.tensor([0.25])))
    assert loss.value.item() == 0.25 * 4.5
    assert loss.row_errors.item() == 3.0


def test_categorical_projects_the_shifted_distribution():
    """Atoms 0, 1, 2; next all on 2; 1 + 0.5 · 2 = 2: cross-entropy with the last atom."""
    sure = [[-50.0, -50.0, 50.0], [50.0, -50.0, -50.0]]
    agent = make(
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        sure,
        distribution="categorical",
        atoms=3,
        value_range=(0.0, 2.0),
    )
    assert agent.values(torch.tensor([sure])).tolist() == [pytest.approx([2.0, 0.0])]
    assert agent.errors(batch())[0].item() == pytest.approx(math.log(3))
    # r = 0.5: 0.5 + 0.5 · 2 = 1.5 lies half on 1 and half on 2.
    agent.policy = Fixed([0.0, 1.0, 2.0], [0.0, 0.0, 0.0])
    log_p = torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)
    expected = -(log_p[1] + log_p[2]) / 2
    assert agent.errors(batch(reward=torch.tensor([0.5])))[0].item() == pytest.approx(expected)


def test_quantiles_regress_on_all_target_quantiles():
    """θ = (0, 0), targets 1 + 0.5 · (2, 6) = (2, 4): Σᵢ τᵢ mean of (1.5, 3.5), τ = ¼ and ¾."""
    agent = make(
        [[0.0, 0.0], [0.0, 0.0]], [[2.0, 6.0], [0.0, 0.0]], distribution="quantile", atoms=2
    )
    loss, priority, _ = agent.errors(batch())
    assert loss.item() == pytest.approx(0.25 * 2.5 + 0.75 * 2.5)
    assert priority.item() == 3.0


def test_dueling_subtracts_the_mean_advantage():
    network = QNetwork(SPEC, DQN(SPEC).policy.encoder.__class__, hidden=(), dueling=True)
    with torch.no_grad():
        for layer, bias in ((network.value[0], [5.0]), (network.advantage[0], [1.0, 3.0])):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))
    assert network(torch.zeros(1, 1)).tolist() == [[4.0, 6.0]]


def test_noise_explores_and_is_silent_otherwise():
    agent = DQN(SPEC, network=partial(QNetwork, noisy=True), exploration=None)
    x = torch.zeros(1, 1)
    seen = {agent.act(x, explore=True)["action"].item() for _ in range(200)}
    values = {agent.inspect(x)["values"][0, 0].item() for _ in range(5)}
    assert (seen, len(values)) == ({0, 1}, 1)
    plain = DQN(SPEC, exploration=None)
    assert len({plain.act(x, explore=True)["action"].item() for _ in range(50)}) == 1


def test_exploration_is_what_it_was_built_with():
    x = torch.zeros(2000, 1)
    always = DQN(SPEC, exploration=partial(EpsilonGreedy, start=1.0, end=1.0))
    share = always.act(x)["action"].float().mean().item()
    assert share == pytest.approx(0.5, abs=0.05)
    warm = DQN(SPEC, exploration=partial(Boltzmann, start=1.0, end=1.0))
    with torch.no_grad():
        p = warm.inspect(x[:1])["values"].softmax(-1)[0, 1].item()
    assert warm.act(x)["action"].float().mean().item() == pytest.approx(p, abs=0.05)
    assert len(set(always.act(x, explore=False)["action"].tolist())) == 1


@pytest.mark.parametrize(
    ("kwargs", "moved"),
    [
        ({"target_update_frames": 10}, {10: 1.0, 15: 0.0, 20: 1.0}),
        ({"target_update_frames": 0, "tau": 0.25}, {1: 0.25, 2: 0.25}),
        ({"target_update_frames": 10, "tau": 0.5}, {9: 0.0, 10: 0.5}),
    ],
)
def test_the_target_moves_when_and_as_far_as_it_is_told(kwargs, moved):
    agent = DQN(SPEC, **kwargs)
    own, copied = agent.policy.advantage[0].bias, agent.target.advantage[0].bias
    for frames, share in moved.items():
        with torch.no_grad():
            own.fill_(1.0)
            copied.zero_()
        agent.frames = frames
        agent.after_update()
        assert copied.tolist() == pytest.approx([share] * len(copied))


@pytest.mark.parametrize("kind", [SAC, TD3, DDPG])
def test_actions_reach_the_environment_in_its_units(kind):
    agent = kind(BOX)
    x = torch.randn(500, 1)
    explored = agent.act(x, state=agent.initial_state(500))["action"]
    assert explored.shape == (500, 1)
    assert explored.abs().max() <= 2.0
    inside = agent.policy.from_env(agent.policy.to_env(torch.tensor([[-1.0], [0.25], [1.0]])))
    assert inside.squeeze(1).tolist() == pytest.approx([-1.0, 0.25, 1.0])


def td_target(agent, **entries):
    """What a continuous agent's critics are drawn towards: the error of one that says 0."""
    with torch.no_grad():
        for ensemble, value in ((agent.policy.critics, 0.0), (agent.target.critics, None)):
            ensemble.weights[-1].zero_()
            ensemble.biases[-1].fill_(value or 0.0)
        for index in range(agent.target.critics.count):
            agent.target.critics.biases[-1][index].fill_(4.0 + 2.0 * index)
    data = batch(action=torch.zeros(1, 1), **entries)
    return agent.loss(data).row_errors.abs().item()


def test_sac_bootstraps_from_the_lesser_critic_and_the_entropy():
    agent = SAC(BOX, temperature=1e-8)
    assert td_target(agent) == pytest.approx(1 + 0.5 * 4.0, abs=1e-4)
    torch.manual_seed(0)
    warm = SAC(BOX, temperature=0.5)
    with torch.no_grad():  # a wide policy: its entropy is what the target gains
        warm.policy.actor[-1].weight.zero_()
        warm.policy.actor[-1].bias.zero_()
    torch.manual_seed(3)
    policy = warm.policy.policy(warm.policy.features(torch.zeros(1, 1)))
    log_prob = policy.log_prob(policy.sample()).item()
    torch.manual_seed(3)
    assert td_target(warm) == pytest.approx(1 + 0.5 * (4.0 - 0.5 * log_prob), abs=1e-4)


def test_ddpg_bootstraps_from_its_only_critic():
    assert td_target(DDPG(BOX)) == pytest.approx(1 + 0.5 * 4.0)


def test_the_temperature_rises_when_the_policy_is_too_sure():
    for target, sign in ((5.0, -1), (-20.0, 1)):
        agent = SAC(BOX, target_entropy=target)
        agent.loss(batch(action=torch.zeros(1, 1))).value.backward()
        assert math.copysign(1, agent.log_alpha.grad.item()) == sign
    fixed = SAC(BOX, learn_temperature=False)
    assert not fixed.log_alpha.requires_grad


@pytest.mark.parametrize("kind", [SAC, DDPG])
def test_no_loss_reaches_the_others_parameters(kind, monkeypatch):
    """The critics' gradients are those of the critics' loss alone, the actor's of the actor's."""
    agent = kind(BOX)
    data = batch(action=torch.full((1, 1), 0.5))
    torch.manual_seed(1)
    agent.loss(data).value.backward()
    both = [p.grad.clone() for p in agent.policy.critics.parameters()]
    q = agent.policy.critics
    agent.zero_grad()
    original = type(q).forward

    def blind(self, x, frozen=False):
        out = original(self, x, frozen)
        return out.detach() if frozen else out

    monkeypatch.setattr(type(q), "forward", blind)  # the actor's loss without its way through Q
    torch.manual_seed(1)
    agent.loss(data).value.backward()
    for a, b in zip(both, [p.grad for p in q.parameters()], strict=True):
        assert torch.equal(a, b)


def test_own_learning_rates_make_own_groups():
    agent = SAC(BOX, actor_lr=0.1, temperature_lr=0.2, optimizer=partial(torch.optim.SGD, lr=0.3))
    groups = agent.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [0.3, 0.1, 0.2]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    count = sum(p.numel() for p in agent.policy.actor.parameters())
    assert sizes == [sum(p.numel() for p in agent.policy.critics.parameters()), count, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"distribution": "mean"},
            "distribution must be none, categorical or quantile, not 'mean'",
        ),
        ({"error": "l1"}, "error must be huber or mse, not 'l1'"),
        ({"distribution": "categorical", "value_range": (1.0, 1.0)}, "value_range must ascend"),
        ({"distribution": "categorical"}, r"categorical needs value_range, .* \[0, 100\] for"),
        ({"tau": 2.0}, "tau must be between 0 and 1, not 2.0"),
        ({"distribution": "quantile", "atoms": 1}, "atoms must be at least 2, not 1"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DQN(SPEC, **kwargs)


def test_agents_refuse_spaces_they_cannot_act_in():
    with pytest.raises(ValueError, match="SAC, TD3 or DDPG for Box actions"):
        DQN(BOX)
    with pytest.raises(ValueError, match="use DQN or DiscreteSAC for Discrete actions"):
        SAC(SPEC)


def test_a_distribution_that_is_learned_has_no_priority():
    """Cross-entropy keeps the target's own entropy; the divergence does not."""
    kwargs = {"distribution": "categorical", "atoms": 3, "value_range": (0.0, 2.0)}
    flat = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    agent = make(flat, flat, **kwargs)
    loss, priority, value = agent.errors(
        batch(reward=torch.tensor([0.0]), discount=torch.tensor([1.0]))
    )
    assert loss.item() == pytest.approx(math.log(3))
    assert priority.item() == pytest.approx(0.0, abs=1e-6)
    assert value.item() == pytest.approx(1.0)


def test_masked_actions_leave_the_soft_value_finite():
    agent = DiscreteSAC(SPEC, temperature=1e6)
    policy = agent.policy.policy(torch.zeros(1, 1), torch.tensor([[True, False]]))
    assert agent._soft_value(torch.tensor([[2.0, 9.0]]), policy).item() == 2.0


@pytest.mark.parametrize("name", ["noisy", "sac", "td3", "ddpg", "discrete_sac"])
def test_logging_changes_nothing_and_names_every_loss(name):
    """A logged step must not touch what the backward pass needs."""
    env, make = {
        "noisy": ("CartPole-v1", partial(DQN, network=partial(QNetwork, noisy=True))),
        "sac": ("Pendulum-v1", SAC),
        "td3": ("Pendulum-v1", TD3),
        "ddpg": ("Pendulum-v1", DDPG),
        "discrete_sac": ("CartPole-v1", DiscreteSAC),
    }[name]
    ends = []
    for every in (1, 1000):
        torch.manual_seed(0)
        data = ReplayDataModule(
            env, warmup_frames=50, frames_per_epoch=20, total_frames=90, batch_size=8, seed=1,
            save_replay=False,
        )  # fmt: skip
        agent = make(data.spec)
        trainer = make_trainer(log_every_n_steps=every, gradient_clip_val=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(agent, data)
        ends.append(agent.state_dict())
        if every == 1:
            assert "loss/q" in trainer.logged_metrics
            assert ("loss/policy" in trainer.logged_metrics) == (name != "noisy")
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_exploration_goes_on_where_the_checkpoint_stood(tmp_path):
    agent = DQN(SPEC)
    agent.progress = 0.75
    checkpoint: dict = {}
    agent.on_save_checkpoint(checkpoint)
    fresh = DQN(SPEC)
    fresh.on_load_checkpoint(checkpoint)
    assert fresh.progress == 0.75
