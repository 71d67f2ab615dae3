"""MinAtar: found by its id, seeds, its own arguments, and images an encoder can read."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders import ImpalaCNN, MinAtarCNN
from rl_lightning.envs import BinaryImage, make_env, make_vector_env
from rl_lightning.envs.make import _PROVIDERS

minatar = pytest.importorskip("minatar")

CHANNELS = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}


def play(env, seed, steps=300):
    """Observations, rewards and ends of random play with restarts."""
    actions = np.random.default_rng(0).integers(0, env.action_space.n, steps)
    trace = [env.reset(seed=seed)[0]]
    outcome = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        outcome.append((reward, terminated, truncated))
        trace.append(env.reset()[0] if terminated or truncated else obs)
    return np.array(trace), np.array(outcome)


@pytest.mark.parametrize("game", CHANNELS)
def test_episodes_run(game):
    channels = CHANNELS[game]
    envs = make_vector_env(f"MinAtar/{game}-v1", 2, wrappers=["BinaryImage"])
    assert envs.single_observation_space == gym.spaces.Box(0, 255, (10, 10, channels), np.uint8)
    obs, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    ended, seen = 0, set(np.unique(obs))
    for _ in range(2600):  # Freeway ends after 2500 frames
        obs, _, terminated, _, _ = envs.step(envs.action_space.sample())
        ended += terminated.sum()
        seen |= set(np.unique(obs))
        assert envs.observation_space.contains(obs)
    assert ended > 0
    assert seen == {0, 255}


def test_processes_of_their_own():
    envs = make_vector_env("MinAtar/Breakout-v1", 2, "async", wrappers=["BinaryImage"])
    try:
        assert envs.reset(seed=0)[0].shape == (2, 10, 10, 4)
        assert envs.step(np.array([0, 1]))[0].dtype == np.uint8
    finally:
        envs.close()


@pytest.mark.parametrize("game", CHANNELS)
def test_the_wrapper_only_scales_and_puts_a_cube_s_channels_first(game):
    plain, image = (
        make_env(f"MinAtar/{game}-v1"),
        make_env(f"MinAtar/{game}-v1", {}, ["BinaryImage"]),
    )
    states, outcome = play(plain, 3)
    images, same = play(image, 3)
    assert states.dtype == bool
    assert images.dtype == np.uint8
    if game == "Seaquest":
        images = images.transpose(0, 2, 3, 1)
    assert np.array_equal(images, 255 * states)
    assert np.array_equal(outcome, same)


@pytest.mark.parametrize("kind", [MinAtarCNN, ImpalaCNN])
@pytest.mark.parametrize("game", CHANNELS)
def test_encoders_see_each_kind_of_object_in_a_channel(kind, game):
    env = make_env(f"MinAtar/{game}-v1", {}, ["BinaryImage"])
    encoder = kind(EnvSpec(env.observation_space, env.action_space), features=9)
    images = play(env, 0, 20)[0]
    seen = []
    encoder.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert encoder(encoder.preprocess(images)).shape == (21, 9)
    states = play(make_env(f"MinAtar/{game}-v1"), 0, 20)[0]
    assert torch.equal(seen[0], torch.from_numpy(states).permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("game", CHANNELS)
def test_seeds_reproduce_episodes(game):
    first, second, other = (play(make_env(f"MinAtar/{game}-v1"), seed) for seed in (1, 1, 2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_arguments_reach_the_game():
    for ramping in (False, True):
        env = make_env("MinAtar/Asterix-v1", {"difficulty_ramping": ramping})
        assert env.unwrapped.game.env.ramping == ramping
    assert make_env("MinAtar/Breakout-v1").action_space.n == 3
    full = make_env("MinAtar/Breakout-v1", {"use_minimal_action_set": False})
    assert full.action_space.n == 6

    def paddle_moves(sticky):
        env = make_env("MinAtar/Breakout-v1", {"sticky_action_prob": sticky})
        env.reset(seed=0)
        places = [env.step(action)[0][9, :, 0].argmax() for action in [1, 2] * 2]
        return np.abs(np.diff(places))

    assert paddle_moves(0.0).tolist() == [1] * 3
    # An action that always repeats the one before is always the first, which does nothing.
    assert paddle_moves(1.0).tolist() == [0] * 3


def test_an_unknown_game_and_a_missing_package_are_explained(monkeypatch):
    with pytest.raises(ConfigurationError, match="unknown environment 'MinAtar/Pong-v1'"):
        make_env("MinAtar/Pong-v1")
    monkeypatch.setitem(_PROVIDERS, "MinAtar/", "minatar_is_not_here")
    with pytest.raises(ConfigurationError, match="pip install minatar_is_not_here"):
        make_env("MinAtar/Pong-v1")


class _Image(gym.Env):
    def __init__(self, space):
        self.observation_space = space
        self.action_space = gym.spaces.Discrete(2)


def test_integers_of_zero_and_one_are_read_too():
    env = BinaryImage(_Image(gym.spaces.Box(0, 1, (3, 4, 2), np.int64)))
    obs = env.observation(np.eye(3, 4, dtype=np.int64)[..., None].repeat(2, -1))
    assert env.observation_space == gym.spaces.Box(0, 255, (3, 4, 2), np.uint8)
    assert np.array_equal(obs[..., 1], 255 * np.eye(3, 4))
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Box(0, 255, (9, 9, 3), np.uint8), "a uint8 image needs no wrapper"),
        (gym.spaces.Box(0, 1, (9, 9, 3), np.float32), "needs a Box of bool"),
        (gym.spaces.Box(0, 1, (9, 9), bool), "needs a Box of bool"),
        (gym.spaces.Discrete(2), "needs a Box of bool"),
        (gym.spaces.Box(0, 1, (5, 5, 6), bool), r"as many channels as rows, not \(5, 5, 6\)"),
    ],
)
def test_other_spaces_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        BinaryImage(_Image(space))
