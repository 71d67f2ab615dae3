"""HyperparameterSearch-v0: trials, what is seen and rewarded, and searches beside it."""

import math
import sys

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
from rl_lightning.envs.optimise.baselines import TPE, Uniform, evaluate, play
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.hyperparameter_search import GENERAL, settings_of
from rl_lightning.envs.optimise.targets import build_target
from rl_lightning.envs.optimise.training import accuracy_of

NAME = "HyperparameterSearch-v0"
SMALL = {"data": ["wine"], "trials": 3, "epochs": 1}
MIDDLE = np.zeros(4, np.float32)
ACTIONS = [MIDDLE, np.array([-1.0, 0.5, 0.0, 1.0]), np.array([0.5, 0.0, -1.0, -1.0])]


def make(**kwargs):
    return make_env(NAME, {**SMALL, **kwargs})


def trace(env, actions=ACTIONS, **reset):
    obs, info = env.reset(**reset)
    seen, infos = [obs.tolist()], [info]
    for action in actions:
        obs, reward, ended, _, info = env.step(action)
        seen.append([*obs.tolist(), reward])
        infos.append(info)
        if ended:
            break
    return seen, infos


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize("kwargs", [{}, {"actions": "discrete"}])
def test_gymnasium_s_checker(kwargs):
    check_env(make(**kwargs).unwrapped, skip_render_check=True)


def test_actions_stand_for_settings_on_logarithmic_scales():
    low, middle, high = (settings_of([x] * 4) for x in (-1, 0, 1))
    assert (low.lr, low.width, low.batch_size) == (1e-3, 4, 8)
    assert (high.width, high.batch_size) == (64, 128)
    assert [high.lr, low.weight_decay, high.weight_decay] == pytest.approx([1, 1e-6, 0.1])
    assert (middle.width, middle.batch_size) == (16, 32)
    assert middle.lr == pytest.approx(10**-1.5)
    assert middle.weight_decay == pytest.approx(10**-3.5)


@pytest.mark.parametrize("number", range(3))
def test_a_trial_is_a_training_by_pytorch_s_sgd(number):
    env = make(epochs=2)
    _, infos = trace(env, [ACTIONS[number]], options={"task_seed": 5})
    random = np.random.default_rng(5)
    random.integers(1)
    split = int(random.integers(0, 100))
    assert infos[0] == {"task_seed": 5, "data": 0, "split": split}
    data, settings = load_data("wine", split), settings_of(ACTIONS[number])
    network = build_target("mlp", (13,), 3, settings.width, 1, seed=5)
    decay = settings.weight_decay
    optimizer = torch.optim.SGD(network.parameters(), settings.lr, 0.9, weight_decay=decay)
    order = torch.Generator().manual_seed(5)
    for _ in range(2):
        rows = torch.randperm(len(data.x_train), generator=order)
        for batch in rows.split(settings.batch_size):
            loss = F.cross_entropy(network(data.x_train[batch]), data.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    info = infos[-1]
    assert info["accuracy"] == accuracy_of(network(data.x_val), data.y_val)
    assert [info[name] for name in ("width", "batch_size")] == [settings.width, settings.batch_size]
    assert [info[name] for name in ("lr", "weight_decay")] == [settings.lr, decay]


def test_rewards_are_improvements_of_the_best_score():
    env = make()
    seen, infos = trace(env, seed=0)
    labels = load_data("wine", infos[0]["split"]).y_val
    best = float(labels.bincount().max()) / len(labels)
    for row, info in zip(seen[1:], infos[1:], strict=True):
        assert row[-1] == pytest.approx(max(info["accuracy"] - best, 0))
        best = max(best, info["accuracy"])
    scores = [info["accuracy"] for info in infos[1:]]
    assert infos[-1]["best_accuracy"] == max(scores)
    only = trace(make(trials=1), [ACTIONS[int(np.argmax(scores))]], seed=0)[1][-1]
    assert infos[-1]["test_accuracy"] == only["test_accuracy"]
    assert infos[-1]["task_seed"] == infos[0]["task_seed"]


def test_equal_settings_have_equal_scores():
    _, infos = trace(make(), [MIDDLE] * 3, seed=0)
    assert len({info["accuracy"] for info in infos[1:]}) == 1


def test_what_is_seen():
    seen, infos = trace(make(), seed=0)
    scores = [info["accuracy"] for info in infos[1:]]
    rows = [dict(zip(GENERAL, row, strict=False)) for row in seen]
    assert [row["progress"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [row["trials_left"] for row in rows] == pytest.approx(np.log([4, 3, 2, 1]))
    assert [row["last"] for row in rows] == pytest.approx([0, *scores])
    assert rows[-1]["mean"] == pytest.approx(np.mean(scores))
    assert rows[-1]["best"] == pytest.approx(max(scores))
    assert [row["improvement"] for row in rows[1:]] == pytest.approx([r[-1] for r in seen[1:]])
    for row, action in zip(seen[1:], ACTIONS, strict=True):
        assert row[6:10] == pytest.approx(action)
    assert seen[-1][10:14] == pytest.approx(ACTIONS[int(np.argmax(scores))])
    assert seen[0][14:] == pytest.approx(np.log([107 / 1000, 13 / 30, 3 / 5]))


def test_discrete_actions_are_levels():
    env = make(actions="discrete", levels=3)
    assert env.action_space.nvec.tolist() == [3] * 4
    env.reset(seed=0)
    info = env.step(np.array([0, 1, 2, 2]))[-1]
    assert info["lr"] == pytest.approx(1e-3)
    assert info["weight_decay"] == pytest.approx(0.1)
    assert (info["width"], info["batch_size"]) == (16, 128)


@pytest.mark.parametrize(
    "change",
    [
        {"data": ["breast-cancer"]},
        {"depth": 2},
        {"splits": [100, 200]},
        {"seed_range": [7, 8]},
        {"trials": 2},
        {"epochs": 2},
    ],
)
def test_every_argument_counts(change):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert trace(make(), seed=0) == trace(make(), seed=0)
    assert trace(make(), seed=0) != trace(make(**change), seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_model_counts():
    kwargs = {"data": ["digits-images"], "trials": 1}
    one, other = (make(model=model, **kwargs) for model in ("mlp", "cnn"))
    assert trace(one, [ACTIONS[2]], seed=0) != trace(other, [ACTIONS[2]], seed=0)


def test_tasks_are_drawn_from_the_data_sets():
    env = make(data=["wine", "breast-cancer"], splits=[2, 4], seed_range=[0, 30])
    infos = [env.reset(seed=seed)[1] for seed in range(60)]
    assert {info["data"] for info in infos} == {0, 1}
    assert {info["split"] for info in infos} == {2, 3}


def test_a_trial_that_diverges_scores_nothing_and_is_seen():
    env = make(data=["digits"], depth=8)
    obs, *_ = env.reset(seed=0)
    obs, reward, *_, info = env.step(np.array([1.0, 1.0, -1.0, -1.0]))
    assert info["accuracy"] < 0.2
    assert reward < 0.1
    assert np.isfinite(obs).all()


def test_a_saved_environment_goes_on_bit_for_bit():
    copies = Snapshots(make())
    assert copies.reason is None
    first, second = (make_vector_env(NAME, 2, "sync", SMALL) for _ in range(2))
    first.reset(seed=3)
    second.reset(seed=4)
    for action in ACTIONS[:2]:
        first.step(np.stack([action, -action]))
    copies.put(second, copies.take(first))
    for action in ACTIONS:
        results = [env.step(np.stack([action, -action]))[:3] for env in (first, second)]
        for one, two in zip(*results, strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_ppo_trains_on_it(actions):
    data = RolloutDataModule(
        NAME, env_kwargs={**SMALL, "actions": actions}, num_envs=2, rollout_steps=4,
        minibatch_size=4, total_frames=16,
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
        ({"data": "wine"}, "data must be a list, not 'wine'"),
        ({"data": ["wine", "wine"]}, "data must be a list of different data sets"),
        ({"data": ["mnist"]}, "use one of digits"),
        ({"model": "resnet"}, "use one of mlp, cnn"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"splits": 3}, "splits must be a list, not"),
        ({"seed_range": [5, 5]}, r"seed_range\[1\] must be at least 6"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"actions": "box"}, "actions='box': use one of continuous, discrete"),
        ({"levels": 1}, "levels must be at least 2"),
    ],
)
def test_wrong_arguments_are_explained(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("actions", "action"),
    [
        ("continuous", [0.0]),
        ("continuous", [0.0, 0.0, 0.0, math.inf]),
        ("discrete", [0, 0, 0, 5]),
        ("discrete", [0, 0, 0, -1]),
        ("discrete", [1.9, 0, 0, 0]),
        ("discrete", ["1", "0", "0", "0"]),
        ("continuous", None),
        ("continuous", [1j, 0, 0, 0]),
    ],
)
def test_there_is_no_such_action(actions, action):
    env = make(actions=actions)
    with pytest.raises(ResetNeeded):
        env.step(MIDDLE)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        env.step(action)
    with pytest.raises(ConfigurationError, match="task_seed"):
        env.reset(options={"task_seed": -1})
    with pytest.raises(ResetNeeded):  # that has failed
        env.step(MIDDLE)


# --- baselines -------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_random_search_and_tpe_search(actions):
    env = make(actions=actions, trials=8)
    for baseline in (Uniform(), TPE(startup=3)):
        assert play(env, baseline, 3) == play(env, baseline, 3)
        assert evaluate(env, baseline, range(3))["best_accuracy"] > 0.6
    assert play(env, TPE(startup=3), 3) != play(env, TPE(startup=8), 3)


def test_tpe_is_told_the_scores():
    env, search = make(trials=4), TPE()
    obs, info = env.reset(options={"task_seed": 3, **search.begin(env, 3)})
    scores, lrs = [], []
    for _ in range(4):
        action = search.act(obs, info)
        obs, *_, info = env.step(action)
        scores.append(info["accuracy"])
        lrs.append(action[0])
    search.act(obs, info)
    trials = search._study.get_trials()
    assert [trial.value for trial in trials] == [*scores, None]
    assert [trial.params["a0"] for trial in trials[:4]] == pytest.approx(lrs)


def test_without_optuna_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match="TPE needs the package optuna: pip install"):
        TPE()
