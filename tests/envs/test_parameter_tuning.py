"""ParameterTuning-v0: moves along directions, what is seen and rewarded, and searches beside it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from training import fit

from rl_lightning.agents import PPO
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.optimise.baselines import (
    EvolutionStrategy,
    GradientDescent,
    HillClimbing,
    Uniform,
    evaluate,
    play,
)
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.parameter_tuning import GENERAL, random_directions
from rl_lightning.envs.optimise.targets import build_target
from rl_lightning.envs.optimise.training import accuracy_of

NAME = "ParameterTuning-v0"
SMALL = {"width": 4, "directions": 3, "steps": 6}
JUMPS = {"actions": "continuous", "moves": "from_start"}


def make(**kwargs):
    return make_env(NAME, {**SMALL, **kwargs})


def trace(env, action=0, **reset):
    obs, info = env.reset(**reset)
    seen, infos, ended = [obs.tolist()], [info], False
    while not ended:
        obs, reward, ended, _, info = env.step(action)
        seen.append([*obs.tolist(), reward])
        infos.append(info)
    return seen, infos


def feature(seen, name):
    return [row[GENERAL.index(name)] for row in seen]


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize("kwargs", [{}, {"actions": "continuous", "features": "statistics"}, JUMPS])
def test_gymnasium_s_checker(kwargs):
    check_env(make(**kwargs).unwrapped, skip_render_check=True)


def test_directions_are_unit_vectors():
    found = random_directions(50, 3, 0)
    assert np.allclose(np.linalg.norm(found, axis=0), 1)
    assert not np.allclose(found, random_directions(50, 3, 1))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_discrete_actions_move_along_one_direction():
    env = make(step_size=0.5, reach=0.8)
    assert env.action_space.n == 6
    env.reset(seed=0)
    points = []
    for action in (0, 3, 4, 4, 1):
        obs, *_ = env.step(action)
        points.append(env.unwrapped.point.tolist())
    assert points == [
        [0.5, 0, 0],
        [0.5, -0.5, 0],
        [0.5, -0.5, 0.5],
        [0.5, -0.5, 0.8],
        [0, -0.5, 0.8],
    ]
    assert obs[-3:].tolist() == [-1, 0, 0]  # the last move


def test_continuous_actions_move_or_jump():
    env = make(actions="continuous", step_size=0.5)
    env.reset(seed=0)
    env.step([0.5, -1.0, 0.0])
    env.step([0.5, -9.0, 0.0])
    assert env.unwrapped.point.tolist() == [0.5, -1.0, 0.0]
    env = make(**JUMPS, reach=2.0)
    env.reset(seed=0)
    env.step([1.0, 1.0, 1.0])
    env.step([0.5, -1.0, 0.0])
    assert env.unwrapped.point.tolist() == [1.0, -2.0, 0.0]


def test_a_step_evaluates_the_moved_network():
    env = make()
    _, info = env.reset(options={"task_seed": 7})
    data = load_data("wine", 0)
    network = build_target("mlp", (13,), 3, 4, 1, seed=7)
    start = torch.cat([p.detach().flatten() for p in network.parameters()])
    subspace = random_directions(len(start), 3, 0)
    best = (info["accuracy"], -info["loss"], start)
    for action, sign in ((2, 1), (2, 1), (3, -1), (3, -1), (3, -1), (3, -1)):
        _, reward, ended, _, after = env.step(action)
        start = start + torch.from_numpy(sign * 0.5 * subspace[:, 1]).float()
        torch.nn.utils.vector_to_parameters(start, network.parameters())
        logits = network(data.x_train)
        assert after["loss"] == pytest.approx(F.cross_entropy(logits, data.y_train).item())
        assert after["accuracy"] == accuracy_of(logits, data.y_train)
        assert reward == after["accuracy"] - info["accuracy"]
        best = max(best, (after["accuracy"], -after["loss"], start), key=lambda b: b[:2])
        info = after
    assert ended
    torch.nn.utils.vector_to_parameters(best[2], network.parameters())
    assert info["best_accuracy"] == best[0]
    assert info["val_accuracy"] == accuracy_of(network(data.x_val), data.y_val)
    assert info["test_accuracy"] == accuracy_of(network(data.x_test), data.y_test)
    assert info["task_seed"] == 7


def test_the_gradient_is_that_of_the_objective():
    env = make().unwrapped
    env.reset(seed=0)
    point = np.array([0.3, -0.2, 0.1])
    found = env.gradient(point)
    for i in range(3):
        ahead, behind = (env.objective(point + s * np.eye(3)[i])[0] for s in (1e-2, -1e-2))
        assert found[i] == pytest.approx((ahead - behind) / 2e-2, abs=2e-3)
    assert env.point.tolist() == [0, 0, 0]


def test_what_is_seen():
    env = make()
    seen, infos = trace(env, seed=0)
    accuracy = np.array([info["accuracy"] for info in infos])
    losses = np.log([info["loss"] for info in infos])
    assert np.allclose(feature(seen, "progress"), np.arange(7) / 6)
    assert np.allclose(feature(seen, "log_loss"), losses, atol=1e-5)
    assert np.allclose(feature(seen, "loss_change")[1:], 5 * np.diff(losses), atol=1e-5)
    assert np.allclose(feature(seen, "accuracy"), accuracy)
    assert np.allclose(feature(seen, "accuracy_change")[1:], np.diff(accuracy), atol=1e-6)
    assert np.allclose(feature(seen, "behind_best"), np.maximum.accumulate(accuracy) - accuracy)
    # A move of ½ along a unit vector is a half of its projection on that vector.
    assert np.allclose(np.diff([row[6] for row in seen]), 0.5, atol=1e-5)


def test_statistics_of_each_parameter_tensor():
    env = make(features="statistics")
    obs, info = env.reset(seed=0)
    network = build_target("mlp", (13,), 3, 4, 1, seed=info["task_seed"])
    means = [p.mean().item() for p in network.parameters()]
    spreads = [0.5 * math.log(p.std(correction=0).item() + 1e-8) for p in network.parameters()]
    assert obs[6:14] == pytest.approx([*means, *spreads], abs=1e-5)
    assert len(obs) == 6 + 8 + 3


@pytest.mark.parametrize(
    "change",
    [
        {"data": "breast-cancer"},
        {"width": 5},
        {"depth": 2},
        {"split": 1},
        {"seed_range": [7, 8]},
        {"directions": 4},
        {"direction_seed": 1},
        {"steps": 5},
        {"step_size": 0.4},
        {"reach": 1.0},
        {"features": "statistics"},
        {"reward": "accuracy"},
    ],
)
def test_every_argument_counts(change):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert trace(make(), seed=0) == trace(make(), seed=0)
    assert trace(make(), seed=0) != trace(make(**change), seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_reward_may_be_the_accuracy():
    seen, infos = trace(make(reward="accuracy"), seed=0)
    assert [row[-1] for row in seen[1:]] == [info["accuracy"] for info in infos[1:]]


def test_the_model_counts():
    kwargs = {"data": "digits-images", "depth": 1}
    assert trace(make(**kwargs), seed=0) != trace(make(model="cnn", **kwargs), seed=0)


def test_a_saved_environment_goes_on_bit_for_bit():
    copies = Snapshots(make())
    assert copies.reason is None
    first, second = (make_vector_env(NAME, 2, "sync", SMALL) for _ in range(2))
    first.reset(seed=3)
    second.reset(seed=4)
    for _ in range(8):
        first.step(np.array([1, 3]))
    copies.put(second, copies.take(first))
    for _ in range(8):
        results = [env.step(np.array([3, 4]))[:3] for env in (first, second)]
        for one, two in zip(*results, strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize("kwargs", [{}, {"actions": "continuous"}])
def test_ppo_trains_on_it(kwargs):
    data = RolloutDataModule(
        NAME, env_kwargs={**SMALL, **kwargs}, num_envs=2, rollout_steps=4, minibatch_size=4,
        total_frames=16,
    )  # fmt: skip
    agent = PPO(data.spec)
    before = torch.cat([p.detach().flatten().clone() for p in agent.parameters()])
    fit(agent, data)
    after = torch.cat([p.detach().flatten() for p in agent.parameters()])
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": "mnist"}, "use one of digits"),
        ({"model": "resnet"}, "use one of mlp, cnn"),
        ({"width": 0}, "width must be at least 1"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"split": -1}, "split must be at least 0"),
        ({"seed_range": [5, 5]}, r"seed_range\[1\] must be at least 6"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"directions": 100}, "directions must be at most 71"),
        ({"direction_seed": -1}, "direction_seed must be at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0}, "step_size must be above 0"),
        ({"reach": -1}, "reach must be at least 0"),
        ({"actions": "box"}, "actions='box': use one of"),
        ({"moves": "there"}, "moves='there': use one of from_last, from_start"),
        ({"moves": "from_start"}, "needs actions='continuous'"),
        ({"features": "all"}, "features='all': use one of projection, statistics"),
        ({"reward": "loss"}, "reward='loss': use one of improvement, accuracy"),
    ],
)
def test_wrong_arguments_are_explained(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "action"),
    [
        ({}, 6),
        ({}, -1),
        ({}, 0.5),
        ({}, None),
        ({}, 10**30),
        ({"actions": "continuous"}, [math.nan, 0, 0]),
        (JUMPS, [0.0]),
        (JUMPS, None),
    ],
)
def test_there_is_no_such_action(kwargs, action):
    env = make(**kwargs)
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        env.step(action)
    with pytest.raises(ConfigurationError, match="no option 'lr': there is task_seed"):
        env.reset(options={"lr": 1})
    with pytest.raises(ResetNeeded):  # that has failed
        env.step(0)


# --- baselines -------------------------------------------------------------------------------


def test_hill_climbing_takes_back_what_made_it_worse():
    env, climber = make(steps=30), HillClimbing()
    obs, info = env.reset(options={"task_seed": 1, **climber.begin(env, 1)})
    best, worse, point = info["loss"], False, env.unwrapped.point
    undone = 0
    for _ in range(30):
        obs, *_, info = env.step(climber.act(obs, info))
        if worse:
            undone += 1
            assert np.allclose(env.unwrapped.point, point)
            worse = False
        elif info["loss"] > best:
            worse = True
        else:
            best, point = info["loss"], env.unwrapped.point
    assert 0 < undone < 15


def test_the_evolution_strategy_goes_on_from_its_best_point():
    env, search = make(**JUMPS, steps=60), EvolutionStrategy()
    obs, info = env.reset(options={"task_seed": 1, **search.begin(env, 1)})
    first = info["loss"]
    best = first
    for _ in range(60):
        obs, *_, info = env.step(search.act(obs, info))
        best = min(best, info["loss"])
    assert best < 0.8 * first
    assert play(env, EvolutionStrategy(), 1) == play(env, EvolutionStrategy(), 1)
    assert play(env, EvolutionStrategy(0.01), 1) != play(env, EvolutionStrategy(), 1)


def test_more_information_finds_more_at_equal_evaluations():
    env = make_env(NAME, JUMPS)
    baselines = (Uniform(), EvolutionStrategy(), GradientDescent())
    found = [evaluate(env, baseline, range(4))["best_accuracy"] for baseline in baselines]
    assert found[0] + 0.03 < found[1] < found[2]
    slow = evaluate(env, GradientDescent(lr=0.01, momentum=0.0), range(4))["best_accuracy"]
    assert slow < found[2]


def test_baselines_ask_for_the_actions_they_need():
    for baseline, env in [
        (HillClimbing(), make(**JUMPS)),
        (EvolutionStrategy(), make()),
        (GradientDescent(), make(actions="continuous")),
        (HillClimbing(), make_env("CartPole-v1")),
    ]:
        with pytest.raises(ConfigurationError, match="needs ParameterTuning-v0 with actions="):
            play(env, baseline, 0)
    with pytest.raises(ConfigurationError, match="sigma must be above 0"):
        EvolutionStrategy(0)
    with pytest.raises(ConfigurationError, match="lr must be above 0"):
        GradientDescent(0)
    with pytest.raises(ConfigurationError, match="momentum must be between 0 and 1"):
        GradientDescent(momentum=2)
