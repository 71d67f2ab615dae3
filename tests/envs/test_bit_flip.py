"""BitFlip-v0: its rules, its rewards in bulk, and that seeds reproduce it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.bit_flip import BitFlipEnv


def solve(env, obs):
    """Flip each bit that is wrong; what the steps returned."""
    wrong = np.flatnonzero(obs["observation"] != obs["desired_goal"])
    return [env.step(bit) for bit in wrong]


@pytest.mark.filterwarnings("ignore:.*render")
def test_gymnasium_s_checker():
    env = gym.make("BitFlip-v0", bits=4)
    check_env(env.unwrapped, skip_render_check=True)
    space = gym.spaces.Box(0, 1, (4,), np.float32)
    assert env.observation_space == gym.spaces.Dict(
        {"observation": space, "achieved_goal": space, "desired_goal": space}
    )
    assert env.action_space == gym.spaces.Discrete(4)
    assert make_env("BitFlip-v0").action_space == gym.spaces.Discrete(15)


@pytest.mark.parametrize("seed", range(5))
def test_flipping_the_wrong_bits_succeeds(seed):
    env = BitFlipEnv(bits=6)
    obs, info = env.reset(seed=seed)
    assert info == {}
    *before, (last, reward, terminated, truncated, info) = solve(env, obs)
    assert [step[1:] for step in before] == [(-1.0, False, False, {})] * len(before)
    assert (reward, terminated, truncated, info) == (0.0, True, False, {"success": True})
    assert np.array_equal(last["achieved_goal"], last["desired_goal"])


def test_an_action_flips_its_bit_and_leaves_earlier_observations_alone():
    env = BitFlipEnv(bits=3, max_steps=10)
    obs, _ = env.reset(seed=0)
    before = {name: value.copy() for name, value in obs.items()}
    after = env.step(1)[0]
    for name in ("observation", "achieved_goal"):
        assert np.flatnonzero(after[name] != before[name]).tolist() == [1]
        assert np.array_equal(obs[name], before[name])
    assert np.array_equal(after["desired_goal"], before["desired_goal"])


@pytest.mark.parametrize(("max_steps", "limit"), [(None, 8), (3, 3)])
def test_the_time_limit_truncates(max_steps, limit):
    env = BitFlipEnv(bits=8, max_steps=max_steps)
    obs, _ = env.reset(seed=0)
    wrong = np.flatnonzero(obs["observation"] != obs["desired_goal"])
    assert len(wrong) > 1
    for step in range(1, limit + 1):
        *_, terminated, truncated, info = env.step(wrong[0])
        assert not terminated
        assert truncated == (step == limit)
    assert info == {"success": False}
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)


def test_success_at_the_time_limit_is_no_truncation():
    env = BitFlipEnv(bits=1)
    env.reset(seed=0)
    assert env.step(0)[1:] == (0.0, True, False, {"success": True})


def test_start_and_goal_are_uniform_over_the_pairs_that_differ():
    env = BitFlipEnv(bits=2)
    env.reset(seed=0)
    counts = np.zeros((4, 4))
    for _ in range(6000):
        obs, _ = env.reset()
        start, goal = (int(obs[k] @ [2, 1]) for k in ("observation", "desired_goal"))
        counts[start, goal] += 1
    assert np.all(np.diag(counts) == 0)
    # Twelve pairs, 500 expected of each with a standard deviation of 21.
    assert np.all(np.abs(counts[~np.eye(4, dtype=bool)] - 500) < 90)


def test_seeds_reproduce_episodes():
    def trace(seed):
        env = BitFlipEnv(bits=5)
        seen = [env.reset(seed=seed)[0]]
        for _ in range(20):
            obs, _, terminated, truncated, _ = env.step(len(seen) % 5)
            seen.append(env.reset()[0] if terminated or truncated else obs)
        return np.array([[obs["observation"], obs["desired_goal"]] for obs in seen])

    assert np.array_equal(trace(3), trace(3))
    assert not np.array_equal(trace(3), trace(4))


def test_rewards_in_bulk_equal_those_of_the_steps():
    env = BitFlipEnv(bits=3, max_steps=20)
    rng = np.random.default_rng(0)
    achieved, desired, rewards, ends = [], [], [], []
    for episode in range(20):
        env.reset(seed=episode)
        terminated = truncated = False
        while not (terminated or truncated):
            obs, reward, terminated, truncated, info = env.step(rng.integers(3))
            achieved.append(obs["achieved_goal"])
            desired.append(obs["desired_goal"])
            rewards.append(reward)
            ends.append(terminated)
            one = env.compute_reward(obs["achieved_goal"], obs["desired_goal"], info)
            assert one == reward
            assert one.shape == ()
            assert (
                env.compute_terminated(obs["achieved_goal"], obs["desired_goal"], info)
                == terminated
            )
    assert {0.0, -1.0} == set(rewards)
    count = len(rewards) // 2 * 2
    goals = [np.array(goal[:count]).reshape(2, -1, 3) for goal in (achieved, desired)]
    reward = env.compute_reward(*goals, {})
    assert reward.dtype == np.float32
    assert np.array_equal(reward, np.reshape(rewards[:count], (2, -1)))
    terminated = env.compute_terminated(*goals, {})
    assert terminated.dtype == bool
    assert np.array_equal(terminated, np.reshape(ends[:count], (2, -1)))
    # One goal for many achieved ones.
    assert env.compute_reward(goals[0], goals[1][0, 0], {}).shape == reward.shape


def test_vector_env_reports_success():
    envs = make_vector_env("BitFlip-v0", 4, env_kwargs={"bits": 2})
    envs.reset(seed=0)
    seen = set()
    for step in range(40):
        obs, _, terminated, _, infos = envs.step(np.full(4, step % 2))
        assert obs["observation"].shape == (4, 2)
        for b in np.flatnonzero(infos.get("_final_info", np.zeros(4, bool))):
            success = bool(infos["final_info"]["success"][b])
            assert success == terminated[b]
            seen.add(success)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"bits": 0}, "bits=0: expected"), ({"max_steps": 0}, "max_steps=0: expected")],
)
def test_wrong_arguments_are_explained(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make_env("BitFlip-v0", kwargs)


@pytest.mark.parametrize("action", [-1, 3])
def test_there_is_no_such_bit(action):
    env = BitFlipEnv(bits=3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: expected a bit from 0 to 2"):
        env.step(action)
