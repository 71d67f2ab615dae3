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
from gymnasium.vector import SyncVectorEnv
from lightning.pytorch.callbacks import ModelCheckpoint
from training import make_trainer

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic, LLMEncoder, MLPEncoder, QTable
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.data.resume.remembered import read
from rl_lightning.data.resume.sidecar import find_sidecar

DATA = {"num_envs": 4, "rollout_steps": 32, "val_episodes": 4, "seed": 3}
BATCHES = {"minibatch_size": 64, "passes": 2}


def same(a, b, path=""):
    """Assert that two nests of plain data and tensors are equal to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "envs":  # Gymnasium seeds the spaces' own, unused generators by chance
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
        gradient_clip_val=0.5 if agent.automatic_optimization else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*cannot be restored")
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
    "table-frozenlake": (partial(QTable, method="double_q"), {"env": "FrozenLake-v1"}),
    "table-textmaze": (
        partial(QTable, method="sarsa", alpha_decay=0.5, alpha_schedule="linear"),
        {"env": "TextMaze-v0"},
    ),
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


def remembered(path):
    """What stands beside a checkpoint."""
    name = torch.load(path, weights_only=True)["RolloutDataModule"]["texts"]
    (found,) = read(find_sidecar(path, name, 0, "texts"))
    return found


@pytest.mark.pretrained
def test_resumed_textmaze_with_minilm_equals_uninterrupted(tmp_path):
    make_agent = partial(PPO, encoder=partial(LLMEncoder, layers=1, max_length=48))
    data = {"env": "TextMaze-v0", **BATCHES}
    whole = train(make_agent, data, tmp_path / "whole", epochs=4)
    train(make_agent, data, tmp_path / "half", epochs=2)
    halves = train(make_agent, data, tmp_path / "rest", 4, tmp_path / "half" / "last.ckpt")
    same(whole["state_dict"], halves["state_dict"])
    same(whole["RolloutDataModule"]["ranks"], halves["RolloutDataModule"]["ranks"])
    found = [remembered(tmp_path / name / "last.ckpt") for name in ("whole", "rest")]
    assert found[0].keys == found[1].keys
    assert torch.equal(found[0].rows, found[1].rows)


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


def test_another_number_of_environments_keeps_what_does_not_depend_on_it(tmp_path):
    data = {"env": "Pendulum-v1", **BATCHES, "normalize_reward": True}
    saved = train(PPO, data, tmp_path, epochs=1)["RolloutDataModule"]["ranks"][0]["reward_norm"]
    resumed = train(PPO, {**data, "num_envs": 2}, tmp_path / "rest", 2, tmp_path / "last.ckpt")
    now = resumed["RolloutDataModule"]["ranks"][0]["reward_norm"]
    assert saved["moments"][0] == 128
    assert now["moments"][0] == 128 + 64
    assert now["carry"].shape == (2,)


def test_what_is_saved_after_training_goes_on_like_what_is_saved_in_it(tmp_path):
    torch.manual_seed(1)
    make = partial(RolloutDataModule, "CartPole-v1", **DATA, **BATCHES, normalize_reward=True)
    data = make(total_frames=256)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, "last")])
    trainer.fit(PPO(data.spec), data)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    ends = []
    for name in ("last", "after"):
        data = make(total_frames=512)
        resumed = make_trainer()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*callbacks used to create")
            resumed.fit(PPO(data.spec), data, ckpt_path=tmp_path / f"{name}.ckpt")
        resumed.save_checkpoint(tmp_path / "end.ckpt")
        ends.append(torch.load(tmp_path / "end.ckpt", weights_only=True))
    for key in ("state_dict", "optimizer_states", "frames"):
        same(ends[0][key], ends[1][key], key)
    same(ends[0]["RolloutDataModule"], ends[1]["RolloutDataModule"])


def test_a_second_fit_goes_on_where_the_first_one_stopped():
    torch.manual_seed(1)
    make = partial(RolloutDataModule, "CartPole-v1", **DATA, **BATCHES)
    whole = make(total_frames=512)
    agent = PPO(whole.spec)
    make_trainer().fit(agent, whole)
    torch.manual_seed(1)
    halves = make(total_frames=256)
    twin = PPO(halves.spec)
    make_trainer().fit(twin, halves)
    torch.rand(3)  # what happens in between does not matter
    seen = halves.frames
    halves.total_frames = 512
    make_trainer().fit(twin, halves)
    assert (seen, halves.frames) == (256, 512)


def test_another_agent_does_not_begin_where_the_last_one_stopped():
    data = RolloutDataModule("CartPole-v1", **DATA, **BATCHES, total_frames=256)
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        agent = PPO(data.spec)
        make_trainer().fit(agent, data)
        assert agent.frames == data.frames == 256
        ends.append(agent.state_dict())
    same(dict(ends[0]), dict(ends[1]))
    with pytest.warns(UserWarning, match="nothing to train: data.total_frames=256 are used up"):
        make_trainer().fit(agent, data)


def test_a_checkpoint_that_does_not_say_where_collecting_stood(tmp_path):
    path = tmp_path / "last.ckpt"
    train(PPO, {"env": "CartPole-v1", **BATCHES}, tmp_path, epochs=1)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["RolloutDataModule"]["ranks"] = [None]
    torch.save(checkpoint, path)
    module = RolloutDataModule("CartPole-v1", num_envs=4, rollout_steps=32, total_frames=10**6)
    with pytest.warns(UserWarning, match="does not say where collecting stood"):
        make_trainer(max_epochs=2).fit(PPO(module.spec), module, ckpt_path=path)


@pytest.mark.parametrize("encoder_lr", [None, 0.5])
def test_a_resumed_run_has_the_learning_rate_of_its_configuration(encoder_lr, tmp_path):
    encoder = partial(MLPEncoder, hidden=(8,))
    data = {"env": "CartPole-v1", **BATCHES}

    def make(lr, encoder_lr):
        optimizer = partial(torch.optim.SGD, lr=lr)
        return partial(PPO, encoder=encoder, optimizer=optimizer, encoder_lr=encoder_lr)

    train(make(0.25, encoder_lr and 0.75), data, tmp_path, epochs=1)
    end = train(make(0.125, encoder_lr), data, tmp_path / "rest", 2, tmp_path / "last.ckpt")
    rates = [group["lr"] for group in end["optimizer_states"][0]["param_groups"]]
    assert rates == ([0.125] if encoder_lr is None else [0.125, 0.5])


def test_environments_that_would_pickle_their_arguments_only_are_copied_whole():
    class Counting(gym.utils.EzPickle, gym.Env):
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

    assert Snapshots(gym.wrappers.TimeLimit(Counting(), 50)).supported
    first, second = (SyncVectorEnv([Counting]) for _ in range(2))
    copies = Snapshots(Counting())
    for env, steps in ((first, 5), (second, 2)):
        env.reset()
        for _ in range(steps):
            env.step([0])
    copies.put(second, copies.take(first))
    assert second.step([0])[0] == first.step([0])[0] == 6


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


def stop_by(number, folder, whole_group=False, **options):
    """Start a run, signal it once its first epoch is over; returns what it left and printed."""
    process = subprocess.Popen(
        command(folder, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "last.ckpt").exists():  # the first epoch is over, collecting goes on
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if whole_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert "--ckpt_path last goes on" in output
    return torch.load(folder / "last.ckpt", weights_only=True), output


SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_environments_in_processes_outlive_a_signal_to_all_of_them(number, tmp_path):
    """As Ctrl-C in a terminal, or a scheduler, sends it."""
    options = {"data.vectorization": "async", "data.num_envs": "2", "data.rollout_steps": "128"}
    stopped, output = stop_by(number, tmp_path, whole_group=True, **options)
    assert stopped["frames"] % (8 * 256) == 0
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoint of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(folder), capture_output=True, check=True)
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_a_resumable_checkpoint(number, tmp_path, whole):
    stopped, _ = stop_by(number, tmp_path)
    assert 0 < stopped["frames"] < 40960
    assert stopped["frames"] % (8 * 256) == 0

    resumed = subprocess.run(
        command(tmp_path, ckpt_path="last"), capture_output=True, text=True, check=True
    )
    assert "trained 40,960 of 40,960 frames" in resumed.stdout
    again = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert again["frames"] == whole["frames"] == 40960
    same(again["state_dict"], whole["state_dict"])
