"""Stopping and going on equals never having stopped, bit for bit."""

import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training import make_trainer

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic, LLMEncoder, MLPEncoder
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.snapshot import Snapshots, _Unpickler
from rl_lightning.envs import make_env

DATA = {"num_envs": 4, "rollout_steps": 32, "val_episodes": 4, "seed": 3}
BATCHES = {"minibatch_size": 64, "passes": 2}


def same(a, b, path=""):
    """Assert that two nests of plain data and tensors are equal to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "envs":  # equal objects may pickle to different bytes
                same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b or (a != a and b != b), path


def train(make_agent, data_kwargs, folder, epochs, ckpt_path=None):
    """Train for `epochs` more epochs of a fixed budget; returns the last checkpoint, loaded."""
    torch.manual_seed(1)
    data = RolloutDataModule(total_frames=10**6, **{**DATA, **data_kwargs})
    agent = make_agent(data.spec)
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = make_trainer(
        max_epochs=epochs,
        callbacks=[saver],
        enable_checkpointing=True,
        limit_val_batches=1.0,
        check_val_every_n_epoch=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(agent, data, ckpt_path=ckpt_path)
    return torch.load(Path(folder) / "last.ckpt", weights_only=True)


CASES = {
    "ppo-cartpole": (PPO, {"env": "CartPole-v1", **BATCHES, "normalize_reward": True}),
    "ppo-normalised": (
        partial(PPO, encoder=partial(MLPEncoder, normalize=True), lr_schedule="linear"),
        {"env": "Pendulum-v1", **BATCHES},
    ),
    "ppo-recurrent": (
        partial(PPO, network=partial(ActorCritic, recurrent="lstm"), sequence_length=8),
        {"env": "CartPole-v1", **BATCHES},
    ),
    "ppo-native": (PPO, {"env": "CartPole-v1", **BATCHES, "vectorization": "native"}),
    "a2c-acrobot": (A2C, {"env": "Acrobot-v1"}),
    "reinforce-mountaincar": (REINFORCE, {"env": "MountainCar-v0"}),
    "reinforce-plain": (partial(REINFORCE, baseline=False), {"env": "CartPole-v1"}),
    "ppo-frozenlake": (PPO, {"env": "FrozenLake-v1", **BATCHES}),
    "ppo-minigrid": (
        PPO,
        {
            "env": "MiniGrid-Empty-Random-5x5-v0",
            "wrappers": ["minigrid.wrappers.ImgObsWrapper"],
            **BATCHES,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, tmp_path):
    make_agent, data = CASES[case]
    whole = train(make_agent, data, tmp_path / "whole", epochs=4)
    train(make_agent, data, tmp_path / "half", epochs=2)
    halves = train(make_agent, data, tmp_path / "rest", 4, tmp_path / "half" / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "frames", "epoch", "global_step"):
        same(whole[key], halves[key], key)
    same(whole["RolloutDataModule"], halves["RolloutDataModule"])


@pytest.mark.pretrained
def test_resumed_textmaze_with_minilm_equals_uninterrupted(tmp_path):
    make_agent = partial(PPO, encoder=partial(LLMEncoder, layers=1, max_length=48))
    data = {"env": "TextMaze-v0", **BATCHES}
    whole = train(make_agent, data, tmp_path / "whole", epochs=4)
    train(make_agent, data, tmp_path / "half", epochs=2)
    halves = train(make_agent, data, tmp_path / "rest", 4, tmp_path / "half" / "last.ckpt")
    same(whole["state_dict"], halves["state_dict"])
    same(whole["RolloutDataModule"], halves["RolloutDataModule"])


def test_async_environments_resume_too(tmp_path):
    data = {"env": "CartPole-v1", **BATCHES, "num_envs": 2, "vectorization": "async"}
    whole = train(PPO, data, tmp_path / "whole", epochs=2)
    train(PPO, data, tmp_path / "half", epochs=1)
    halves = train(PPO, data, tmp_path / "rest", 2, tmp_path / "half" / "last.ckpt")
    same(whole["state_dict"], halves["state_dict"])


def test_the_rng_matters(tmp_path):
    """The comparison can fail: with other random numbers after resuming, the weights differ."""
    data = {"env": "CartPole-v1", **BATCHES}
    whole = train(PPO, data, tmp_path / "whole", epochs=2)
    train(PPO, data, tmp_path / "half", epochs=1)
    path = tmp_path / "half" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["RolloutDataModule"]["ranks"][0]["rng"]["torch"] = (
        torch.Generator().manual_seed(9).get_state()
    )
    torch.save(checkpoint, path)
    halves = train(PPO, data, tmp_path / "rest", 2, path)
    with pytest.raises(AssertionError):
        same(whole["state_dict"], halves["state_dict"])


def test_other_number_of_environments_goes_on_with_fresh_episodes(tmp_path):
    data = {"env": "CartPole-v1", **BATCHES}
    train(PPO, data, tmp_path, epochs=1)
    path = tmp_path / "last.ckpt"
    module = RolloutDataModule("CartPole-v1", num_envs=2, rollout_steps=32, total_frames=10**6)
    with pytest.warns(UserWarning, match="1 ranks of 4 environments.*fresh episodes"):
        make_trainer(max_epochs=2).fit(PPO(module.spec), module, ckpt_path=path)
    assert module.frames == 128 + 64


def test_environments_that_only_pickle_their_arguments_are_found_out():
    class Fraud(gym.utils.EzPickle, gym.Env):
        observation_space = gym.spaces.Discrete(100)
        action_space = gym.spaces.Discrete(2)

        def __init__(self):
            gym.utils.EzPickle.__init__(self)
            self.count = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.count, {}

        def step(self, action):
            self.count += 1
            return self.count, 0.0, False, False, {}

    assert not Snapshots(gym.wrappers.TimeLimit(Fraud(), 50)).supported
    assert Snapshots(gym.make("CartPole-v1")).supported


def test_snapshots_let_in_nothing_foreign():
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.system, ("true",))

    env = gym.make("CartPole-v1")
    snapshots = Snapshots(env)
    with pytest.raises(pickle.UnpicklingError, match="does not belong"):
        snapshots._load(pickle.dumps({"state": Evil()}))
    # What the environment's own modules have imported is no way in either.
    unpickler = _Unpickler(b"", snapshots.packages)
    for module, name in [("gymnasium.core", "deepcopy"), ("gymnasium.core", "np.save")]:
        with pytest.raises(pickle.UnpicklingError, match="does not belong"):
            unpickler.find_class(module, name)


@pytest.mark.parametrize(
    "env", ["MiniGrid-DoorKey-5x5-v0", "TextMaze-v0", "Taxi-v4", "Acrobot-v1", "Blackjack-v1"]
)
def test_these_environments_can_be_copied(env):
    assert Snapshots(make_env(env)).supported


COMMAND = [sys.executable, "-m", "rl_lightning", "fit", "--config", "tests/cartpole.yaml"]
SHORT = {
    "data.total_frames": "40960",
    "data.rollouts_per_epoch": "8",
    "data.passes": "4",
    "data.val_episodes": "4",
    "trainer.logger": "false",
}


def command(folder, **options):
    arguments = {**SHORT, "checkpoint.dirpath": str(folder), **options}
    return [*COMMAND, *(f"--{key}={value}" for key, value in arguments.items())]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_resumable_checkpoint(number, tmp_path):
    process = subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "last.ckpt").exists():  # the first epoch is over, collecting goes on
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert "--ckpt_path last goes on" in output
    stopped = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert 0 < stopped["frames"] < 40960
    assert stopped["frames"] % (8 * 256) == 0

    resumed = subprocess.run(
        command(tmp_path, ckpt_path="last"), capture_output=True, text=True, check=True
    )
    assert "trained 40,960 of 40,960 frames" in resumed.stdout
    whole = tmp_path / "whole"
    subprocess.run(command(whole), capture_output=True, check=True)
    a, b = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (tmp_path, whole))
    assert a["frames"] == b["frames"] == 40960
    same(a["state_dict"], b["state_dict"])
