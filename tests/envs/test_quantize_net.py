"""QuantizeNet-v0: what is quantised, the budget, what is seen and rewarded, and baselines."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from torch import nn
from training import fit

from rl_lightning.agents import DDPG, PPO, SAC
from rl_lightning.compress import count, quantise
from rl_lightning.compress.quantisable import BITS
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import ReplayDataModule, RolloutDataModule
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.optimise import quantising
from rl_lightning.envs.optimise.baselines import Uniform, play
from rl_lightning.envs.optimise.compression_baselines import (
    GreedyBits,
    RandomSearch,
    UniformBits,
    UniformPruning,
)
from rl_lightning.envs.optimise.quantising import Quantisable, divergence, filled, within_budget
from rl_lightning.envs.optimise.quantize_net import FEATURES
from rl_lightning.envs.optimise.training import LOSS_LIMIT, accuracy_of

NAME = "QuantizeNet-v0"
SMALL = {"widths": [6], "depths": [3], "epochs": 2}
ACTIONS = (3, 2, 1, 2)  # 8, 4, 2 and 4 bits
HERE = __name__


class Tied(nn.Module):
    """Two layers that share one weight, a norm, and a layer that nobody calls."""

    def __init__(self, in_shape, classes, width, depth):
        super().__init__()
        self.first = nn.Linear(64, width)
        self.norm = nn.LayerNorm(width)
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.two(self.one(self.norm(self.first(x.flatten(1)))).relu()).relu())


class Nothing(nn.Module):
    def __init__(self, in_shape, classes, width, depth):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, 64))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


TIED = {"model": f"{HERE}.Tied", "epochs": 1}


def make(**kwargs):
    return make_env(NAME, {**SMALL, **kwargs})


def trace(env, actions=ACTIONS, **reset):
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


def quantised(env):
    """The network of the episode that has just ended, made by `quantise`."""
    net = env.unwrapped
    network, splits = net.target()
    small = copy.deepcopy(network)
    names = net.quantisable().names
    quantise(small, dict(zip(names, net.bits_of_layers, strict=True)))
    return small, network, splits


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize("kwargs", [{}, {"actions": "continuous"}, TIED])
def test_gymnasium_s_checker(kwargs):
    check_env(make(**kwargs).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("kwargs", [{}, TIED, {"data": "wine", "model": "mlp", "bits": [1, 16]}])
@pytest.mark.parametrize("budget", [2.5, 32.0])
def test_it_is_what_quantise_makes_within_the_budget(kwargs, budget):
    env = make(budget=budget, **kwargs)
    for actions in (ACTIONS[:2] if "bits" not in kwargs else (0, 1), [1], [0]):
        seen, infos = trace(env, actions, seed=0)
        small, network, splits = quantised(env)
        before, now = (count(m, splits.x_val[:1]).bytes for m in (network, small))
        assert infos[-1]["size"] == now / before
        assert now <= env.unwrapped.quantisable().uniform_size(budget)
        assert infos[-1]["accuracy"] == accuracy_of(small(splits.x_val), splits.y_val)
        assert infos[-1]["test_accuracy"] == accuracy_of(small(splits.x_test), splits.y_test)
        loss = nn.functional.cross_entropy(small(splits.x_val), splits.y_val).item()
        assert infos[-1]["loss"] == pytest.approx(loss)
        rise = infos[-1]["accuracy"] - infos[0]["original_accuracy"]
        assert [row[-1] for row in seen[1:]] == [*[0] * (len(seen) - 2), pytest.approx(10 * rise)]


def test_the_divergence_as_reward():
    env = make(reward="divergence", reward_scale=2.0)
    seen, infos = trace(env, seed=0)
    small, network, splits = quantised(env)
    before, now = (m(splits.x_val).softmax(1) for m in (network, small))
    expected = (before * (before / now).log()).sum(1).mean().item()
    assert infos[-1]["divergence"] == pytest.approx(expected, rel=1e-4)
    assert [row[-1] for row in seen[1:-1]] == [0, 0, 0]
    assert seen[-1][-1] == -2 * infos[-1]["divergence"] < 0
    assert env.unwrapped.judge([32] * 4)["divergence"] == pytest.approx(0, abs=1e-6)
    logarithm = trace(make(reward="log_divergence", reward_scale=2.0), seed=0)[0][-1][-1]
    assert logarithm == pytest.approx(-2 * math.log(infos[-1]["divergence"]))
    same = make(reward="log_divergence", reward_scale=1.0, bits=[8, 32], budget=32)
    assert trace(same, [1], seed=0)[0][-1][-1] == pytest.approx(-math.log(1e-6))


def test_what_is_shared_counts_once_and_what_is_not_called_is_left():
    env = make(**TIED)
    env.reset(seed=0)
    found = env.unwrapped.quantisable()
    assert found.names == ("first", "one", "head")
    assert found.sizes[:, -1].tolist() == [4 * 64 * 6, 4 * 36, 4 * 60]
    assert found.size_of([32] * 3) == count(env.unwrapped.target()[0], torch.zeros(1, 64)).bytes


def test_all_as_it_is():
    env = make(bits=[8, 32], budget=32)
    _, infos = trace(env, [1], seed=0)
    assert infos[-1]["size"] == 1
    assert infos[-1]["mean_bits"] == 32
    assert infos[-1]["accuracy"] == infos[0]["original_accuracy"]


# --- the budget -------------------------------------------------------------------------------


def by_hand():
    bits = np.array(BITS)
    return Quantisable(["a", "b", "c"], [], np.outer([10, 20, 30], bits), rest=5)


def test_sizes_by_hand():
    found = by_hand()
    assert found.size_of([1, 2, 4]) == 5 + 10 + 40 + 120
    assert found.uniform_size(4) == 5 + 60 * 4 == found.size_of([4] * 3)
    assert found.uniform_size(3) == 5 + 60 * 3


@pytest.mark.parametrize(
    ("bits", "budget", "expected"),
    [
        ([8, 8, 8], 8, [8, 8, 8]),
        ([8, 8, 8], 6, [8, 8, 4]),  # 80 + 160 + 120 = 360
        ([8, 8, 8], 5.9, [8, 4, 4]),
        ([8, 8, 8], 4.5, [4, 4, 4]),
        ([8, 8, 8], 3.5, [4, 4, 2]),  # around a second time
        ([8, 1, 1], 2, [4, 1, 1]),  # the others are as low as can be
        ([8, 8, 8], 1, [1, 1, 1]),
        ([1, 2, 1], 8, [1, 2, 1]),
    ],
)
def test_bits_are_lowered_in_turn_from_the_last_layer(bits, budget, expected):
    assert within_budget(by_hand(), bits, (1, 2, 4, 8), budget) == expected


@pytest.mark.parametrize(
    ("bits", "budget", "expected"),
    [
        ([1, 1, 1], 1, [1, 1, 1]),
        ([1, 1, 1], 1.5, [2, 2, 1]),  # 10 + 20 of 30; the last would take 30 more
        ([1, 1, 1], 2, [2, 2, 2]),
        ([1, 4, 1], 2.5, [4, 4, 1]),  # 20 and 20 of 30 more, 10 and 0 of the others
        ([8, 1, 8], 5.9, [8, 1, 8]),  # nothing fits: [8, 2, 8] takes the 360 of 6
        ([1, 1, 1], 20, [8, 8, 8]),
    ],
)
def test_bits_are_raised_in_turn_from_the_first_layer(bits, budget, expected):
    found = filled(by_hand(), bits, (1, 2, 4, 8), budget)
    assert found == expected
    assert by_hand().size_of(found) <= by_hand().uniform_size(budget)


def test_with_fill_nothing_is_left_over_and_choices_are_relative():
    plain, env = make(budget=4.0), make(budget=4.0, fill=True)
    trace(plain, [1], seed=0)
    assert plain.unwrapped.bits_of_layers == [2] * 4
    for actions in ([0], [1], [2], [3]):
        trace(env, actions, seed=0)
        assert env.unwrapped.bits_of_layers == [4] * 4


def test_the_baseline_is_what_uniform_bits_come_to():
    for reward in ("accuracy", "divergence", "log_divergence"):
        plain, env = (make(budget=2.0, reward=reward, baseline=b) for b in ("none", "uniform"))
        assert play(env, UniformBits(), 3)["return"] == 0
        rewards = [play(one, Uniform(), 3)["return"] for one in (plain, env)]
        uniform = play(plain, UniformBits(), 3)["return"]
        assert rewards[1] == pytest.approx(rewards[0] - uniform)
        assert rewards[0] != uniform


def test_probes_tell_what_each_width_of_a_layer_does_by_itself():
    env = make(probes=True, bits=[2, 8], budget=8)
    seen, _ = trace(env, [0], seed=0)
    net = env.unwrapped
    assert len(seen[0]) == len(FEATURES) + 2
    for layer in range(4):
        for place, bits in enumerate((2, 8)):
            alone = [bits if i == layer else 32 for i in range(4)]
            found = math.log10(max(net.judge(alone)["divergence"], 1e-6))
            assert seen[layer][len(FEATURES) + place] == pytest.approx(found, rel=1e-5)
    assert seen[4][len(FEATURES) : len(FEATURES) + 2] == [0, 0]


def test_the_step_tells_what_was_chosen_and_the_attribute_what_came_out():
    env = make(budget=4.0)
    _, infos = trace(env, [3], seed=0)
    assert [info["bits"] for info in infos] == [32, 8, 8, 8, 8]
    assert min(env.unwrapped.bits_of_layers) < 8
    weights = [54, 324, 324, 60]
    mean = np.average(env.unwrapped.bits_of_layers, weights=weights)
    assert infos[-1]["mean_bits"] == pytest.approx(mean)


def test_of_short_rows_more_bits_may_be_fewer_bytes():
    """A scale in four bytes beside a number of one byte; as they are, four in all."""
    sizes = np.array([[4 + (b + 7) // 8 if b < 16 else b // 8 for b in BITS]] * 2)
    found = Quantisable(["a", "b"], [], sizes, rest=0)
    assert found.uniform_bits((8, 16), 16) == 16  # 2 bytes of 5
    assert within_budget(found, [8, 8], (8, 16), 16) == [16, 16]
    assert within_budget(found, [8, 32], (8, 16, 32), 16) == [16, 16]
    assert within_budget(found, [8, 32], (8, 32), 32) == [32, 32]
    # 7 and 8 take the same: 8 is not lowered for nothing.
    assert found.lower(0, 8, (7, 8, 16)) is None
    assert found.lower(0, 32, (7, 8, 16)) == 16
    assert by_hand().lower(0, 8, (2, 4, 8)) == 4
    assert within_budget(found, [8, 16], (7, 8, 16), 8) == [8, 16]
    assert filled(found, [8, 16], (7, 8, 16, 32), 8) == [32, 32]


def test_the_next_choice_that_fits_is_not_always_the_next():
    sizes = np.array([[10, 20, 30, 40, 50, 60, 75, 70, 160, 320]])
    found = Quantisable(["a"], [], sizes, rest=0)
    assert filled(found, [5], (5, 7, 8, 16), 8) == [8]


class Alias(nn.Module):
    """Layers that stand under two names."""

    def __init__(self, in_shape, classes, width, depth):
        super().__init__()
        self.a, self.b = nn.Linear(64, width), nn.Linear(width, classes)
        self.net = nn.Sequential(nn.Flatten(), self.a, nn.ReLU(), self.b)

    def forward(self, x):
        return self.net(x)


def test_layers_of_two_names_are_judged_as_quantise_makes_them():
    env = make(model=f"{HERE}.Alias", bits=[1, 8], budget=8, reward="divergence")
    env.reset(seed=0)
    net = env.unwrapped
    network, splits = net.target()
    before = copy.deepcopy(network.state_dict())
    whole = network(splits.x_val).log_softmax(1)
    for bits in ([1, 1], [8, 8], [1, 8], [32, 32]):
        small = copy.deepcopy(network)
        names = dict(zip(net.quantisable().names, bits, strict=True))
        quantise(small, names) if max(bits) < 32 else None
        expected = divergence(whole, small(splits.x_val).log_softmax(1))
        assert net.judge(bits)["divergence"] == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert net.judge(bits)["accuracy"] == accuracy_of(small(splits.x_val), splits.y_val)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(isinstance(layer.weight, nn.Parameter) for layer in (network.a, network.b))


def test_a_divergence_without_bounds_is_told_as_ten():
    before = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    now = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]).log()
    assert divergence(before, now) == pytest.approx(math.log(2))
    assert divergence(before, before) == 0
    assert divergence(before, torch.tensor([[1.0, 0.0, 0.0]]).log()) == LOSS_LIMIT == 10
    assert divergence(before, torch.full((1, 3), math.nan)) == LOSS_LIMIT


def test_what_cannot_be_judged_is_refused():
    env = make()
    env.reset(seed=0)
    net = env.unwrapped
    for bits in ([9] * 4, [8] * 3):
        with pytest.raises(ConfigurationError, match=r"bits=\[.*for each of 4 layers"):
            net.judge(bits)
    for shared in (net.quantisable().sizes, net.probed()):
        with pytest.raises(ValueError, match="read-only"):
            shared[:] = 0


def of_two_sizes(split):
    """Rows of 64 numbers in one division and of one number in another."""
    x = np.random.default_rng(split).normal(size=(60, 64 if split == 0 else 1))
    y = np.arange(60) % 3
    return x[:40].astype(np.float32), y[:40], x[40:].astype(np.float32), y[40:]


def test_a_budget_that_one_network_cannot_meet_is_refused_at_its_reset():
    given = {"data": f"{HERE}.of_two_sizes", "model": "mlp", "depths": [0], "splits": [0, 2]}
    env = make(**given, epochs=1, bits=[4, 8], budget=16)
    splits = {}  # by task: of the second division's networks nothing is known before
    for seed in range(8):
        with contextlib.suppress(ConfigurationError):
            splits[seed] = env.reset(options={"task_seed": seed})[1]["split"]
    assert set(splits.values()) == {0}
    missing = min(set(range(8)) - set(splits))
    with pytest.raises(ConfigurationError, match=r"=16 cannot be met: of bits=\[4, 8\], 4 is the"):
        env.reset(options={"task_seed": missing})


def test_before_the_first_episode_there_is_no_network():
    net = make(probes=True).unwrapped
    for ask in (net.target, net.quantisable, net.probed, net.uniform_bits):
        with pytest.raises(ResetNeeded, match="call reset"):
            ask()


# --- actions, what is seen, what counts -------------------------------------------------------


def test_continuous_actions_are_divided_evenly():
    env = make(actions="continuous", bits=[8, 2, 4], budget=8)
    infos = trace(env, (0.0, 0.34, 1.0, 0.66), seed=0)[1]
    assert [info["bits"] for info in infos[1:]] == [2, 4, 8, 4]
    net = env.unwrapped
    assert [net._bits(net.action_of(b)) for b in (1, 2, 3, 4, 8, 16)] == [2, 2, 2, 4, 8, 8]


def test_what_is_seen():
    env = make(budget=4.0)
    seen, infos = trace(env, ACTIONS, seed=0)
    found = env.unwrapped.quantisable()
    budget, sizes = found.uniform_size(4), dict(zip(BITS, found.sizes.T, strict=True))
    assert feature(seen, "index") == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert feature(seen, "size") == pytest.approx([*sizes[8] / budget, 0])
    rest = [sizes[1][i + 1 :].sum() / budget for i in range(5)]
    assert feature(seen, "rest") == pytest.approx(rest)
    chosen = [sizes[8][0], sizes[4][1], sizes[2][2], sizes[4][3]]
    spent = (found.rest + np.cumsum([0, *chosen])) / budget
    assert feature(seen, "spent") == pytest.approx(spent)
    assert feature(seen, "previous") == pytest.approx([1, 0.6, 0.4, 0.2, 0.4])
    assert feature(seen, "log_weights") == pytest.approx([*np.log10([54, 324, 324, 60]), 0])
    assert infos[0]["task_seed"] == infos[-1]["task_seed"]


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
        {"bits": [2, 4, 8, 16]},
        {"budget": 3.0},
        {"reward": "divergence"},
        {"reward": "log_divergence"},
        {"reward_scale": 1.0},
        {"probes": True},
        {"fill": True, "budget": 5.0},
        {"baseline": "uniform"},
    ],
)
def test_every_argument_counts(change):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert trace(make(), seed=0) == trace(make(), seed=0)
    assert trace(make(), seed=0) != trace(make(**change), seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_tasks_differ_in_width_depth_and_split():
    env = make(widths=[4, 5], depths=[0, 1], splits=[0, 2], epochs=1)
    infos = [env.reset(options={"task_seed": seed})[1] for seed in range(40)]
    assert len({(info["width"], info["depth"], info["split"]) for info in infos}) == 8


# --- copies and agents ------------------------------------------------------------------------


def test_the_caller_s_modes_change_nothing():
    kwargs = {"probes": True, "baseline": "uniform"}
    expected = trace(make(**kwargs), seed=0)
    for kept in vars(quantising).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert trace(make(**kwargs), seed=0) == expected
    assert trace(make(**kwargs), seed=0) == expected


def test_a_saved_environment_goes_on_bit_for_bit():
    copies = Snapshots(make())
    assert copies.reason is None
    first, second = (make_vector_env(NAME, 2, "sync", SMALL) for _ in range(2))
    first.reset(seed=3)
    second.reset(seed=4)
    for action in (0, 3):
        first.step(np.array([action, 2]))
    copies.put(second, copies.take(first))
    for action in (1, 2, 3, 3, 0):
        results = [env.step(np.array([action, 1]))[:3] for env in (first, second)]
        for one, two in zip(*results, strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize("agent", [PPO, DDPG, SAC])
def test_agents_train_on_it(agent):
    kwargs = {**SMALL, "actions": "discrete" if agent is PPO else "continuous"}
    shared = {"env_kwargs": kwargs, "num_envs": 2, "total_frames": 16, "vectorization": "sync"}
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
        ({"model": f"{HERE}.Nothing"}, "has no layer that can be quantised"),
        ({"widths": []}, "widths must be a list"),
        ({"depths": [-1]}, "depths must be at least 0"),
        ({"splits": 3}, "splits must be a list, not"),
        ({"seed_range": [5, 5]}, r"seed_range\[1\] must be at least 6"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"bits": [4]}, r"bits must be two or more of 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, not \[4\]"),
        ({"bits": [9, 4]}, r"bits must be two or more of 1, .* 8, 16, 32, not \[9, 4\]"),
        (
            {"bits": [4, 8], "budget": 3},
            r"budget=3 cannot be met: of bits=\[4, 8\], 4 is the lowest",
        ),
        ({"budget": 0}, "budget must be above 0"),
        ({"budget": [4]}, r"budget must be a number, not \[4\]"),
        ({"probes": "false"}, "probes must be True or False, not 'false'"),
        ({"bit": [4, 8]}, "QuantizeNetEnv has no argument 'bit'; nearest are bits"),
        ({"fill": 2}, "fill must be True or False, not 2"),
        ({"budget": 33}, "budget must be between 1 and 32"),
        ({"actions": "box"}, "actions='box': use one of discrete, continuous"),
        ({"reward": "error"}, "reward='error': use one of accuracy, divergence"),
        ({"reward_scale": 0}, "reward_scale must be above 0"),
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
        ("discrete", 4),
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


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_baselines_keep_to_the_budget(actions):
    env = make(actions=actions, budget=3.0)
    for baseline in (UniformBits(), GreedyBits(), RandomSearch(3), Uniform()):
        played = play(env, baseline, 3)
        assert play(env, baseline, 3) == played
        found = env.unwrapped.quantisable()
        assert found.size_of(env.unwrapped.bits_of_layers) <= found.uniform_size(3)


def test_uniform_bits_are_the_most_that_fit():
    for budget, bits in ((4.0, 4), (3.9, 2), (8.0, 8), (1.0, 1)):
        env = make(budget=budget)
        play(env, UniformBits(), 3)
        assert env.unwrapped.bits_of_layers == [bits] * 4


def test_greedy_lowers_what_costs_least_loss_per_byte(monkeypatch):
    env = make(budget=2.5, bits=[2, 8])
    rise = {0: 1.0, 1: 0.2, 2: 0.4, 3: 0.001}  # of layers with 54, 324, 324 and 60 weights

    def judge(self, bits):
        return {"loss": sum(rise[i] for i, b in enumerate(bits) if b == 2)}

    monkeypatch.setattr(type(env.unwrapped), "judge", judge)
    greedy = GreedyBits()
    greedy.begin(env, 3)
    assert greedy.evaluations == 4 * 2 + 1
    assert greedy._actions == [1, 0, 0, 0]  # the last, then the second, then the third


def test_random_search_is_no_worse_than_its_first_try():
    env = make(budget=2.0)
    one, many = (play(env, RandomSearch(n), 3)["return"] for n in (1, 8))
    assert many > one


def test_baselines_say_where_they_belong():
    with pytest.raises(ConfigurationError, match="UniformPruning needs PruneNet-v0"):
        play(make(), UniformPruning(), 0)
    other = make_env("PruneNet-v0", SMALL)
    for baseline in (UniformBits(), GreedyBits()):
        with pytest.raises(ConfigurationError, match="needs QuantizeNet-v0"):
            play(other, baseline, 0)
    third = make_env("TrainingControl-v0", {"data": "wine"})
    with pytest.raises(ConfigurationError, match="RandomSearch needs PruneNet-v0 or Quant"):
        play(third, RandomSearch(1), 0)
