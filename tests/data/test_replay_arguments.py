"""Every argument of the off-policy data module does something, and wrong ones are refused."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from training import fit, make_trainer

from rl_lightning import (
    BC,
    DQN,
    PPO,
    SAC,
    MLPEncoder,
    QNetwork,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import RLDataModule
from rl_lightning.encoders import MinAtarCNN

SMALL = {
    "env": "Counter-v0",
    "num_envs": 2,
    "buffer_frames": 100,
    "batch_size": 4,
    "warmup_frames": 8,
    "frames_per_epoch": 8,
    "total_frames": 16,
}
TINY = partial(QNetwork, hidden=(4,))


def train(agent=DQN, ask=lambda module: module, **data):
    """What `ask` says of the data module while it is still running."""
    module = ReplayDataModule(**{**SMALL, **data})
    answers = []
    teardown = module.teardown

    def asking(stage):
        answers.append(ask(module))
        teardown(stage)

    module.teardown = asking
    fit(agent(module.spec, network=TINY), module, gradient_clip_val=None)
    return answers[0]


# --- arguments of the buffer ------------------------------------------------------------------


def test_buffer_frames():
    assert train(buffer_frames=50).buffer.size == 50 + 2
    assert train(buffer_frames=6, warmup_frames=6).buffer.size == 6 + 2


def test_buffer_frames_are_all_there_are():
    module = train(buffer_frames=20, total_frames=100, env_kwargs={"length": 10**6})
    assert len(module.buffer) == 20


def test_prioritized():
    assert train().buffer.priorities is None
    assert train(prioritized=True).buffer.priorities.tree.total > 0


def test_obs_dtype():
    for name, dtype in [("float32", np.float32), ("float16", np.float16)]:
        assert train(obs_dtype=name).buffer.columns["obs"].array.dtype == dtype


def test_storage(tmp_path):
    assert train().buffer.arena.folder is None
    buffer = train(storage="disk", storage_dir=str(tmp_path / "deep" / "er")).buffer
    assert buffer.arena.folder == tmp_path / "deep" / "er"
    assert isinstance(buffer.columns["obs"].array, np.memmap)
    assert len(buffer) == 16
    assert train(storage="disk").buffer.arena.folder.is_dir()


def test_disk_learns_what_memory_learns():
    ends = []
    for storage in ("memory", "disk"):
        torch.manual_seed(0)
        module = ReplayDataModule(**SMALL, storage=storage, seed=1)
        agent = fit(DQN(module.spec, network=TINY), module, gradient_clip_val=None)
        ends.append(torch.cat([p.view(-1) for p in agent.parameters()]))
    assert torch.equal(*ends)


STACKED = {
    "env": "Probe-v0",
    "env_kwargs": {"task": "truncated", "observation": "small_image"},
    "wrappers": [{"FrameStackObservation": {"stack_size": 3}}],
}


def test_frame_stack():
    agent = partial(DQN, encoder=MinAtarCNN)
    whole, stacked = (train(agent, **STACKED, frame_stack=s) for s in (1, 3))
    assert whole.buffer.columns["obs"].array.shape[1:] == (9, 8, 8)
    assert stacked.buffer.columns["obs"].array.shape[1:] == (3, 8, 8)
    assert stacked.buffer.read(stacked.buffer.draw(2), 0.9)["obs"].shape == (2, 9, 8, 8)
    with pytest.raises(ConfigurationError, match=r"frame_stack: 2 does not divide"):
        train(agent, **STACKED, frame_stack=2)


# --- arguments of all data modules ------------------------------------------------------------


def test_what_all_data_modules_share_is_handed_on():
    shared = {
        "env": "BitFlip-v0",
        "num_envs": 3,
        "total_frames": 5000,
        "env_kwargs": {"bits": 4},
        "wrappers": ["FlattenObservation"],
        "vectorization": "async",
        "seed": 11,
        "success_threshold": 0.25,
        "val_episodes": 6,
        "val_num_envs": 2,
        "val_env_kwargs": {"max_steps": 9},
        "val_seed": 77,
        "val_explore": True,
        "val_transcript_steps": 3,
        "record": "file.hdf5",
    }
    module = ReplayDataModule(**shared, frames_per_epoch=3000)
    base = RLDataModule(**shared)
    for name, value in shared.items():
        assert getattr(module, name) == getattr(base, name) == value


@pytest.mark.parametrize("seed", [1, 2])
def test_seed(seed):
    first = []
    for _ in range(2):
        torch.manual_seed(len(first))
        module = train(env="CartPole-v1", seed=seed, ask=lambda m: m)
        first.append(module.buffer.columns["obs"].array[:2].copy())
    assert np.array_equal(*first)
    obs, _ = gym.make("CartPole-v1").reset(seed=seed)
    assert np.array_equal(first[0][0], obs)


def test_success_threshold():
    def success(module):
        return module.episode_metrics()["train/success"]

    kwargs = {"env": "Probe-v0", "env_kwargs": {"task": "constant"}}  # every return is 1
    assert train(ask=success, success_threshold=1.0, **kwargs) == 1
    assert train(ask=success, success_threshold=1.5, **kwargs) == 0


# --- what is refused --------------------------------------------------------------------------

WRONG = {
    "buffer_frames": (0, "buffer_frames must be at least 1"),
    "batch_size": (0, "batch_size must be at least 1"),
    "collect_frames": (0, "collect_frames must be at least 1"),
    "gradient_steps": (0, "gradient_steps must be at least 1"),
    "frames_per_epoch": (0, "frames_per_epoch must be at least 1"),
    "n_step": (0, "n_step must be at least 1"),
    "frame_stack": (0, "frame_stack must be at least 1"),
    "num_envs": (0, "num_envs must be at least 1"),
    "total_frames": (0, "total_frames must be at least 1"),
    "val_episodes": (0, "val_episodes must be at least 1"),
    "val_num_envs": (0, "val_num_envs must be at least 1"),
    "warmup_frames": (-1, "warmup_frames must be at least 0"),
    "priority_alpha": (-0.1, "priority_alpha must be at least 0"),
    "priority_beta": (1.5, "priority_beta must be between 0 and 1"),
    "priority_eps": (-1.0, "priority_eps must be at least 0"),
    "her_goals": (-1, "her_goals must be at least 0"),
    "obs_dtype": ("int8", "obs_dtype must be one of float32, float16, not 'int8'"),
    "storage": ("tape", "storage must be memory or disk, not 'tape'"),
    "storage_dir": ("/tmp", "storage_dir: /tmp means nothing with data.storage: memory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_at_once(name):
    value, message = WRONG[name]
    with pytest.raises(ConfigurationError, match=f"data.{message}"):
        ReplayDataModule(**{**SMALL, name: value})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"collect_frames": 3}, "collect_frames: 3 is no multiple of data.num_envs: 2; .* 4"),
        ({"frames_per_epoch": 9}, "frames_per_epoch: 9 is no multiple of data.collect_frames: 2"),
        ({"her_goals": 4, "n_step": 2}, "n_step: 2 cannot be relabelled"),
        ({"warmup_frames": 16}, "warmup_frames: 16 leave nothing of data.total_frames: 16"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_at_once(data, message):
    with pytest.raises(ConfigurationError, match=f"data.{message}"):
        ReplayDataModule(**{**SMALL, **data})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"buffer_frames": 3, "batch_size": 1, "warmup_frames": 0},
            "buffer_frames: 3 hold no transition; make it at least .* = 4",
        ),
        ({"her_goals": 4}, "her_goals: 4 needs an environment with achieved_goal"),
        ({"her_goals": 4, "vectorization": "native"}, "her_goals: 4 needs an environment with"),
    ],
)
def test_what_does_not_fit_the_environment_is_refused_before_training(data, message):
    with pytest.raises(ConfigurationError, match=f"data.{message}"):
        train(**data)


def test_an_agent_that_does_not_say_how_wrong_it_was_is_refused(monkeypatch):
    monkeypatch.setattr(DQN, "tells_priorities", False)
    with pytest.raises(ConfigurationError, match="DQN does not say how wrong it was on each row"):
        train(prioritized=True)


def test_uniform_actions_of_an_unbounded_box_are_refused():
    class Free(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Box(-np.inf, np.inf, (1,))

    from rl_lightning.exploration import uniform_action

    with pytest.raises(ConfigurationError, match=r"finite bounds, .*set data.warmup_frames: 0"):
        uniform_action(Free.action_space, 2, None, torch.device("cpu"))


def test_agents_are_refused_by_the_data_module_of_the_others():
    module = ReplayDataModule(**SMALL)
    with pytest.raises(ConfigurationError, match=r"PPO does not learn from replay: .*Rollout"):
        make_trainer().fit(PPO(module.spec), module)
    rollouts = RolloutDataModule("Pendulum-v1", num_envs=2, rollout_steps=4)
    with pytest.raises(ConfigurationError, match=r"SAC .*ReplayDataModule"):
        make_trainer(gradient_clip_val=None).fit(SAC(rollouts.spec, encoder=MLPEncoder), rollouts)
    # Imitating itself would teach it nothing.
    with pytest.raises(ConfigurationError, match=r"BC does not learn from replay: .*Offline"):
        make_trainer(gradient_clip_val=None).fit(BC(module.spec), module)
    with pytest.raises(ConfigurationError, match=r"BC does not learn from rollouts: .*Offline"):
        make_trainer(gradient_clip_val=None).fit(BC(rollouts.spec), rollouts)
