"""PruneNet-v0: what is pruned, the budget, what is seen and rewarded, and baselines beside it."""

import copy
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from torch import nn
from training import fit

from rl_lightning.agents import DDPG, PPO, SAC
from rl_lightning.compress import count, node_groups, prune_nodes
from rl_lightning.compress.nodes import mask_nodes
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import ReplayDataModule, RolloutDataModule
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.optimise import prune_net
from rl_lightning.envs.optimise.baselines import Uniform, play
from rl_lightning.envs.optimise.compression_baselines import (
    GlobalMagnitude,
    RandomSearch,
    UniformBits,
    UniformPruning,
)
from rl_lightning.envs.optimise.layers import LayerDescription, describe_layers, together
from rl_lightning.envs.optimise.prune_net import FEATURES
from rl_lightning.envs.optimise.pruning import norm_shares, prunable, pruned, scaled
from rl_lightning.envs.optimise.reconstruct import reconstruct
from rl_lightning.envs.optimise.targets import trained_target
from rl_lightning.envs.optimise.training import Recipe, accuracy_and_loss, accuracy_of, train

NAME = "PruneNet-v0"
SMALL = {"widths": [6], "depths": [3], "epochs": 2}
HERE = __name__


class Residual(nn.Module):
    """Two convolutions that are summed up, a depthwise one, and a norm."""

    def __init__(self, in_shape, classes, width, depth):
        super().__init__()
        self.stem = nn.Conv2d(in_shape[0], width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.hidden = nn.Linear(width * 16, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.depthwise((x + self.inner(x)).relu())
        return self.head(self.hidden(x.flatten(1)).relu())


class Unprunable(nn.Module):
    def __init__(self, in_shape, classes, width, depth):
        super().__init__()
        self.only = nn.Linear(64, classes)

    def forward(self, x):
        return self.only(x.flatten(1))


RESIDUAL = {"model": f"{HERE}.Residual", "widths": [4], "depths": [1], "epochs": 1}


def make(**kwargs):
    return make_env(NAME, {**SMALL, **kwargs})


def trace(env, actions=(0.5, 0.9, 0.7), **reset):
    """All that is seen in an episode, to the last bit, and its infos."""
    obs, info = env.reset(**reset)
    seen, infos, ended = [obs.tolist()], [info], False
    while not ended:
        action = actions[(len(seen) - 1) % len(actions)]
        action = action if isinstance(action, int) else np.array([action], np.float32)
        obs, reward, ended, _, info = env.step(action)
        seen.append([*obs.tolist(), reward])
        infos.append(info)
    return seen, infos


def feature(seen, name):
    return [row[FEATURES.index(name)] for row in seen]


def smaller(env):
    """The pruned network of the episode that has just ended, made anew."""
    net = env.unwrapped
    network, splits = net.target()
    groups = net.prunable().groups
    return pruned(network, groups, net.removed, splits.x_train[:128], net.reconstruct), splits


@pytest.mark.filterwarnings("ignore:.*render", "ignore:.*symmetric and normalized")
@pytest.mark.parametrize("kwargs", [{}, {"actions": "discrete"}, {"resource": "bytes"}, RESIDUAL])
def test_gymnasium_s_checker(kwargs):
    check_env(make(**kwargs).unwrapped, skip_render_check=True)


# --- what is pruned ---------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["l2", "l1"])
@pytest.mark.parametrize("kwargs", [{}, RESIDUAL, {"data": "wine", "model": "mlp"}])
def test_without_fitting_it_is_what_prune_nodes_and_a_mask_make(kwargs, importance):
    env = make(reconstruct=False, importance=importance, budget=1.0, **kwargs)
    _, infos = trace(env, (0.5, 0.75, 1.0), seed=0)
    net = env.unwrapped
    network, splits = net.target()
    groups = net.prunable().groups
    expected, masked = copy.deepcopy(network), copy.deepcopy(network)
    shares = {g.layers[0]: s for g, s in zip(groups, (0.5, 0.25, 0.0), strict=False)}
    prune_nodes(expected, shares, splits.x_val[:2], importance=importance)
    mask_nodes(masked, [(g, gone) for g, gone in zip(groups, net.removed, strict=True) if gone])
    for other in (expected, smaller(env)[0]):
        assert torch.allclose(other(splits.x_val), masked(splits.x_val), atol=1e-4)
    assert infos[-1]["accuracy"] == accuracy_of(expected(splits.x_val), splits.y_val)
    assert infos[-1]["test_accuracy"] == accuracy_of(expected(splits.x_test), splits.y_test)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (expected, smaller(env)[0], network)]
    assert sizes[0] == sizes[1] < sizes[2]


def test_layers_that_are_summed_up_go_together():
    env = make(**RESIDUAL)
    env.reset(seed=0)
    groups = env.unwrapped.prunable().groups
    assert [set(group.layers) for group in groups] == [{"stem", "inner", "depthwise"}, {"hidden"}]
    env.step(np.array([0.5], np.float32))
    _, _, ended, _, info = env.step(np.array([1.0], np.float32))
    assert ended
    small, _ = smaller(env)
    assert (small.stem.out_channels, small.inner.out_channels, small.depthwise.groups) == (2, 2, 2)
    assert info["kept"] == 1


@pytest.mark.parametrize("resource", ["flops", "bytes"])
@pytest.mark.parametrize("kwargs", [{}, RESIDUAL, {"data": "digits", "model": "mlp"}])
def test_costs_are_what_count_says_and_the_budget_is_never_exceeded(kwargs, resource):
    env = make(resource=resource, budget=0.6, **kwargs)
    random = np.random.default_rng(0)
    for actions in ([1.0], [0.2, 1.0], [1.0, 0.2], *random.uniform(0.2, 1, (4, 3)).tolist()):
        _, infos = trace(env, [float(a) for a in actions], seed=0)
        small, splits = smaller(env)
        now, before = (count(m, splits.x_val[:1]) for m in (small, env.unwrapped.target()[0]))
        costs = [c.bytes if resource == "bytes" else c.macs for c in (now, before)]
        assert infos[-1]["cost"] == costs[0] / costs[1]
        assert infos[-1]["cost"] <= 0.6
    assert trace(env, [1.0], seed=0)[1][-1]["cost"] > 0.5  # little of it is left over


def test_shares_are_lowered_only_where_later_layers_could_not_make_up():
    infos = trace(make(), (0.5, 0.5, 0.5), seed=0)[1]  # costs 0.27
    assert [info["kept"] for info in infos[1:]] == [0.5, 0.5, 0.5]
    kept = [info["kept"] for info in trace(make(), [1.0], seed=0)[1][1:]]
    assert kept[0] == 1
    assert min(kept) < 1
    net = make().unwrapped
    net.reset(seed=0)
    groups = net.prunable().groups
    later = [1 / 3] * (len(groups) - 2)  # 0.2 of 6 channels, rounded up
    assert net.fits([1.0, kept[1], *later])
    assert not net.fits([1.0, kept[1] + 1 / 6, *later])


def test_a_float32_share_means_the_number_it_stands_for():
    for keep in range(2, 7):
        env = make(budget=1.0)
        env.reset(seed=0)
        assert env.step(np.array([keep / 6], np.float32))[-1]["kept"] == pytest.approx(keep / 6)


def test_discrete_actions_are_levels():
    env = make(actions="discrete", levels=3, lowest=0.5, budget=1.0)
    assert env.action_space.n == 3
    kept = [info["kept"] for info in trace(env, (0, 1, 2), seed=0)[1][1:]]
    assert kept == pytest.approx([3 / 6, 5 / 6, 1])  # 0.75 of 6 is rounded up
    net = env.unwrapped
    assert net.actions_of([0.1, 0.74, 0.75]) == [0, 0, 1]
    assert net.actions_of([0.5, 0.99, 1.0]) == [0, 1, 2]


def test_filling_multiplies_shares_until_the_budget_is_used():
    """Two steps ask for half of what the third one asks for, of six channels each."""
    env, plain = make(fill=True), make()
    _, infos = trace(env, (0.2, 0.2, 0.4), seed=0)
    kept = [1 - len(gone) / 6 for gone in env.unwrapped.removed]
    net = env.unwrapped
    groups = len(kept)
    assert infos[-1]["cost"] <= 0.5
    assert infos[-1]["cost"] > 2 * trace(plain, (0.2, 0.2, 0.4), seed=0)[1][-1]["cost"]
    assert kept[0] == kept[1] < kept[2]
    assert infos[-1]["kept"] == kept[2]
    assert [info["kept"] for info in infos[1:3]] == pytest.approx([2 / 6, 2 / 6])  # as asked
    larger = [k + 1 / 6 if k < 1 else 1.0 for k in kept]
    assert groups == 3
    assert not net.fits(larger)
    first = trace(make(fill=True), (0.3, 0.6, 0.6), seed=0)[1][-1]
    assert trace(make(fill=True), (0.4, 0.8, 0.8), seed=0)[1][-1]["cost"] == first["cost"]


def test_scaling_shares_by_hand():
    """A budget for the sum: 0.2, 0.4 and 0.6 times 5/4, and none above 1."""
    fits = {1.5: lambda shares: sum(shares) <= 1.5, 2.9: lambda shares: sum(shares) <= 2.9}
    assert scaled([0.2, 0.4, 0.6], fits[1.5], 0.1) == pytest.approx([0.25, 0.5, 0.75], abs=1e-4)
    assert scaled([0.6, 0.9, 0.9], fits[2.9], 0.1) == pytest.approx([0.9, 1.0, 1.0], abs=1e-4)
    assert scaled([0.1, 0.5, 0.5], lambda shares: sum(shares) <= 0.6, 0.2) == pytest.approx(
        [0.2, 0.2, 0.2], abs=1e-4
    )


def test_actions_around_uniform_multiply_its_share():
    env = make(around="uniform", budget=0.4)
    assert (env.action_space.low, env.action_space.high) == (-1, 1)
    env.reset(seed=0)
    net = env.unwrapped
    uniform = net.centre()[0]
    assert net.centre() == [uniform] * 3
    assert net.fits([uniform] * 3)
    assert not net.fits([uniform + 1 / 6] * 3)
    assert (
        play(env, UniformPruning(), 0)["accuracy"] == trace(env, [0.0], seed=0)[1][-1]["accuracy"]
    )
    kept = [info["kept"] for info in trace(env, (-1.0, -0.5, 0.5), seed=0)[1][1:]]
    shares = [uniform * 2.0**a for a in (-1, -0.5, 0.5)]
    assert kept == pytest.approx([math.ceil(6 * share - 1e-4) / 6 for share in shares])
    actions = net.actions_of([0.9 * uniform, 1.3 * uniform, 0.01])
    wanted = [math.log2(0.9), math.log2(1.3), max(-1, math.log2(0.2 / uniform))]
    assert np.concatenate(actions) == pytest.approx(wanted, abs=1e-6)
    levels = make(around="uniform", budget=0.4, actions="discrete", levels=3)
    assert trace(levels, (0, 1, 1), seed=0)[1][1]["kept"] == kept[0]


def test_actions_around_norms_multiply_each_group_s_share():
    env = make(around="norms", budget=0.4)
    env.reset(options={"task_seed": 3})
    net = env.unwrapped
    assert len(set(net.centre())) > 1
    played = play(make(budget=0.4), GlobalMagnitude(normalised=True), 3)
    middle = trace(env, [0.0], options={"task_seed": 3})[1][-1]
    assert middle["test_accuracy"] == played["test_accuracy"]
    assert middle["cost"] == played["cost"]


def test_discrete_levels_around_uniform_are_exponents():
    env = make(around="uniform", actions="discrete", levels=5)
    env.reset(seed=0)
    net = env.unwrapped
    uniform = net.centre()[0]
    assert net.actions_of([uniform * 2.0**a for a in (-0.5, 0.0, 0.4)]) == [1, 2, 2]


def test_the_part_of_largest_norms_by_hand():
    """Of norms 1, 3 and 2, 4, 6: the upper 3 of 5, and relative to means of 2 and 4."""
    found = SimpleNamespace(scores=[torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])])
    assert norm_shares(found, normalised=False)(0.6) == pytest.approx([1 / 2, 2 / 3])
    assert norm_shares(found, normalised=True)(0.4) == pytest.approx([1 / 2, 1 / 3])
    assert norm_shares(found, normalised=True)(1.0) == [1, 1]


# --- reconstruction ---------------------------------------------------------------------------


def test_reconstruction_by_hand():
    original = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        original[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        original[0].bias.zero_()
        original[1].weight.copy_(torch.tensor([[3.0, 5.0]]))
        original[1].bias.fill_(1.0)
    x = torch.tensor([[1.0, 0.0], [-2.0, 7.0], [0.5, 1.0]])
    groups = [g for g in node_groups(original, x) if g.refused is None]
    masked = copy.deepcopy(original)
    mask_nodes(masked, [(groups[0], [0])])
    assert reconstruct(original, masked, groups, [[0]], x) == ["1"]
    # y = 3 a + 5 (2a) + 1 with a = x₀; the second node alone has to have 13 / 2.
    assert masked[1].weight.tolist()[0] == pytest.approx([0.0, 6.5], abs=5e-3)
    assert masked[1].bias.item() == 1


def test_where_nothing_went_nothing_is_fitted():
    network, splits = trained_target("cnn", "digits-images", 6, 3, recipe=Recipe(epochs=2))
    found = prunable(network, splits.x_val[:2], "l2", "flops")
    same = pruned(network, found.groups, [[], [], []], splits.x_train[:16], fit=True)
    assert torch.equal(same(splits.x_val), network(splits.x_val))


def test_reconstruction_brings_outputs_nearer_and_only_in_layers_that_read():
    network, splits = trained_target(
        f"{HERE}.Residual", "digits-images", 6, 1, recipe=Recipe(epochs=3)
    )
    found = prunable(network, splits.x_val[:2], "l2", "flops")
    removed = [found.removal(0, 0.5), found.removal(1, 0.5)]
    distance = [
        (pruned(network, found.groups, removed, splits.x_train[:128], fit)(splits.x_test)
         - network(splits.x_test)).square().mean().item()
        for fit in (True, False)
    ]  # fmt: skip
    assert distance[0] < 0.5 * distance[1]
    masked = copy.deepcopy(network)
    mask_nodes(masked, list(zip(found.groups, removed, strict=True)))
    before = copy.deepcopy(masked.state_dict())
    fitted = reconstruct(network, masked, found.groups, removed, splits.x_train[:64])
    assert fitted == ["inner", "hidden", "head"]  # not the depthwise one, in the call's order
    changed = {k for k, v in masked.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"inner.weight", "hidden.weight", "head.weight"}


# --- what is seen and rewarded ----------------------------------------------------------------


def test_layers_are_described_by_hand():
    network = Residual((1, 8, 8), 10, 4, 1)
    found = describe_layers(network, torch.zeros(1, 1, 8, 8))
    assert found["stem"] == LayerDescription(True, False, 1, 4, 2, 3, 16, 36, 576)
    assert found["depthwise"] == LayerDescription(True, True, 4, 4, 1, 3, 16, 36, 576)
    assert found["hidden"] == LayerDescription(False, False, 64, 8, 1, 1, 1, 512, 512)
    assert list(found) == ["stem", "inner", "depthwise", "hidden", "head"]
    both = together([found["stem"], found["inner"]])
    assert both == found["stem"]._replace(weights=36 + 144, macs=576 + 2304)
    logs = [0, math.log10(4), 2, 3, math.log10(16), math.log10(36), math.log10(576)]
    assert found["stem"].features() == pytest.approx([1, 0, *logs])


def test_what_is_seen():
    seen, infos = trace(make(), (0.5, 0.9, 0.7), seed=0)
    assert feature(seen, "index") == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert feature(seen, "previous") == pytest.approx([1, *(i["kept"] for i in infos[1:])])
    assert feature(seen, "reduced") == pytest.approx([1 - i["cost"] for i in infos], abs=1e-6)
    macs = np.array([64 * 54, 64 * 324, 16 * 324, 60])  # two convolutions before the pooling
    assert feature(seen, "cost") == pytest.approx([*(macs[:3] / macs.sum()), 0])
    rest = [macs[1:3].sum(), macs[2], 0, 0]
    assert feature(seen, "rest") == pytest.approx(np.array(rest) / macs.sum())
    assert feature(seen, "log_macs") == pytest.approx([*np.log10(macs[:3]), 0])
    assert infos[0]["task_seed"] == infos[-1]["task_seed"]


def test_rewards_come_at_the_end():
    network, splits = trained_target("cnn", "digits-images", 6, 3, recipe=Recipe(epochs=2))
    seen, infos = trace(make(), seed=0)
    assert [row[-1] for row in seen[1:]] == [0, 0, infos[-1]["accuracy"]]
    assert infos[0]["original_accuracy"] == accuracy_of(network(splits.x_val), splits.y_val)
    for resource in ("flops", "bytes"):
        env = make(reward="error_log_flops", resource=resource)
        seen, infos = trace(env, seed=0)
        cost = count(smaller(env)[0], splits.x_val[:1])
        cost = cost.macs if resource == "flops" else cost.bytes
        expected = -(1 - infos[-1]["accuracy"]) * math.log(cost)
        assert [row[-1] for row in seen[1:]] == [0, 0, pytest.approx(expected)]


def test_a_reward_may_be_the_loss_or_of_more_rows():
    seen, infos = trace(make(reward="loss"), seed=0)
    small, splits = smaller(make_and_play())
    expected = F.cross_entropy(small(splits.x_val), splits.y_val).item()
    assert seen[-1][-1] == pytest.approx(-expected)
    assert infos[-1]["loss"] == pytest.approx(expected)
    x = torch.cat([splits.x_val, splits.x_train[128:]])
    y = torch.cat([splits.y_val, splits.y_train[128:]])
    more, infos = trace(make(judged_on="training_too"), seed=0)
    assert more[-1][-1] == infos[-1]["judged_accuracy"] == accuracy_of(small(x), y)
    assert infos[-1]["accuracy"] == accuracy_of(small(splits.x_val), splits.y_val)
    more, infos = trace(make(judged_on="training_too", reward="loss"), seed=0)
    assert more[-1][-1] == pytest.approx(-F.cross_entropy(small(x), y).item())


def make_and_play():
    env = make()
    trace(env, seed=0)
    return env


def test_a_loss_without_bounds_is_told_as_ten():
    network = nn.Linear(1, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1e6], [0.0]]))
    found = accuracy_and_loss(network, torch.ones(2, 1), torch.tensor([1, 1]))
    assert found == {"accuracy": 0.0, "loss": 10.0}
    with torch.no_grad():
        network.weight.fill_(math.nan)
    assert accuracy_and_loss(network, torch.ones(2, 1), torch.tensor([1, 1]))["loss"] == 10


@pytest.mark.parametrize("kwargs", [{}, {"reward": "loss"}, {"judged_on": "training_too"}])
def test_rewards_relative_to_uniform_pruning_s(kwargs):
    plain, env = make(**kwargs), make(baseline="uniform", reward_scale=3.0, **kwargs)
    uniform = play(plain, UniformPruning(), 3)["return"]
    for shares in ((0.5, 0.9, 0.7), (0.7, 0.4, 0.9)):
        reset = {"options": {"task_seed": 3}}
        alone = trace(plain, shares, **reset)[0][-1][-1]
        assert trace(env, shares, **reset)[0][-1][-1] == pytest.approx(3 * (alone - uniform))
    assert play(env, UniformPruning(), 3)["return"] == 0
    assert trace(make(reward_scale=2.0), seed=0)[0][-1][-1] == 2 * trace(make(), seed=0)[0][-1][-1]


def test_places_tell_layers_apart():
    seen, _ = trace(make(places=4), seed=0)
    assert [row[len(FEATURES) : len(FEATURES) + 4] for row in seen] == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],  # after the last step
    ]
    assert [row[: len(FEATURES)] for row in seen] == [
        row[: len(FEATURES)] for row in trace(make(), seed=0)[0]
    ]
    with pytest.raises(ConfigurationError, match=r"places=2 .* 3 groups"):
        make(places=2)


class HalfFrozen(nn.Module):
    """Two hidden layers, of which the first does not learn."""

    def __init__(self, in_shape, classes, width, depth):
        super().__init__()
        self.first = nn.Linear(64, width).requires_grad_(False)
        self.second, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


def test_fine_tuning_leaves_what_is_frozen(monkeypatch):
    tuned = []
    monkeypatch.setattr(prune_net, "train_on", lambda network, *given: tuned.append(network))
    env = make(model=f"{__name__}.HalfFrozen", finetune_epochs=1)
    trace(env, seed=0)
    learns = {name: p.requires_grad for name, p in tuned[0].named_parameters()}
    assert not learns.pop("first.weight")
    assert not learns.pop("first.bias")
    assert all(learns.values())


def test_fine_tuning_is_training_and_changes_no_reward():
    env = make(finetune_epochs=1)
    seen, infos = trace(env, seed=0)
    small, splits = smaller(env)
    train(small, splits.x_train, splits.y_train, Recipe(epochs=1, lr=1e-3))
    after = accuracy_of(small(splits.x_test), splits.y_test)
    assert infos[-1].pop("finetuned_test_accuracy") == after
    assert (seen, infos) == trace(make(), seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"data": "wine", "model": "mlp"},
        {"model": "mlp"},
        {"widths": [7]},
        {"depths": [4]},
        {"splits": [5, 6]},
        {"seed_range": [7, 8]},
        {"epochs": 1},
        {"budget": 0.3},
        {"resource": "bytes"},
        {"lowest": 0.6, "budget": 0.8},
        {"round_to": 4},
        {"reconstruct": False},
        {"reward": "error_log_flops"},
        {"reward": "loss"},
        {"judged_on": "training_too"},
        {"baseline": "uniform"},
        {"reward_scale": 2.0},
        {"fill": True},
        {"around": "uniform"},
        {"around": "norms"},
        {"places": 3},
    ],
)
def test_every_argument_counts(change):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    expected = trace(make(), (0.55, 0.9, 0.9), seed=0)
    assert trace(make(), (0.55, 0.9, 0.9), seed=0) == expected
    assert trace(make(**change), (0.55, 0.9, 0.9), seed=0) != expected
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_reach_of_actions_counts():
    kept = [
        trace(make(around="uniform", reach=reach), [-1.0], seed=0)[1][1]["kept"]
        for reach in (1.5, 3.0)
    ]
    assert kept[0] > kept[1]


def test_tasks_differ_in_width_depth_and_split():
    env = make(widths=[4, 5], depths=[1, 2], splits=[0, 2], epochs=1)
    infos = [env.reset(options={"task_seed": seed})[1] for seed in range(40)]
    drawn = {(info["width"], info["depth"], info["split"]) for info in infos}
    assert len(drawn) == 8
    again = make(widths=[4, 5], depths=[1, 2], splits=[0, 2], epochs=1)
    assert again.reset(options={"task_seed": 7})[1] == infos[7]


# --- processes, copies, agents ----------------------------------------------------------------

SCRIPT = f"""
import json
import numpy as np
from rl_lightning.envs import make_env
traces = []
for name, actions in (("PruneNet-v0", (0.5, 0.9, 0.7)), ("QuantizeNet-v0", (3, 2, 1, 2))):
    env = make_env(name, {SMALL})
    seen = [env.reset(seed=4)[0].tolist()]
    for action in actions:
        action = action if isinstance(action, int) else np.array([action], np.float32)
        obs, reward, *_ = env.step(action)
        seen.append([*obs.tolist(), reward])
    traces.append(seen)
print(json.dumps(traces))
"""


def test_another_process_plays_the_same_episodes():
    other = make_env("QuantizeNet-v0", SMALL)
    expected = [trace(make(), seed=4)[0], trace(other, (3, 2, 1, 2), seed=4)[0]]
    command = [sys.executable, "-c", SCRIPT]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.splitlines()[-1]) == expected


def test_the_caller_s_modes_change_nothing():
    expected = trace(make(), seed=0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert trace(make(), seed=0) == expected


@pytest.mark.parametrize("change", [{}, {"fill": True, "around": "norms", "baseline": "uniform"}])
def test_a_saved_environment_goes_on_bit_for_bit(change):
    copies = Snapshots(make(**change))
    assert copies.reason is None
    first, second = (make_vector_env(NAME, 2, "sync", {**SMALL, **change}) for _ in range(2))
    first.reset(seed=3)
    second.reset(seed=4)
    for share in (0.4, 0.7):
        first.step(np.array([[share], [1.0]], np.float32))
    copies.put(second, copies.take(first))
    for share in (0.9, 0.3, 0.5, 0.6):
        action = np.array([[share], [0.5]], np.float32)
        results = [env.step(action)[:3] for env in (first, second)]
        for one, two in zip(*results, strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize("agent", [PPO, DDPG, SAC])
def test_agents_train_on_it(agent):
    shared = {"env_kwargs": SMALL, "num_envs": 2, "total_frames": 16, "vectorization": "sync"}
    if agent is PPO:
        data = RolloutDataModule(NAME, rollout_steps=4, minibatch_size=4, **shared)
    else:
        sizes = {"batch_size": 4, "warmup_frames": 4, "frames_per_epoch": 8}
        data = ReplayDataModule(NAME, **sizes, **shared)
    made = agent(data.spec)
    before = torch.cat([p.detach().flatten().clone() for p in made.policy.parameters()])
    fit(made, data)
    after = torch.cat([p.detach().flatten() for p in made.policy.parameters()])
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": "mnist"}, "use one of digits"),
        ({"model": "resnet"}, "use one of mlp, cnn"),
        ({"model": f"{HERE}.Unprunable"}, "has no layer that can be pruned"),
        ({"widths": []}, "widths must be a list"),
        ({"depths": [0]}, "depths must be at least 1"),
        ({"splits": 3}, "splits must be a list, not"),
        ({"seed_range": [5, 5]}, r"seed_range\[1\] must be at least 6"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"budget": 0}, "budget must be above 0"),
        ({"budget": 1.5}, "budget must be between 0 and 1"),
        ({"budget": 0.05}, "budget=0.05 cannot be met: .* keeps at least 0.138 of its flops"),
        ({"lowest": 1}, "lowest must be below 1"),
        ({"lowest": 0}, "lowest must be above 0"),
        ({"round_to": 0}, "round_to must be at least 1"),
        ({"levels": 1}, "levels must be at least 2"),
        ({"places": -1}, "places must be at least 0"),
        ({"around": "norm"}, "around='norm': use one of none, uniform, norms"),
        ({"reach": 1.0}, "reach must be above 1"),
        ({"reward_scale": 0}, "reward_scale must be above 0"),
        ({"baseline": "running"}, "baseline='running': use one of none, uniform"),
        ({"judged_on": "test"}, "judged_on='test': use one of validation, training_too"),
        ({"finetune_epochs": -1}, "finetune_epochs must be at least 0"),
        ({"fill": "no"}, "fill must be True or False, not 'no'"),
        ({"reconstruct": "false"}, "reconstruct must be True or False"),
        ({"actions": "box"}, "actions='box': use one of continuous, discrete"),
        ({"resource": "time"}, "resource='time': use one of flops, bytes"),
        ({"importance": "taylor"}, "importance='taylor': use one of l2, l1"),
        ({"reward": "speed"}, "reward='speed': use one of accuracy, loss, error_log_flops"),
    ],
)
def test_wrong_arguments_are_explained(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("actions", "action"),
    [
        ("continuous", [0.5, 0.5]),
        ("continuous", [math.nan]),
        ("discrete", 1.9),
        ("discrete", None),
        ("continuous", 1j),
        ("discrete", 9),
        ("discrete", -1),
    ],
)
def test_there_is_no_such_action(actions, action):
    env = make(actions=actions).unwrapped
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        env.step(action)
    with pytest.raises(ConfigurationError, match="reset has no option 'lr'"):
        env.reset(options={"lr": 1})
    with pytest.raises(ResetNeeded):  # that has failed
        env.step(1)


# --- baselines --------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_baselines_keep_to_the_budget_and_waste_little(actions):
    env = make(actions=actions, levels=17)
    for baseline in (UniformPruning(), GlobalMagnitude(), GlobalMagnitude(True), RandomSearch(3)):
        played = play(env, baseline, 3)
        assert play(env, baseline, 3) == played
        assert 0.3 < played["cost"] <= 0.5
    assert play(env, Uniform(), 3)["cost"] <= 0.5


def test_uniform_pruning_keeps_the_same_share_and_the_largest():
    env = make()
    played = trace(env, [2 / 3], seed=3)[1][-1]
    assert play(env, UniformPruning(), 3)["accuracy"] == played["accuracy"]
    assert played["cost"] <= 0.5
    assert not env.unwrapped.fits([5 / 6] * 3)


def test_global_magnitude_ranks_all_channels():
    env = make(lowest=0.2)
    for normalised in (False, True):
        play(env, GlobalMagnitude(normalised), 3)
        net = env.unwrapped
        norms = [s / s.mean() if normalised else s for s in net.prunable().scores]
        gone = [set(nodes) for nodes in net.removed]
        most = max(float(norms[g][i]) for g in range(3) for i in gone[g])
        free = [g for g in range(3) if len(gone[g]) < 4]  # two of six have to stay
        least = min(float(norms[g][i]) for g in free for i in range(6) if i not in gone[g])
        assert most <= least
    assert play(env, GlobalMagnitude(), 3) != play(env, GlobalMagnitude(True), 3)


def test_random_search_returns_the_best_it_has_tried(monkeypatch):
    env = make()
    rewards, step = [], type(env.unwrapped).step

    def listening(self, action):
        result = step(self, action)
        rewards.append(result[1])
        return result

    monkeypatch.setattr(type(env.unwrapped), "step", listening)
    found = play(env, RandomSearch(5), 3)
    tried = [sum(rewards[i : i + 3]) for i in range(0, 15, 3)]
    assert found["return"] == max(tried)
    assert len(set(tried)) > 1
    assert play(env, RandomSearch(5, seed=1), 3) != found
    with pytest.raises(ConfigurationError, match="evaluations must be at least 1"):
        RandomSearch(0)


def test_baselines_say_where_they_belong():
    with pytest.raises(ConfigurationError, match="UniformBits needs QuantizeNet-v0"):
        play(make(), UniformBits(), 0)
    other = make_env("QuantizeNet-v0", SMALL)
    for baseline in (UniformPruning(), GlobalMagnitude()):
        with pytest.raises(ConfigurationError, match="needs PruneNet-v0"):
            play(other, baseline, 0)
