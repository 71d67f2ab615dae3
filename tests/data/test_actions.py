"""What environments get is in their action space; what is learned from is what the policy chose."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import exact_spaces
from training import fit, make_trainer

from rl_lightning import DDPG, DQN, IQL, PPO, SAC, TD3, ActorCritic, ReplayDataModule
from rl_lightning.callbacks import VideoRecorder
from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.spaces import action_writer
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import RolloutDataModule
from rl_lightning.exploration import uniform_action
from rl_lightning.nn.heads import GaussianHead
from rl_lightning.policies import ContinuousNetwork, OfflineNetwork

SPACES = exact_spaces()
FINITE = [k for k, s in SPACES.items() if isinstance(s, gym.spaces.Box) and s.is_bounded()]
BIG = float(np.finfo(np.float32).max)
wild = partial(PPO, network=partial(ActorCritic, log_std_init=2.0))
squashed = partial(PPO, network=partial(ActorCritic, squash=True, log_std_init=3.0))


def rollouts(action, vectorization="sync", **kwargs):
    sizes = {"num_envs": 2, "rollout_steps": 16, "total_frames": 64, "val_episodes": 2}
    env = {"env_kwargs": {"action": action}, "vectorization": vectorization}
    return RolloutDataModule("probes:Exact-v0", **{**sizes, **env, **kwargs})


def replay(action, vectorization="sync", **kwargs):
    sizes = {"num_envs": 2, "total_frames": 60, "warmup_frames": 30, "frames_per_epoch": 10}
    sizes |= {"buffer_frames": 200, "batch_size": 8, "collect_frames": 2, "val_episodes": 2}
    env = {"env_kwargs": {"action": action}, "vectorization": vectorization}
    return ReplayDataModule("Exact-v0", **{**sizes, **env, **kwargs})


# --- actions that environments accept -----------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "vectorization"),
    [
        *((action, "sync") for action in SPACES),
        *((action, "native") for action in ("float64 0.1", "int32", "binary")),
    ],
)
def test_training_evaluation_and_prediction_keep_to_the_action_space(action, vectorization):
    data = rollouts(action, vectorization, val_explore=True)
    agent = fit(
        wild(data.spec) if action in FINITE else PPO(data.spec), data, limit_val_batches=1.0
    )
    make_trainer().predict(agent, data)


@pytest.mark.distributed
@pytest.mark.parametrize("action", ["float64 0.1", "int32", "binary"])
def test_processes_get_them_too(action):
    data = rollouts(action, "async", total_frames=32)
    fit(PPO(data.spec), data, limit_val_batches=1.0)


@pytest.mark.parametrize(
    ("agent", "action"),
    [*((SAC, action) for action in FINITE), *((a, "float64 0.1") for a in (TD3, DDPG, IQL))],
)
def test_warm_up_and_exploration_noise_keep_to_the_action_space(agent, action):
    data = replay(action)
    fit(agent(data.spec), data, limit_val_batches=1.0, gradient_clip_val=None)


@pytest.mark.parametrize("action", ["float64 0.3", "float32 1.1"])
def test_squashed_actions_keep_to_the_action_space(action):
    data = rollouts(action)
    fit(squashed(data.spec), data, limit_val_batches=1.0)


@pytest.mark.parametrize("action", ["int64", "int32", "uint8"])
def test_greedy_and_random_numbers_of_actions_keep_to_the_action_space(action):
    data = replay(action)
    fit(DQN(data.spec), data, limit_val_batches=1.0, gradient_clip_val=None)


@pytest.mark.parametrize("action", ["float16", "int32"])
def test_videos_play_what_the_environment_accepts(action):
    data = rollouts(action)
    data.trainer = make_trainer()
    agent = PPO(data.spec)
    data.trainer.strategy._lightning_module = agent
    assert len(VideoRecorder(max_steps=5)._play(data)) == 3  # of three steps, the last restarts


# --- and nothing else changes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1, 1, (4,), np.float32),
        gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        gym.spaces.Box(0, np.inf, (4,), np.float32),
    ],
    ids=shortened,
)
def test_actions_within_bounds_stay_as_they_are(space):
    action = torch.rand(64, 4)
    assert np.array_equal(action_writer(space)(action), action.numpy())


def test_bounds_are_met_to_the_last_bit():
    space = gym.spaces.Box(np.array([-0.1, -np.inf]), np.array([np.inf, 0.3]), dtype=np.float64)
    given = torch.tensor([[-0.1, 0.3], [-9.0, 9.0], [5.0, -5.0]])
    written = action_writer(space)(given)
    assert written.dtype == np.float64
    assert written.tolist() == [[-0.1, 0.3], [-0.1, 0.3], [5.0, -5.0]]
    assert given[1].tolist() == [-9.0, 9.0]


@pytest.mark.parametrize("action", ["float64 0.1", "float16 unbounded", "multi int32", "binary"])
def test_what_is_stored_is_what_the_policy_chose(action):
    """`Exact` zeroes what it is given: neither replay nor a recording may notice."""
    given = torch.ones(2, *SPACES[action].shape)
    written = action_writer(SPACES[action])(given)
    written[...] = 0
    assert (given == 1).all()


def test_recordings_hold_what_the_environment_was_given(tmp_path):
    data = rollouts("multi int32", record=str(tmp_path / "out.hdf5"), val_explore=True)
    episodes = []
    data.trainer = make_trainer()
    agent = PPO(data.spec)
    data.trainer.strategy._lightning_module = agent
    loader = data.predict_dataloader()
    assert loader.recorder is not None
    loader.recorder.add = episodes.append
    played = list(loader)
    assert {e["length"] for e in played} == {3}
    chosen = np.concatenate([e.actions for e in episodes])
    assert chosen.dtype == np.int32
    assert chosen.any()  # zero only where the policy chose it
    data.teardown("predict")


# --- bounds without a range ---------------------------------------------------------------------

CONSTANT = gym.spaces.Box(np.array([-1, 0.5, -2]), np.array([1, 0.5, 4]), dtype=np.float64)
POINT = gym.spaces.Box(0.5, 0.5, (1,), np.float32)


def spec(space):
    return EnvSpec(gym.spaces.Box(-1, 1, (2,), np.float32), space)


@pytest.mark.parametrize("agent", [SAC, TD3, DDPG])
def test_an_entry_with_a_single_value_is_no_part_of_the_choice(agent):
    policy = agent(spec(CONSTANT)).policy
    free = agent(spec(gym.spaces.Box(np.array([-1, -2.0]), np.array([1, 4.0])))).policy
    assert policy.size == 2
    assert [p.shape for p in policy.parameters()] == [p.shape for p in free.parameters()]
    inside = torch.tensor([[-1.0, 1.0], [0.5, 0.0]])
    outside = policy.to_env(inside)
    assert outside.tolist() == [[-1.0, 0.5, 4.0], [0.5, 0.5, 1.0]]
    assert torch.equal(policy.from_env(outside), inside)


def test_a_squashed_entry_with_a_single_value_is_that_value():
    head = GaussianHead(CONSTANT, 4, squash=True)
    distribution = head(torch.randn(8, 4))
    latent = distribution.sample()
    action = head.to_action(latent)
    assert (action[:, 1] == 0.5).all()
    assert distribution.log_prob(latent).isfinite().all()
    assert torch.allclose(head.to_latent(action)[:, [0, 2]], latent[:, [0, 2]], atol=1e-3)
    assert head.to_latent(action).isfinite().all()


@pytest.mark.parametrize("space", [CONSTANT, POINT, gym.spaces.Box(-BIG, BIG, (2,), np.float32)])
def test_offline_critics_read_any_bounds(space):
    network = OfflineNetwork(spec(space), lambda s: PPO(s).encoder)
    action = torch.from_numpy(np.stack([space.low, space.high])).float()
    assert network.read_action(action).isfinite().all()


@pytest.mark.parametrize(
    ("make", "space", "words"),
    [
        (ContinuousNetwork, POINT, "leaves nothing to choose"),
        (ContinuousNetwork, gym.spaces.Box(-BIG, BIG, (1,), np.float32), "float32 can hold"),
        (ContinuousNetwork, gym.spaces.Box(-1e300, 1e300, (1,), np.float64), "float32 can hold"),
        (ContinuousNetwork, gym.spaces.Box(0, np.inf, (1,), np.float32), "finite bounds"),
    ],
)
def test_bounds_to_scale_to_must_have_a_finite_range(make, space, words):
    with pytest.raises(ConfigurationError, match=words):
        make(spec(space), lambda s: PPO(s).encoder)


@pytest.mark.parametrize("bound", [BIG, np.inf])
def test_squashing_and_uniform_actions_need_a_finite_range(bound):
    space = gym.spaces.Box(-bound, bound, (2,), np.float32)
    with pytest.raises(ConfigurationError, match=r"finite bounds.*squash: false"):
        GaussianHead(space, 4, squash=True)
    with pytest.raises(ConfigurationError, match=r"finite bounds.*warmup_frames: 0"):
        uniform_action(space, 2, None, torch.device("cpu"))


def test_messages_about_many_bounds_are_shortened():
    space = gym.spaces.Box(np.zeros(99), np.r_[np.ones(98), np.inf])
    with pytest.raises(ConfigurationError) as caught:
        ContinuousNetwork(spec(space), lambda s: PPO(s).encoder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
