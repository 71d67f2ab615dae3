"""Making environments: lean stepping changes nothing, mistakes are explained."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.errors import ConfigurationError


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) or (isinstance(a, np.ndarray) and a.dtype == object):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return np.array_equal(a, b)


@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("Taxi-v4", {}),
        ("TextMaze-v0", {"max_steps": 9}),
        ("Blackjack-v1", {}),
        ("Probe-v0", {"task": "policy", "observation": "dict", "action": "multi_discrete"}),
        ("Probe-v0", {"task": "policy", "observation": "tuple", "action": "multi_binary"}),
        ("Counter-v0", {"truncate": True}),
    ],
)
def test_lean_vector_env_equals_gymnasium_s(env, kwargs):
    lean = make_vector_env(env, 3, "sync", kwargs)
    plain = SyncVectorEnv(
        [lambda: gym.make(env, **kwargs)] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert equal(lean.reset(seed=5), plain.reset(seed=5))
    lean.action_space.seed(0)
    for _ in range(60):
        action = lean.action_space.sample()
        for ours, theirs in zip(lean.step(action), plain.step(action), strict=True):
            assert equal(ours, theirs)


def test_wrappers_by_name():
    env = make_env(
        "CartPole-v1",
        wrappers=[
            {"SelectObservation": {"indices": [0, 2]}},
            {"gymnasium.wrappers.FrameStackObservation": {"stack_size": 3}},
            {"TimeLimit": {"max_episode_steps": 2}},
        ],
    )
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 2)
    env.step(0)
    assert env.step(0)[3]


def test_atari_preprocessing():
    pytest.importorskip("ale_py")
    env = make_env(
        "ALE/Pong-v5",
        {"frameskip": 1},
        [{"AtariPreprocessing": {"frame_skip": 4}}, {"FrameStackObservation": {"stack_size": 4}}],
    )
    assert env.reset(seed=0)[0].shape == (4, 84, 84)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": "CartPoll-v1"}, "unknown environment 'CartPoll-v1'.*CartPole"),
        ({"env": "no_such_module:Foo-v0"}, "No module named 'no_such_module'"),
        ({"env_kwargs": {"gravity": 1}}, "CartPole-v1.*gravity"),
        ({"wrappers": ["NoSuchWrapper"]}, "unknown wrapper 'NoSuchWrapper'.*dotted path"),
        ({"wrappers": ["os.NoSuchWrapper"]}, "'os.NoSuchWrapper' cannot be imported"),
        ({"wrappers": [{"TimeLimit": {"steps": 3}}]}, "wrapper TimeLimit.*max_episode_steps"),
        ({"wrappers": [{"SelectObservation": {"indices": [9]}}]}, "between 0 and 3.*\\[9\\]"),
        ({"wrappers": [{"a": {}, "b": {}}]}, "must be a name or a mapping from one name"),
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"vectorization": "threads"}, "sync, async or native, not 'threads'"),
        ({"vectorization": "native", "wrappers": ["ClipReward"]}, "leave out wrappers"),
        ({"env": "Taxi-v4", "vectorization": "native"}, "no vectorised implementation"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_vector_env(**{"env": "CartPole-v1", "num_envs": 1, **arguments})


def test_async_reports_a_wrong_configuration_from_here():
    with pytest.raises(ConfigurationError, match="gravity"):
        make_vector_env("CartPole-v1", 2, "async", {"gravity": 1})
