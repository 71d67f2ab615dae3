"""What the collector shows to rewards, and what it learns from, step by step."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from reward_tools import CPU, Bad, Diary, Height, cold
from training import fit, make_trainer

from rl_lightning import (
    DQN,
    PPO,
    ActorCritic,
    CountBonus,
    OfflineDataModule,
    ReplayDataModule,
    RolloutDataModule,
    TableEncoder,
)
from rl_lightning.agents.agent import adam
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.collect.collector import Collector
from rl_lightning.data.collect.raw import final_info, with_rows
from rl_lightning.data.collect.reward_stage import RewardStage
from rl_lightning.envs import make_vector_env
from rl_lightning.rewards import Reward, StateReward, TextFunction, make_rewards


class Script:
    """An agent without weights that always does the same."""

    device = CPU

    def observe(self, obs):
        pass

    def preprocess(self, obs):
        return torch.as_tensor(np.array(obs), dtype=torch.float32)

    def initial_state(self, num_envs):
        return None

    def read_mask(self, info):
        return None

    def act(self, x, explore, state, mask):
        return {"action": torch.ones(len(x), dtype=torch.int64)}


def collect(makers, vectorization="sync", steps=8, num_envs=2, env_weight=1.0, **kwargs):
    env = make_vector_env("probes:Counter-v0", num_envs, vectorization, kwargs)
    collector = Collector(env, steps, seed=0)
    spec = EnvSpec(env.single_observation_space, env.single_action_space, "Counter-v0")
    rewards = make_rewards(makers, spec, num_envs, 0.9, CPU)
    collector.stage = RewardStage(rewards, num_envs, CPU, env_weight, "Counter-v0")
    rollout = collector.collect(Script())
    env.close()
    return collector, rollout


def column(name, b=0):
    values = [np.asarray(getattr(step, name))[b] for step in Diary.shown]
    return [np.ravel(value)[0].item() for value in values]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("truncate", [False, True])
def test_same_step_by_hand(vectorization, truncate):
    collect([Diary], vectorization, steps=8, length=3, truncate=truncate)
    assert column("obs") == [0, 1, 2, 0, 1, 2, 0, 1]
    # The final observation is shown, and never the first one of the next episode.
    assert column("next_obs") == [1, 2, 3, 1, 2, 3, 1, 2]
    assert column("reward") == [1, 2, 3, 1, 2, 3, 1, 2]
    assert column("started") == [1, 0, 0, 1, 0, 0, 1, 0]
    assert column("valid") == [1] * 8
    assert column("terminated" if truncate else "truncated") == [0] * 8
    assert column("truncated" if truncate else "terminated") == [0, 0, 1, 0, 0, 1, 0, 0]
    assert column("action") == [1] * 8
    assert [dict(s.info) and s.info["success"].tolist() for s in Diary.shown[:3]] == [
        {},
        {},
        [True, True],
    ]


def test_next_step_by_hand():
    _, rollout = collect([partial(Diary, weight=10.0)], "native", steps=9, length=3)
    assert column("obs") == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert column("next_obs") == [1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert column("started") == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert column("valid") == [1, 1, 1, 0, 1, 1, 1, 0, 1]
    # What is paid for a step spent on a reset is dropped.
    assert rollout.steps["reward"][:, 0].tolist() == [11, 22, 33, 0, 11, 22, 33, 0, 11]


def test_the_first_observation_after_a_reset_of_all_starts_episodes():
    collector, _ = collect([Diary], steps=2, length=9)
    collector.reset(Script())
    collector.collect(Script())
    assert column("started") == [1, 0, 1, 0]
    assert column("obs") == [0, 1, 0, 1]


def test_actions_are_shown_as_given_whatever_environments_make_of_them():
    data = RolloutDataModule(
        "Exact-v0",
        num_envs=2,
        rollout_steps=12,
        total_frames=24,
        vectorization="native",
        rewards=[Lever],
    )
    make_trainer().fit(PPO(data.spec), data)
    shown = {action for step in Diary.shown for action in step.action.tolist()}
    assert shown == {-1, 0, 1}  # the environment zeroes what it was given


class Lever(Diary):
    def __call__(self, step):
        super().__call__(step)
        return np.zeros(len(step.action))


def test_final_observations_of_all_episodes_must_be_finite():
    class Lost(gym.ObservationWrapper):
        def observation(self, observation):
            return np.where(observation == 3, np.nan, observation).astype(np.float32)

    env = SyncVectorEnv(
        [lambda: Lost(gym.make("Counter-v0"))], autoreset_mode=AutoresetMode.SAME_STEP
    )
    collector = Collector(env, 8, seed=0)
    collector.collect(Script())  # nobody reads where a terminated episode has led to
    collector.stage = RewardStage({}, 1, CPU)
    collector.reset(Script())
    with pytest.raises(RunError, match=r"final observation\[0\] is nan"):
        collector.collect(Script())


def test_what_is_learned_from_is_the_weighted_sum():
    makers = [partial(Diary, weight=0.5), partial(Diary, weight=-3.0, name="pain"), Height]
    _, rollout = collect(makers, steps=4, length=3, env_weight=2.0)
    assert rollout.steps["reward"][:, 0].tolist() == [1 * 0.5, 2 * 0.5, 3 * 0.5, 0.5]
    _, rollout = collect([], steps=4, length=3, env_weight=2.0)
    assert rollout.steps["reward"][:, 0].tolist() == [2, 4, 6, 2]
    _, rollout = collect([Height], steps=4, length=3, env_weight=0.0)
    assert rollout.steps["reward"][:, 0].tolist() == [1, 2, 3, 1]


def test_true_returns_are_counted_and_judged_ones_beside_them():
    collector, _ = collect([partial(Height, weight=10.0)], steps=7, length=3)
    assert list(collector.episodes.returns) == [6.0] * 4
    assert collector.stage is not None
    metrics = collector.stage.metrics()
    assert metrics["train/judged_return"] == 66.0
    assert metrics["reward/env"] == metrics["reward/height"] == pytest.approx((6 + 6 + 1) / 7)
    # Means are over the steps since they were asked for.
    assert collector.stage.metrics() == {"train/judged_return": 66.0}


def test_names_are_told_apart():
    named = make_rewards([Height, Height, partial(Height, name="x"), Diary], *SETUP)
    assert list(named) == ["height", "height_2", "x", "diary"]
    assert [reward.name for reward in named.values()] == list(named)
    for name in ("x", "env"):
        with pytest.raises(ConfigurationError, match=rf"rewards\[1\]: the name '{name}' is taken"):
            make_rewards([partial(Height, name="x"), partial(Height, name=name)], *SETUP)
    with pytest.raises(ConfigurationError, match="name must be a word without '/', not 'a/b'"):
        make_rewards([partial(Height, name="a/b")], *SETUP)


SETUP = (EnvSpec(*[None, None], "Counter-v0"), 2, 0.9, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("returns", "told"),
    [
        (np.array([0.0, np.nan]), "Bad is nan at step 1 of this run, in environment 1 of 2"),
        (torch.tensor([np.inf, 0.0]), "Bad is inf at step 1 .* environment 0 of 2 .* of Counter"),
        (np.zeros(3), r"Bad returned numbers of the shape \[3\] for 2 environments of Counter"),
        (0.0, r"Bad returned numbers of the shape \[\] for 2 environments"),
        (np.zeros((2, 1)), r"shape \[2, 1\]"),
        ("much", "Bad returned 'much' in Counter-v0, which is no array of numbers"),
        (None, "Bad"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(returns, told):
    with pytest.raises(RunError, match=told):
        collect([partial(Bad, returns=returns)])


@pytest.mark.parametrize("error", [KeyError("word"), ValueError("no number"), TypeError("x")])
def test_a_judge_that_raises_is_told_in_a_sentence(error):
    class Raises(Reward):
        def __call__(self, step):
            raise error

    told = rf"Raises failed at step 1 of this run in Counter-v0: {type(error).__name__}: .*\.py:"
    with pytest.raises(RunError, match=told):
        collect([Raises])


@pytest.mark.parametrize("error", [ConfigurationError("so"), OSError("full"), MemoryError()])
def test_what_explains_itself_comes_as_it_is(error):
    class Raises(Reward):
        def __call__(self, step):
            raise error

    with pytest.raises(type(error)) as raised:
        collect([Raises])
    assert raised.value is error


def test_a_second_reward_of_a_class_is_told_by_its_name_too():
    with pytest.raises(RunError, match=r"Bad \(bad_2\) is nan"):
        collect([partial(Bad, returns=[1, 1]), partial(Bad, returns=[np.nan, 1])])


def test_what_stands_where_nothing_happened_need_not_be_a_number():
    class Odd(Reward):
        def __call__(self, step):
            return np.where(step.valid, 1.0, np.nan)

    _, rollout = collect([Odd], "native", steps=5, length=3, env_weight=0.0)
    assert rollout.steps["reward"][:, 0].tolist() == [1, 1, 1, 0, 1]


def test_a_function_is_named_where_it_fails():
    data = RolloutDataModule(
        "TextMaze-v0", num_envs=2, rollout_steps=4, rewards=[partial(TextFunction, function=cold)]
    )
    agent = PPO(data.spec, encoder=TableEncoder)
    with pytest.raises(RunError, match=r"reward_tools\.cold is nan .* TextMaze"):
        make_trainer().fit(agent, data)


@pytest.mark.parametrize("rewards", [3, "Height", Height, {"class_path": "x"}])
def test_rewards_are_a_list(rewards):
    with pytest.raises(ConfigurationError, match=r"data.rewards must be a list"):
        RolloutDataModule("CartPole-v1", rewards=rewards)


@pytest.mark.parametrize("one", [3, [Height], "Height", {"class_path": "x"}])
def test_of_classes_or_other_callables(one):
    with pytest.raises(ConfigurationError, match=r"data.rewards\[1\] must be a class of rewards"):
        RolloutDataModule("CartPole-v1", rewards=[Height, one])


def test_an_object_that_is_made_already_is_refused_and_what_makes_none():
    made = Height(SETUP[0])
    with pytest.raises(ConfigurationError, match=r"data.rewards\[0\] must be a class"):
        RolloutDataModule("CartPole-v1", rewards=[made])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match=r"rewards\[0\] makes a int, which is no Reward"):
        make_rewards([lambda spec: 3], *SETUP)  # type: ignore[list-item,return-value]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), None, "1"])
def test_weights_are_finite(weight):
    with pytest.raises(ConfigurationError, match="weight must be a finite number"):
        Height(SETUP[0], weight=weight)
    with pytest.raises(ConfigurationError, match="env_reward_weight must be a"):
        RolloutDataModule("CartPole-v1", env_reward_weight=weight)


def test_no_rewards_no_stage():
    data = RolloutDataModule("CartPole-v1", num_envs=1, rollout_steps=4, total_frames=4, rewards=[])
    seen = []
    agent = PPO(data.spec)
    agent.on_train_epoch_end = lambda: seen.append(data.collector.stage)
    make_trainer().fit(agent, data)
    assert seen == [None]


MODULES = {
    "rollouts": (PPO, RolloutDataModule, {"num_envs": 2, "rollout_steps": 8}),
    "replay": (
        DQN,
        ReplayDataModule,
        {"num_envs": 2, "warmup_frames": 4, "frames_per_epoch": 8, "batch_size": 4},
    ),
}


@pytest.mark.parametrize("kind", MODULES)
def test_validation_and_train_return_stay_the_environments_own(kind):
    make, module, arguments = MODULES[kind]
    rewards = [partial(Height, weight=100.0)]
    data = module(
        "Counter-v0", total_frames=32, val_episodes=2, rewards=rewards, seed=1, **arguments
    )
    agent = make(data.spec)
    logged = {}
    agent.log_dict = lambda values, *a, **k: logged.update(values)
    trainer = make_trainer(limit_val_batches=1.0, log_every_n_steps=1)
    trainer.fit(agent, data)
    measured = {**trainer.callback_metrics, **logged}
    assert float(measured["train/return"]) == 6.0
    assert float(measured["train/judged_return"]) == 606.0
    assert float(measured["reward/height"]) == pytest.approx(float(measured["reward/env"]))
    del agent.log_dict
    (result,) = make_trainer(limit_val_batches=1.0).validate(agent, data, verbose=False)
    assert result["val/return"] == 6.0


def test_a_replay_buffer_holds_what_was_learned_from():
    make, module, arguments = MODULES["replay"]
    data = module(
        "Counter-v0", total_frames=32, rewards=[Height], env_reward_weight=3.0, **arguments
    )
    batches = []
    agent = make(data.spec)
    plain = agent.loss
    agent.loss = lambda batch: batches.append(batch.clone()) or plain(batch)
    make_trainer().fit(agent, data)
    for batch in batches:
        assert torch.equal(batch["reward"], 4.0 * (batch["obs"][:, 0] + 1.0))


@pytest.mark.parametrize("kind", MODULES)
def test_ranks_are_to_agree_once_a_rollout_or_epoch(kind):
    class Agreeing(Height):
        agreed = 0

        def synchronize(self):
            Agreeing.agreed += 1

    make, module, arguments = MODULES[kind]
    data = module("Counter-v0", total_frames=32, rewards=[Agreeing], **arguments)
    trainer = make_trainer()
    trainer.fit(make(data.spec), data)
    assert Agreeing.agreed == trainer.current_epoch > 1


def test_reward_normalisation_scales_what_is_learned_from():
    seen = {}
    for weight in (0.0, 5.0):
        data = RolloutDataModule(
            "Counter-v0",
            num_envs=1,
            rollout_steps=8,
            total_frames=8,
            normalize_reward=True,
            rewards=[partial(Height, weight=weight)],
        )
        agent = PPO(data.spec)
        plain = agent.prepare
        agent.prepare = lambda r, w=weight, p=plain: (
            seen.update({w: r.steps["reward"].clone()}) or p(r)
        )
        make_trainer().fit(agent, data)
    assert torch.allclose(seen[0.0], seen[5.0])  # six times as much, by six times the deviation


def test_offline_data_and_hindsight_refuse():
    for given in ({"rewards": [Height]}, {"env_reward_weight": 0.5}):
        with pytest.raises(ConfigurationError, match="judge steps while these are taken"):
            OfflineDataModule("file.h5", "CartPole-v1", **given)
        for name, value in (("her_goals", 2), ("dataset", "file.h5")):
            with pytest.raises(ConfigurationError, match=f"data.{name}: {value} brings rewards"):
                ReplayDataModule("CartPole-v1", **{name: value}, **given)


def test_observations_that_no_checkpoint_can_hold_are_refused():
    stage = RewardStage({}, 1, CPU)
    with pytest.raises(ConfigurationError, match="of class object, which a checkpoint cannot keep"):
        stage.begin((object(),))


def test_final_observations_take_their_rows_in_every_kind_of_space():
    s = gym.spaces
    space = s.Dict({"a": s.Box(0, 9, (2,)), "t": s.Tuple((s.Discrete(9), s.Text(9)))})
    obs = {"a": np.zeros((3, 2)), "t": (np.arange(3), ("x", "y", "z"))}
    final = {"a": np.ones((1, 2)), "t": (np.array([7]), ("end",))}
    out = with_rows(space, obs, np.array([1]), final)
    assert out["a"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert out["t"][0].tolist() == [0, 7, 2]
    assert out["t"][1] == ("x", "end", "z")
    assert obs["t"][1] == ("x", "y", "z")
    assert obs["a"].sum() == 0


def test_the_info_of_an_episode_that_ended_is_its_final_one():
    done = np.array([False, True])
    info = {
        "n": np.array([1, 5]),
        "_n": np.array([True, True]),
        "deep": {"k": np.array([1.0, 2.0])},
        "final_info": {
            "n": np.array([0, 9]),
            "_n": np.array([False, True]),
            "won": np.array([False, True]),
            "deep": {"k": np.array([0.0, 8.0])},
        },
        "final_obs": np.array([None, 3], dtype=object),
    }
    merged = final_info(info, done)
    assert set(merged) == {"n", "_n", "deep", "won"}
    assert merged["n"].tolist() == [1, 9]
    assert merged["won"].tolist() == [False, True]
    assert merged["deep"]["k"].tolist() == [1.0, 8.0]


def test_states_are_worth_the_same_at_once_as_one_by_one():
    class Square(StateReward):
        def value(self, obs):
            return obs[:, 0] ** 2

    _, both = collect([partial(Square, shaping="potential")], steps=7, num_envs=2, length=3)
    _, one = collect([partial(Square, shaping="potential")], steps=7, num_envs=1, length=3)
    assert torch.equal(both.steps["reward"][:, :1], one.steps["reward"])


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_learn_one_set_of_counts_and_one_predictor(tmp_path):
    script = Path(__file__).with_name("rewards_ddp_script.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert one["places"] == two["places"]
    # Episodes of two steps: each of the frames is a visit, and each beginning of an episode.
    assert sum(n for _, n in one["places"]) == pytest.approx(1.5 * one["frames"], abs=6)
    for key in ("target", "predictor", "norm", "bonuses"):
        parts = (rank["learned"]["rnd_bonus"][key] for rank in (one, two))
        for (name, a), b in zip(next(parts).items(), next(parts).values(), strict=True):
            assert torch.equal(a, b), (key, name)


@pytest.mark.learning
def test_a_bonus_for_what_is_new_opens_a_lock_that_chance_does_not():
    """By chance it opens in less than one of 1,000 episodes, and 1,000 are played."""
    success = {}
    for rewards in ([], [partial(CountBonus, weight=0.2)]):
        torch.manual_seed(0)
        data = RolloutDataModule(
            "Lock-v0",
            env_kwargs={"length": 12},
            num_envs=16,
            rollout_steps=28,
            minibatch_size=112,
            passes=4,
            total_frames=16_000,
            rewards=rewards,
            seed=3,
        )
        agent = PPO(
            data.spec,
            encoder=TableEncoder,
            network=partial(ActorCritic, hidden=(32,)),
            optimizer=partial(adam, lr=3e-3),
            entropy_coef=0.01,
        )
        agent.on_train_epoch_end = lambda d=data, on=bool(rewards): success.update(
            {on: d.episode_metrics()["train/success"]}
        )
        fit(agent, data)
    assert success[False] == 0.0
    assert success[True] > 0.9
