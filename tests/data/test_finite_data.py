"""Numbers that nothing can be learned from stop a run before anything is learned from them."""

import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import strange
import torch
import training
from lightning.pytorch.callbacks import ModelCheckpoint
from training import make_trainer

from rl_lightning.agents import DQN, PPO, SAC, QTable
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data import ReplayDataModule, RolloutDataModule
from rl_lightning.data.collect.checks import FiniteCheck
from rl_lightning.data.collect.reward_norm import RewardNorm
from rl_lightning.data.collect.rollout_storage import Buffers
from rl_lightning.data.collect.statistics import read_success
from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.columns import make_column
from rl_lightning.encoders import DictEncoder, MLPEncoder
from rl_lightning.envs import make_vector_env

S = gym.spaces
NAN, INF = float("nan"), float("inf")
BAD = [NAN, INF, -INF]
BOX = strange.BOX
CONTINUOUS = S.Box(-1, 1, (1,), np.float32)
normalised = partial(MLPEncoder, normalize=True)


def fit(agent, data, **kwargs):
    return training.fit(agent, data, **{"gradient_clip_val": None, **kwargs})


def rollouts(**kwargs):
    small = {"num_envs": 2, "rollout_steps": 8, "total_frames": 96, "val_episodes": 2}
    return RolloutDataModule("Strange-v0", **{**small, **kwargs})


def replay(**kwargs):
    small = {"num_envs": 2, "buffer_frames": 200, "batch_size": 8, "warmup_frames": 8}
    small |= {"collect_frames": 2, "frames_per_epoch": 16, "total_frames": 96, "val_episodes": 2}
    return ReplayDataModule("Strange-v0", **{**small, **kwargs})


def late(value, fine, steps=20):
    """`value` from step 20 on, as one environment's reward or observation."""
    return lambda env: value if env.steps > steps and not env.np_random_seed % 2 else fine


def row(value, dtype=np.float32):
    return np.array([0.5, value, 0.1], dtype)


def state(agent):
    return [p.clone() for p in agent.parameters()] + [b.clone() for b in agent.buffers()]


def stopped(make, data, tmp_path, match):
    """Trains until it stops; checks the sentence, the agent and the last checkpoint."""
    torch.manual_seed(0)
    agent = make(data.spec)
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    with pytest.raises(RunError, match=match) as caught:
        fit(agent, data, enable_checkpointing=True, callbacks=[last])
    text = str(caught.value)
    assert text.startswith("'Strange-v0': ")
    assert "\n" not in text
    assert len(text) < 700
    assert all(x.isfinite().all() for x in state(agent))  # nothing was learned from it, ever
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(x.isfinite().all() for x in saved.values() if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("value", [*BAD, 1e300])
@pytest.mark.parametrize(
    ("make", "data", "act"),
    [
        (PPO, rollouts, None),
        (PPO, partial(rollouts, normalize_reward=True), None),
        (partial(PPO, encoder=normalised), rollouts, CONTINUOUS),
        (DQN, partial(replay, prioritized=True, n_step=3), None),
        (SAC, partial(replay, obs_dtype="float16"), CONTINUOUS),
    ],
)
def test_a_reward_stops_the_run(make, data, act, value, tmp_path):
    more = {"env_kwargs": {"reward": late(value, 1.0), "act": act}, "seed": 0}
    way = "mend the environment$" if value != value else "ClipReward: {min_reward"
    match = (
        rf"reward is .*{str(value)[-3:]}.*, at step 21 of this run, in environment 0 of 2.*{way}"
    )
    stopped(make, data(**more), tmp_path, match)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("make", "data", "act"),
    [
        (PPO, rollouts, None),
        (partial(PPO, encoder=normalised), rollouts, None),
        (partial(DQN, encoder=normalised), partial(replay, prioritized=True), None),
        (SAC, replay, CONTINUOUS),
    ],
)
def test_an_observation_stops_the_run(make, data, act, value, tmp_path):
    fine = row(0.2)
    more = {"env_kwargs": {"obs": late(row(value), fine), "act": act}, "seed": 0}
    way = "ClipObservation: {low: -1000, high: 1000" + (", nan: 0}" if value != value else "}")
    match = rf"observation\[1\] is {value:g}, at step 21 .*in environment 0 of 2.*{way}"
    stopped(make, data(**more), tmp_path, match)


@pytest.mark.parametrize(
    ("space", "value", "entry"),
    [
        (S.Dict(a=BOX, b=S.Dict(c=BOX)), lambda x: {"a": row(0), "b": {"c": x}}, "['b']['c'][1]"),
        (S.Tuple((S.Discrete(2), BOX)), lambda x: (1, x), "[1][1]"),
    ],
)
def test_an_entry_is_named_by_its_path(space, value, entry):
    obs = late(value(row(NAN)), value(row(0)), steps=3)
    data = rollouts(env_kwargs={"space": space, "obs": obs}, seed=0)
    below = {"b": DictEncoder} if "b" in entry else None
    with pytest.raises(RunError) as caught:
        fit(PPO(data.spec, encoder=partial(DictEncoder, encoders=below)), data)
    assert f"observation{entry} is nan, at step 4 " in str(caught.value)


def test_an_entry_that_nobody_reads_may_be_anything():
    space = S.Dict(a=BOX, lidar=BOX)
    obs = {"a": row(0.1), "lidar": row(INF)}
    data = rollouts(env_kwargs={"space": space, "obs": lambda e: obs}, total_frames=16)
    with pytest.raises(RunError, match=r"observation\['lidar'\]\[1\] is inf"):
        fit(PPO(data.spec, encoder=DictEncoder), data)
    reading = partial(DictEncoder, ignore=["lidar"])
    data = rollouts(env_kwargs={"space": space, "obs": lambda e: obs}, total_frames=16)
    fit(PPO(data.spec, encoder=reading), data, limit_val_batches=1.0)


def test_the_wrapper_named_lets_infinity_through():
    obs, wrapper = late(row(INF), row(0.1), 3), {"ClipObservation": {"low": -9, "high": 9}}
    data = rollouts(env_kwargs={"obs": obs}, wrappers=[wrapper], total_frames=32, seed=0)
    assert all(x.isfinite().all() for x in state(fit(PPO(data.spec), data)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_finite_numbers_pass(dtype):
    largest = float(min(np.finfo(dtype).max, np.finfo(np.float32).max))
    space = S.Box(-np.inf, np.inf, (3,), dtype)
    obs = np.full(3, largest, dtype)
    env = make_vector_env("Strange-v0", 2, "sync", {"space": space})
    check = FiniteCheck(env)
    with np.errstate(all="raise"):  # whatever the user has set
        check.reset(np.stack([obs, -obs]))
        check.step(np.stack([obs, obs]), np.full(2, np.finfo(np.float32).max, np.float64))
    with pytest.raises(RunError, match=r"observation\[2\] is inf.*environment 1"):
        check.step(np.array([[0, 0, 0], [0, 0, INF]], dtype), np.zeros(2))
    if dtype == np.float64:
        with pytest.raises(RunError, match=r"observation\[0\] is 1e\+300, more than float32 holds"):
            check.step(np.array([[1e300, 0, 0], [0, 0, 0]]), np.zeros(2))


@pytest.mark.parametrize("size", [1, 2, 7, 8, 31, 33, 1000])
def test_no_place_hides_a_number(size):
    space = S.Box(-np.inf, np.inf, (size,), np.float32)
    check = FiniteCheck(make_vector_env("Strange-v0", 1, "sync", {"space": space}))
    obs = np.random.default_rng(0).normal(size=(1, size)).astype(np.float32)
    check.reset(obs)
    for place in {0, size // 2, size - 1}:
        for value in BAD:
            bad = obs.copy()
            bad[0, place] = value
            with pytest.raises(RunError, match=rf"observation\[{place}\]"):
                check.step(bad, np.zeros(1))


# --- final observations --------------------------------------------------------------------------


def test_a_final_observation_is_looked_at_where_it_is_learned_from(tmp_path):
    """The value of a terminated episode's last observation is never asked for by rollouts."""
    more = {"final": late(row(NAN), row(0), steps=19), "obs": lambda e: row(0)}
    match = r"final observation\[1\] is nan, at step 20 of this run, in environment 0 of 2"
    stopped(PPO, rollouts(env_kwargs=more, seed=0), tmp_path, match)
    stopped(DQN, replay(env_kwargs={**more, "terminate": True}, seed=0), tmp_path, match)
    data = rollouts(env_kwargs={**more, "terminate": True}, seed=0)
    assert all(x.isfinite().all() for x in state(fit(PPO(data.spec), data)))


# --- native vector environments -----------------------------------------------------------------


def native(data, **kwargs):
    return data(vectorization="native", env_kwargs=kwargs)


def zeros(n):
    return np.zeros((2, 3), np.float32)


def test_a_native_environment_is_looked_at_too(tmp_path):
    def reward(n, resets):
        return np.array([1.0, NAN if n > 20 and not resets[1] else 1.0])

    def obs(n):
        return zeros(n) + np.array([[0, 0, 0], [0, 0, INF if n > 20 else 0]], np.float32)

    stopped(PPO, native(rollouts, reward=reward), tmp_path, "reward is nan.*environment 1 of 2")
    stopped(DQN, native(replay, reward=reward), tmp_path, "reward is nan.*environment 1 of 2")
    stopped(PPO, native(rollouts, obs=obs), tmp_path, r"observation\[2\] is inf, at step 21")


@pytest.mark.parametrize("make", [(PPO, rollouts), (DQN, replay)])
def test_what_a_native_environment_pays_for_a_reset_means_nothing(make):
    def reward(n, resets):
        return np.where(resets, NAN, 1.0)

    agent, data = make
    data = native(data, reward=reward)
    trained = fit(agent(data.spec), data, limit_val_batches=1.0)
    assert all(x.isfinite().all() for x in state(trained))
    assert trained.trainer.callback_metrics["val/return"] == 3.0


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"obs": lambda n: np.zeros((2, 1))}, r"observation .* \[2, 1\].*declares \[2, 3\]"),
        ({"reward": lambda n, r: np.zeros((2, 1))}, r"rewards must have the shape \[2\].*\[2, 1\]"),
        ({"reward": lambda n, r: np.array(["a", "b"])}, "reward is no array of numbers"),
        ({"reward": lambda n, r: exit(0)}, r"'Strange-v0' raised in step: SystemExit: 0"),
        ({"obs": lambda n: exit()}, r"'Strange-v0' raised in reset: SystemExit"),
    ],
)
def test_a_native_environment_that_is_none_is_named(part, match):
    data = native(rollouts, **part)
    with pytest.raises((ConfigurationError, RunError), match=match):
        fit(PPO(data.spec), data)
    with pytest.raises((ConfigurationError, RunError), match=match):
        make_trainer(limit_val_batches=1.0).validate(PPO(data.spec), data, verbose=False)


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["reward", "obs"])
@pytest.mark.parametrize("data", [rollouts, replay])
def test_no_checkpoint_is_judged_by_nan(data, part, tmp_path):
    value = {"reward": lambda e: NAN, "obs": lambda e: row(NAN)}[part]
    module = data(env_kwargs={}, val_env_kwargs={part: value})
    best = ModelCheckpoint(tmp_path, "best", monitor="val/return", mode="max")
    agent = (PPO if data is rollouts else DQN)(module.spec)
    with pytest.raises(RunError, match=r"is nan, at step \d of this evaluation"):
        fit(agent, module, enable_checkpointing=True, callbacks=[best], limit_val_batches=1.0)
    assert not list(tmp_path.iterdir())


def test_nor_by_a_return_that_float32_cannot_hold():
    module = rollouts(val_env_kwargs={"reward": 3e38})
    with pytest.raises(RunError, match="'Strange-v0': an evaluation episode's return is inf"):
        make_trainer(limit_val_batches=1.0).validate(PPO(module.spec), module, verbose=False)


# --- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [MLPEncoder, normalised])
@pytest.mark.parametrize("value", [70_000.0, -1e6])
def test_float16_refuses_what_it_cannot_hold(value, encoder):
    data = replay(env_kwargs={"obs": late(row(value), row(0))}, obs_dtype="float16", seed=0)
    agent = DQN(data.spec, encoder=encoder)
    with pytest.raises(ConfigurationError, match=f"float16 .* {re.escape(f'{value:,g}')}; set"):
        fit(agent, data)
    assert all(x.isfinite().all() for x in state(agent))


@pytest.mark.parametrize(("repeats", "stack"), [(False, 1), (True, 1), (False, 2)])
def test_every_kind_of_column_refuses_it(repeats, stack):
    """Dense rows, entries that are stored once, the newest frame of a stack."""
    x = torch.tensor([[1.0, 2.0], [65_504.0, 65_519.0]])  # the last is rounded to what fits
    make = partial(make_column, dtype=np.float16, repeats=repeats, stack=stack)
    column = make(Arena(None), "obs", 4, x)
    column.write(np.array([0, 1]), x)
    with pytest.raises(ConfigurationError, match=r"up to 65,504, but .* has -65,520"):
        column.write(np.array([2, 3]), torch.tensor([[0.0, 1.0], [2.0, -65_520.0]]))


def test_a_rollout_does_not_lose_steps_when_an_entry_changes_its_shape():
    buffers = Buffers(3)
    buffers.write("obs", 0, torch.zeros(2, 4))
    with pytest.raises(ConfigurationError, match=r"obs changes within a rollout from \[2, 4\]"):
        buffers.write("obs", 1, torch.zeros(2, 5))
    buffers.write("obs", 0, torch.zeros(2, 5))  # the next rollout may


def test_normalised_rewards_are_refused_when_their_sum_overflows():
    norm = RewardNorm(1, gamma=1.0)
    none = torch.zeros(2, 1, dtype=torch.bool)
    norm(torch.full((2, 1), 1e30), none)
    with pytest.raises(RunError, match=r"data.normalize_reward"):
        norm(torch.full((2, 1), 3e38), none)


# --- success -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "success"),
    [
        ([True, False], [1, 0]),
        ([1, 0.5], [1, 0.5]),
        ([np.array([True]), np.array([False])], [1, 0]),
        ([np.array(1.0), np.array(0)], [1, 0]),
        ([np.True_, None], [1, NAN]),
        (["yes", "no"], None),
        ([None, None], None),
        ([{"a": True}, {"a": False}], None),
        ([{"a": True}, 1], [NAN, 1]),
        ([[True], [False]], None),
    ],
)
def test_success_is_a_flag_and_what_is_none_is_passed_over(said, success):
    env = make_vector_env("Strange-v0", 2, "sync")
    infos = {}
    for i, value in enumerate(said):
        env._add_info(infos, {"final_info": {"success": value}}, i)
    done, returns = np.ones(2, bool), np.array([3.0, 9.0])
    read = read_success(infos, done, returns, None)
    assert (read is None) == (success is None)
    if success is None:
        assert read_success(infos, done, returns, 5.0).tolist() == [0, 1]
        infos["final_info"]["is_success"] = np.array([True, False])
        assert read_success(infos, done, returns, 5.0).tolist() == [1, 0]
    else:
        np.testing.assert_array_equal(read, success)


@pytest.mark.parametrize("said", [[np.ones(2), np.ones(2)], [np.ones(1), np.ones(3)]])
def test_success_of_several_is_refused(said):
    env, infos = make_vector_env("Strange-v0", 2, "sync"), {}
    for i, value in enumerate(said):
        env._add_info(infos, {"final_info": {"is_success": value}}, i)
    with pytest.raises(RunError, match=r"is_success.* must be one flag"):
        read_success(infos, np.ones(2, bool), np.zeros(2), None)


def test_training_goes_on_beside_strange_infos():
    def info(env):
        return {"path": np.zeros(env.t + 1), "x": [None, 1, "a", {"b": 2}][env.t % 4]}

    data = rollouts(env_kwargs={"info": info}, total_frames=32)
    fit(PPO(data.spec), data, limit_val_batches=1.0)


def test_a_table_does_not_learn_it_either(tmp_path):
    more = {"space": S.Discrete(3), "reward": late(NAN, 1.0)}
    stopped(QTable, rollouts(env_kwargs=more, seed=0), tmp_path, "reward is nan")
