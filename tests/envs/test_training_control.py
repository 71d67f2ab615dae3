"""TrainingControl-v0: what a step does, what is seen and rewarded, and the schedules beside it."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from optimise_tasks import summed_up, table
from training import fit

from rl_lightning.agents import PPO
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.optimise.baselines import (
    RATES,
    Schedule,
    Uniform,
    choose,
    evaluate,
    play,
    schedules,
    shape_of,
)
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.targets import build_target
from rl_lightning.envs.optimise.tasks import bounded, check_disjoint
from rl_lightning.envs.optimise.training import accuracy_of
from rl_lightning.envs.optimise.training_control import FEATURES

NAME = "TrainingControl-v0"
SMALL = {"data": "wine", "widths": [4, 6], "steps": 4, "updates_per_step": 3, "batch_size": 8}
SAME = 2  # the discrete action that changes nothing


def make(**kwargs):
    return make_env(NAME, {**SMALL, **kwargs})


def trace(env, action=SAME, **reset):
    """All that is seen in an episode, to the last bit, and its infos."""
    obs, info = env.reset(**reset)
    seen, infos, ended = [obs.tolist()], [info], False
    while not ended:
        obs, reward, ended, _, info = env.step(action)
        seen.append([*obs.tolist(), reward])
        infos.append(info)
    return seen, infos


def feature(seen, name):
    return [row[FEATURES.index(name)] for row in seen]


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"actions": "continuous"},
        {"controls": ["lr", "momentum", "weight_decay"]},
        {"controls": ["momentum", "lr"], "actions": "continuous"},
        {"data": "digits-images", "model": "cnn", "reward": "final"},
    ],
)
def test_gymnasium_s_checker(kwargs):
    check_env(make(**kwargs).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.01), (0.0, 0.0)])
def test_a_step_is_updates_of_pytorch_s_sgd(momentum, weight_decay):
    env = make(lr=0.2, momentum=momentum, weight_decay=weight_decay, depths=[2])
    _, infos = trace(env, action=1, options={"task_seed": 5})  # × 0.8
    random = np.random.default_rng(5)
    width, depth = int(random.choice([4, 6])), int(random.choice([2]))
    split, init = int(random.integers(0, 100)), int(random.integers(2**32))
    task = {"task_seed": 5, "width": width, "depth": depth, "split": split}
    assert {name: infos[0][name] for name in task} == task == {k: infos[-1][k] for k in task}
    assert not set(task) & set(infos[1])
    data = load_data("wine", split)
    network = build_target("mlp", data.in_shape, data.classes, width, depth, init)
    optimizer = torch.optim.SGD(network.parameters(), 0.2, momentum, weight_decay=weight_decay)
    for info in infos:
        logits = network(data.x_val)
        assert info["loss"] == pytest.approx(F.cross_entropy(logits, data.y_val).item(), rel=1e-5)
        assert info["accuracy"] == accuracy_of(logits, data.y_val)
        assert info["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["lr"] *= 0.8
        for batch in torch.from_numpy(random.integers(len(data.x_train), size=(3, 8))):
            loss = F.cross_entropy(network(data.x_train[batch]), data.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if info is infos[-2]:
            test = accuracy_of(network(data.x_test), data.y_test)
    assert infos[-1]["test_accuracy"] == test
    assert infos[-1]["diverged"] is False


def test_the_improvements_add_up():
    seen, infos = trace(make(), seed=0)
    total = sum(row[-1] for row in seen[1:])
    assert total == pytest.approx(math.log(infos[0]["loss"] / infos[-1]["loss"]))
    assert len(seen) == 5


def test_the_final_reward_is_the_accuracy():
    seen, infos = trace(make(reward="final"), seed=0)
    assert [row[-1] for row in seen[1:]] == [0.0, 0.0, 0.0, infos[-1]["accuracy"]]


def test_discrete_actions_multiply_by_their_factors():
    env = make(factors=[0.25, 3.0])
    env.reset(seed=0)
    assert env.action_space.n == 2
    lrs = [env.step(action)[-1]["lr"] for action in (1, 0, 0)]
    assert np.allclose(lrs, [0.15, 0.0375, 0.009375])


def test_continuous_actions_multiply_by_a_power():
    env = make(actions="continuous", max_factor=9.0, lr=0.1)
    env.reset(seed=0)
    lrs = [env.step([action])[-1]["lr"] for action in (0.5, -1.0, -7.0)]
    assert np.allclose(lrs, [0.3, 0.1 / 3, 0.1 / 27])  # beyond the box is its edge


def test_momentum_and_weight_decay_are_steered_too():
    env = make(controls=["weight_decay", "momentum"], momentum=0.5, weight_decay=1e-3)
    assert env.action_space.nvec.tolist() == [5, 5]
    obs, _ = env.reset(seed=0)
    rows = [obs, *(env.step(np.array(action))[0] for action in ([4, 3], [0, 0], [0, 0]))]
    memory = np.exp(feature(rows, "log_memory"))
    assert np.allclose(memory, [2, 2.5, 1.25, 1])  # no less than 1
    decay = 1e-4 * np.exp(2 * np.array(feature(rows, "log_weight_decay")))
    assert np.allclose(decay, [1e-3, 2e-3, 1e-3, 5e-4], rtol=1e-4)
    lrs = feature(rows, "log_lr")
    assert lrs == lrs[:1] * 4


def test_settings_stay_in_their_bounds():
    env = make(actions="continuous", max_factor=1e9, controls=["lr", "momentum", "weight_decay"])
    env.reset(seed=0)
    obs, *_, info = env.step([-1.0, 1.0, 1.0])
    assert info["lr"] == 1e-5
    assert np.exp(obs[FEATURES.index("log_memory")]) == pytest.approx(100, rel=1e-4)
    decay = 1e-4 * np.exp(2 * obs[FEATURES.index("log_weight_decay")])
    assert decay == pytest.approx(0.1, rel=1e-4)


def test_what_is_seen():
    env = make()
    seen, infos = trace(env, seed=0)
    assert feature(seen, "progress") == [0.0, 0.25, 0.5, 0.75, 1.0]
    losses = np.log([info["loss"] for info in infos])
    assert np.allclose(feature(seen, "log_val_loss"), losses, atol=1e-5)
    assert np.allclose(feature(seen, "val_change")[1:], 5 * np.diff(losses), atol=1e-4)
    behind = 5 * (losses - np.minimum.accumulate(losses))
    assert np.allclose(feature(seen, "behind_best"), behind, atol=1e-4)
    assert np.allclose(feature(seen, "val_accuracy"), [info["accuracy"] for info in infos])
    assert np.allclose(feature(seen, "log_lr"), 0)
    assert feature(seen, "log_update_ratio")[0] < -5 < feature(seen, "log_update_ratio")[1]
    inputs, width, depth = 13, infos[0]["width"], infos[0]["depth"]
    size = (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * 3
    assert feature(seen, "log_parameters")[0] == pytest.approx(math.log(size / 1000))


def test_a_diverged_training_ends_with_the_penalty():
    env = make(lr=10.0, factors=[1.0, 2.0], depths=[2], widths=[64], divergence_penalty=3.0)
    seen, infos = trace(env, action=1, seed=0)
    assert infos[-1]["diverged"] is True
    assert len(seen) < 5
    assert seen[-1][-1] == -3.0
    assert all(env.observation_space.contains(np.float32(row[: len(FEATURES)])) for row in seen)
    assert 0 <= infos[-1]["test_accuracy"] < 0.9
    assert math.isfinite(infos[-1]["loss"])
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_observations_are_finite_whatever_is_measured():
    found = bounded([math.nan, math.inf, -math.inf, 11.0, 0.5])
    assert found.tolist() == [10.0, 10.0, -10.0, 10.0, 0.5]
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        {"data": "breast-cancer"},
        {"widths": [5]},
        {"depths": [3]},
        {"splits": [100, 200]},
        {"seed_range": [7, 8]},
        {"steps": 3},
        {"updates_per_step": 4},
        {"batch_size": 9},
        {"lr": 0.06},
        {"momentum": 0.8},
        {"weight_decay": 0.01},
        {"reward": "final"},
    ],
)
def test_every_argument_counts(change):
    assert trace(make(), seed=0) == trace(make(), seed=0)
    assert trace(make(), seed=0) != trace(make(**change), seed=0)


def test_the_model_counts():
    kwargs = {"data": "digits-images", "widths": [4], "depths": [2]}
    assert trace(make(**kwargs), seed=0) != trace(make(model="cnn", **kwargs), seed=0)


def test_ranges_keep_tasks_apart():
    env = make(seed_range=[3, 5], splits=[2, 4], widths=[4, 6], depths=[1, 3])
    infos = [env.reset(seed=seed)[1] for seed in range(40)]
    assert {info["task_seed"] for info in infos} == {3, 4}
    env = make(splits=[2, 4], widths=[4, 6], depths=[1, 3])
    infos = [env.reset(seed=seed)[1] for seed in range(40)]
    found = [{info[name] for info in infos} for name in ("split", "width", "depth")]
    assert found == [{2, 3}, {4, 6}, {1, 3}]


def test_options_name_the_task_and_the_first_rate():
    env = make()
    info = env.reset(options={"task_seed": 2_000_000, "lr": 0.3})[1]
    assert (info["task_seed"], info["lr"]) == (2_000_000, 0.3)
    assert env.reset()[1]["lr"] == 0.05
    for options, message in [
        ({"seed": 1}, "no option 'seed': there is task_seed, lr"),
        ({"task_seed": -1}, "task_seed must be at least 0"),
        ({"lr": 0.0}, "lr must be above 0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            env.reset(options=options)


SCRIPT = f"""
import json
from rl_lightning.envs.optimise.training_control import TrainingControlEnv
env = TrainingControlEnv(**{SMALL | {"data": "digits"}})
seen, ended = [env.reset(seed=4)[0].tolist()], False
while not ended:
    obs, reward, ended, *_ = env.step({SAME})
    seen.append([*obs.tolist(), reward])
print(json.dumps(seen))
"""


def test_another_process_plays_the_same_episode_and_no_global_generator_moves():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    seen, _ = trace(make(data="digits"), seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    command = [sys.executable, "-c", SCRIPT]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.splitlines()[-1]) == seen


def test_the_caller_s_modes_and_threads_change_nothing():
    expected = trace(make(data="digits"), seed=0)
    torch.set_num_threads(2)
    try:
        assert trace(make(data="digits"), seed=0) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    expected = trace(make(), seed=0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert trace(make(), seed=0) == expected
    with torch.no_grad():
        assert trace(make(), seed=0) == expected


def test_environments_of_one_process_do_not_disturb_each_other():
    one, other = make(widths=[4], depths=[1]), make(widths=[4], depths=[1])
    expected = trace(one, seed=0)[0]
    rows = [one.reset(seed=0)[0].tolist()]
    other.reset(seed=1)
    for _ in range(4):
        obs, reward, *_ = one.step(SAME)
        rows.append([*obs.tolist(), reward])
        other.step(4)
    assert rows == expected


def test_a_saved_environment_goes_on_bit_for_bit():
    copies = Snapshots(make())
    assert copies.reason is None
    first = make_vector_env(NAME, 2, "sync", SMALL)
    first.reset(seed=3)
    for _ in range(6):  # in the second episode
        first.step(np.array([1, 3]))
    state = copies.take(first)
    second = make_vector_env(NAME, 2, "sync", SMALL)
    second.reset(seed=4)
    copies.put(second, state)
    for _ in range(6):
        results = [env.step(np.array([3, 4]))[:3] for env in (first, second)]
        for one, two in zip(*results, strict=True):
            assert np.array_equal(one, two)


def rollouts(frames, **kwargs):
    return RolloutDataModule(
        NAME,
        env_kwargs={**SMALL, "updates_per_step": 1},
        num_envs=2,
        rollout_steps=3,
        minibatch_size=3,
        total_frames=frames,
        **kwargs,
    )


@pytest.mark.parametrize(
    "vectorization", ["sync", pytest.param("async", marks=pytest.mark.distributed)]
)
def test_ppo_trains_on_it(vectorization):
    data = rollouts(12, vectorization=vectorization)
    agent = PPO(data.spec)
    before = torch.cat([p.detach().flatten().clone() for p in agent.parameters()])
    fit(agent, data)
    after = torch.cat([p.detach().flatten() for p in agent.parameters()])
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_a_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    def weights(frames, **kwargs):
        torch.manual_seed(1)
        data = rollouts(frames)
        return fit(PPO(data.spec), data, **kwargs)

    whole = weights(24)  # stops in the middle of an episode
    half = weights(12, enable_checkpointing=False)
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = weights(24, ckpt_path=str(tmp_path / "half.ckpt"))
    for one, two in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": "mnist"}, "use one of digits, digits-images, wine, breast-cancer"),
        ({"model": "resnet"}, "use one of mlp, cnn"),
        ({"widths": []}, "widths must be a list of whole numbers"),
        ({"widths": [4, 4]}, "widths must be different numbers"),
        ({"widths": [0]}, "widths must be at least 1"),
        ({"depths": 2}, "depths must be a list"),
        ({"splits": [3, 3]}, r"splits\[1\] must be at least 4"),
        ({"seed_range": 5}, "seed_range must be a list, not"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"updates_per_step": 0}, "updates_per_step must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": 20.0}, "lr must be between 1e-05 and 10"),
        ({"momentum": 1.0}, "momentum must be between 0 and 0.99"),
        ({"weight_decay": 0.2}, "weight_decay must be between 0 and 0.1"),
        ({"controls": []}, "controls must be a list of different ones of lr, momentum, weight"),
        ({"controls": ["lr", "lr"]}, "controls must be a list of different ones"),
        ({"controls": ["beta"]}, "controls='beta': use one of lr, momentum, weight_decay"),
        ({"actions": "box"}, "actions='box': use one of discrete, continuous"),
        ({"factors": [2.0]}, "factors must be at least two numbers"),
        ({"factors": [0.0, 2.0]}, "factors must be above 0"),
        ({"max_factor": 0}, "max_factor must be above 0"),
        ({"reward": "loss"}, "reward='loss': use one of improvement, final"),
        ({"divergence_penalty": -1}, "divergence_penalty must be at least 0"),
    ],
)
def test_wrong_arguments_are_explained(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "action"),
    [
        *(({}, one) for one in (5, -1, [1, 1], 1.7, None, "1", 10**30, 1j, np.array([1], object))),
        *(
            ({"actions": "continuous"}, one)
            for one in ([math.nan], None, "1", 1j, 10**30, [[1], 1])
        ),
    ],
)
def test_there_is_no_such_action(kwargs, action):
    env = make(**kwargs)
    with pytest.raises(ResetNeeded):
        env.step(SAME)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        env.step(action)


@pytest.mark.parametrize("action", [SAME, np.int64(SAME), np.array(SAME), np.array([SAME]), 2.0])
def test_the_same_action_in_other_types(action):
    assert trace(make(), action, seed=0)[0] == trace(make(), seed=0)[0]


def test_a_failed_reset_changes_nothing_and_ends_the_episode():
    env, other = make(), make()
    for one in (env, other):
        one.reset(seed=3)
    with pytest.raises(ConfigurationError, match="lr must be between"):
        env.reset(seed=9, options={"task_seed": 1, "lr": 1e9})
    with pytest.raises(ResetNeeded):
        env.step(SAME)
    assert trace(env)[0] == trace(other)[0]


def test_the_largest_factor_has_a_range():
    for wrong in (5e-324, 1e300):
        with pytest.raises(ConfigurationError, match="max_factor must be between"):
            make(actions="continuous", max_factor=wrong)


# --- baselines -------------------------------------------------------------------------------


def test_shapes_of_schedules():
    assert shape_of("constant", 0.9) == 1
    assert [shape_of("step", p) for p in (0.49, 0.5, 0.75)] == [1, 0.3, 0.09]
    assert [shape_of("cosine", p) for p in (0.0, 0.5)] == pytest.approx([1, 0.5])
    assert shape_of("cosine", 1 / 3) == pytest.approx(0.75)
    warm = [shape_of("warmup_cosine", p, 0.05) for p in (0.0, 0.05, 0.1, 0.15, 0.575)]
    assert warm == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5])


@pytest.mark.parametrize("kind", ["constant", "cosine", "step", "warmup_cosine"])
def test_continuous_actions_follow_a_schedule_exactly(kind):
    env = make(actions="continuous", steps=20)
    schedule = Schedule(kind, 0.1)
    obs, info = env.reset(options=schedule.begin(env, 0))
    for step in range(20):
        obs, *_, info = env.step(schedule.act(obs, info))
        assert info["lr"] == pytest.approx(0.1 * shape_of(kind, step / 20, 1 / 20), rel=1e-4)


def test_discrete_actions_follow_it_as_near_as_they_can():
    env = make(steps=20)
    schedule = Schedule("step", 0.1)
    obs, info = env.reset(options=schedule.begin(env, 0))
    lrs = []
    for _ in range(20):
        obs, *_, info = env.step(schedule.act(obs, info))
        lrs.append(info["lr"])
    assert np.allclose(lrs[:10], 0.1)
    assert np.allclose(lrs[10:13], [0.05, 0.032, 0.032], rtol=0.3)
    assert np.allclose(lrs[12:15], 0.03, rtol=0.1)
    assert np.allclose(lrs[17:], 0.009, rtol=0.15)


def test_a_baseline_is_chosen_by_its_mean_score():
    env = make()
    candidates = schedules("constant", (1e-4, 0.1))
    means = [evaluate(env, candidate, range(3))["return"] for candidate in candidates]
    assert means[1] > means[0]
    assert choose(env, candidates, range(3)) is candidates[1]
    assert choose(env, candidates, range(3), score="loss") is candidates[0]  # the highest
    assert len(schedules("cosine")) == len(RATES)
    rows = [play(env, candidates[1], seed) for seed in range(3)]
    assert means[1] == pytest.approx(np.mean([row["return"] for row in rows]))
    assert rows[0] == play(env, candidates[1], 0)
    assert set(evaluate(env, Uniform(), range(2))) >= {"test_accuracy", "diverged", "return"}


def test_wrong_baselines_are_explained():
    with pytest.raises(ConfigurationError, match="kind='linear': use one of constant, cosine"):
        Schedule("linear", 0.1)
    with pytest.raises(ConfigurationError, match="rate must be above 0"):
        Schedule("constant", 0.0)
    with pytest.raises(ConfigurationError, match="needs TrainingControl-v0 with controls"):
        play(make(controls=["momentum"]), Schedule("constant", 0.1), 0)
    with pytest.raises(ConfigurationError, match="at least one candidate and one task"):
        choose(make(), [], [0])
    with pytest.raises(ConfigurationError, match="score='success': use one of return"):
        choose(make(), [Uniform()], [0], "success")


def test_held_out_tasks_are_checked_to_be_others():
    training = {"seed_range": [0, 10], "widths": [16, 32], "splits": [0, 5]}
    check_disjoint(
        training, {"seed_range": [10, 20], "widths": [24]}, names=["seed_range", "widths"]
    )
    for held_out, name in [
        ({"seed_range": [9, 20]}, "seed_range"),
        ({"widths": [32, 48]}, "widths"),
        ({"splits": [0, 1]}, "splits"),
    ]:
        with pytest.raises(ConfigurationError, match=f"{name} of training, .* overlaps"):
            check_disjoint(training, held_out, [name])
    with pytest.raises(ConfigurationError, match="depths must be given"):
        check_disjoint(training, training, ["depths"])


def test_the_benchmark_compares_baselines_task_by_task():
    def row(*returns):
        episodes = [{"return": value, "test_accuracy": 0.5} for value in returns]
        chosen = {"kind": "cosine", "rate": 0.2}
        return {"chosen": chosen, "cpu_seconds": 0.1, "episodes": episodes, "seeds": [1]}

    agent = "agent, 1 × ppo"
    found = summed_up(NAME, {"a": row(1.0, 2.0), "b": row(2.0, 4.0), agent: row(5.0, 5.0)})
    assert found["a"]["return"] == [1.5, 0.5]
    assert found["a"]["return − b"] == [-1.5, 0.5]
    assert found[agent]["return − b"] == [2.0, 1.0]
    assert "| a 0.2 | 0.100 | 1.500 ± 0.500 | 0.500 ± 0.000 | -1.500 ± 0.500 |" in table(found)
