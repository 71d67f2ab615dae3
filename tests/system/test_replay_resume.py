"""Stopping and going on from replay equals never having stopped, bit for bit."""

import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from test_resume import same
from training import make_trainer

from rl_lightning import DQN, SAC, DictEncoder, LLMEncoder, MLPEncoder, QNetwork, ReplayDataModule
from rl_lightning.data.resume.remembered import read
from rl_lightning.data.resume.sidecar import find_sidecar
from rl_lightning.encoders import MinAtarCNN
from rl_lightning.exploration import Boltzmann, EpsilonGreedy, OrnsteinUhlenbeck

DATA = {
    "num_envs": 2,
    "buffer_frames": 120,  # a ring that is overwritten while the run is interrupted
    "batch_size": 16,
    "warmup_frames": 40,
    "collect_frames": 4,
    "gradient_steps": 1,
    "frames_per_epoch": 60,
    "val_episodes": 2,
    "seed": 3,
}
TINY = partial(QNetwork, hidden=(16,))
EPSILON = partial(DQN, network=TINY, exploration=partial(EpsilonGreedy, 0.5, 0.1, 1.0))


def train(make_agent, data, folder, epochs, ckpt_path=None):
    """Train for some epochs of a fixed budget; returns the last checkpoint, with its contents."""
    torch.manual_seed(1)
    module = ReplayDataModule(total_frames=10**4, **{**DATA, **data})
    agent = make_agent(module.spec)
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = make_trainer(
        max_epochs=epochs,
        callbacks=[saver],
        enable_checkpointing=True,
        limit_val_batches=1.0,
        check_val_every_n_epoch=2,
        gradient_clip_val=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(agent, module, ckpt_path=ckpt_path)
    return load(Path(folder) / "last.ckpt")


def load(path):
    checkpoint = torch.load(path, weights_only=True)
    folder = path.parent / checkpoint["ReplayDataModule"].pop("replay") / "rank0"
    if name := checkpoint["ReplayDataModule"].pop("texts"):
        (found,) = read(find_sidecar(path, name, 0, "texts"))
        checkpoint["texts"] = {"keys": found.keys, "rows": found.rows}
    contents = {f.stem: torch.from_numpy(np.load(f)) for f in folder.glob("*.npy")}
    contents["state"] = torch.load(folder / "state.pt", weights_only=True)
    return {**checkpoint, "contents": contents}


KEYS = ("state_dict", "optimizer_states", "frames", "epoch", "global_step", "contents")


def compare(whole, halves):
    for key in (*KEYS, "ReplayDataModule"):
        same(whole[key], halves[key], key)


def check(make_agent, data, folder):
    whole = train(make_agent, data, folder / "whole", 4)
    train(make_agent, data, folder / "half", 2)
    halves = train(make_agent, data, folder / "rest", 4, folder / "half" / "last.ckpt")
    compare(whole, halves)
    return whole


RAINBOW = partial(
    DQN,
    network=partial(TINY, noisy=True, dueling=True),
    exploration=None,
    double=True,
    distribution="categorical",
    atoms=11,
    value_range=(-10.0, 10.0),
    target_update_frames=50,
)
CASES = {
    "dqn": (EPSILON, {"env": "CartPole-v1"}),
    "dqn-native": (EPSILON, {"env": "CartPole-v1", "vectorization": "native"}),
    "dqn-disk": (EPSILON, {"env": "CartPole-v1", "storage": "disk"}),
    "dqn-normalised": (
        partial(EPSILON, encoder=partial(MLPEncoder, normalize=True), lr_schedule="linear"),
        {"env": "CartPole-v1"},
    ),
    "rainbow": (RAINBOW, {"env": "CartPole-v1", "prioritized": True, "n_step": 3}),
    "rainbow-native": (
        RAINBOW,
        {"env": "CartPole-v1", "prioritized": True, "n_step": 3, "vectorization": "native"},
    ),
    "boltzmann": (partial(EPSILON, exploration=Boltzmann), {"env": "CartPole-v1"}),
    "sac": (partial(SAC, noise=OrnsteinUhlenbeck), {"env": "Pendulum-v1"}),
    "hindsight": (
        partial(EPSILON, encoder=DictEncoder),
        {"env": "BitFlip-v0", "her_goals": 4, "env_kwargs": {"bits": 5}},
    ),
    "stacked-images": (
        partial(EPSILON, encoder=MinAtarCNN),
        {
            "env": "Probe-v0",
            "env_kwargs": {"task": "policy", "observation": "small_image"},
            "wrappers": [{"FrameStackObservation": {"stack_size": 3}}],
            "frame_stack": 3,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, tmp_path):
    whole = check(*CASES[case], tmp_path)
    assert whole["contents"]["state"]["counts"].min() > 60  # the ring's rows
    assert whole["global_step"] == 60


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_resumed_with_a_language_model_equals_uninterrupted(tune, tmp_path):
    model = tiny_model("bert", tmp_path / "model", layers=1, hidden=16)
    encoder = partial(LLMEncoder, model=model, tune=tune, max_length=24)
    data = {"env": "TextMaze-v0", "frames_per_epoch": 20}
    whole = check(partial(EPSILON, encoder=encoder), data, tmp_path)
    assert len(whole["contents"]["state"]["once"]["obs"]["uses"]) > 2


def spoil(tmp_path, change):
    """What is different after a resumption from changed contents."""
    make_agent, data = CASES["rainbow"]
    whole = train(make_agent, data, tmp_path / "whole", 2)
    train(make_agent, data, tmp_path / "half", 1)
    path = tmp_path / "half" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    folder = path.parent / checkpoint["ReplayDataModule"]["replay"] / "rank0"
    state = torch.load(folder / "state.pt", weights_only=True)
    change(checkpoint, state, folder)
    torch.save(state, folder / "state.pt")
    torch.save(checkpoint, path)
    return whole, train(make_agent, data, tmp_path / "rest", 2, path)


def drop_priorities(checkpoint, state, folder):
    state["priorities"] = (state["priorities"] > 0).double()


def change_random_numbers(checkpoint, state, folder):
    rng = checkpoint["ReplayDataModule"]["ranks"][0]["rng"]
    rng["torch"] = torch.Generator().manual_seed(9).get_state()


def change_contents(checkpoint, state, folder):
    rewards = np.load(folder / "reward.000000000000.npy")
    np.save(folder / "reward.000000000000.npy", rewards + 0.5)


@pytest.mark.parametrize(
    "change", [drop_priorities, change_random_numbers, change_contents, lambda *args: None]
)
def test_the_comparison_can_fail(change, tmp_path):
    whole, halves = spoil(tmp_path, change)
    if change.__name__ == "<lambda>":
        return compare(whole, halves)
    with pytest.raises(AssertionError):
        same(whole["state_dict"], halves["state_dict"])


def make(**kwargs):
    return ReplayDataModule("CartPole-v1", **{**DATA, "total_frames": 160, **kwargs})


def fit(agent, module, ckpt_path=None):
    trainer = make_trainer(gradient_clip_val=None)
    trainer.fit(agent, module, ckpt_path=ckpt_path)
    return trainer


def test_what_is_saved_after_training_goes_on_like_what_is_saved_in_it(tmp_path):
    torch.manual_seed(1)
    module = make(prioritized=True)
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    trainer = make_trainer(gradient_clip_val=None, enable_checkpointing=True, callbacks=[saver])
    trainer.fit(EPSILON(module.spec), module)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    ends = []
    for name in ("last", "after"):
        module = make(prioritized=True, total_frames=280)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*callbacks used to create")
            resumed = fit(EPSILON(module.spec), module, tmp_path / f"{name}.ckpt")
        resumed.save_checkpoint(tmp_path / "end.ckpt")
        ends.append(load(tmp_path / "end.ckpt"))
    compare(*ends)


def test_a_second_fit_goes_on_like_a_longer_first_one():
    ends = []
    for budgets in ([280], [160, 280]):
        torch.manual_seed(1)
        module = make()
        agent = EPSILON(module.spec)
        for budget in budgets:
            module.total_frames = budget
            optimizers = fit(agent, module).optimizers
            torch.rand(3)  # what happens in between does not matter
        assert len(module.buffer) <= 124
        ends.append((module.frames, module.buffer._counts.tolist(), len(optimizers)))
    assert ends[0][0] == ends[1][0] == 280
    assert ends[0][2] == 1


def test_another_agent_begins_at_frame_zero():
    module = make()
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        agent = EPSILON(module.spec)
        fit(agent, module)
        assert agent.frames == module.frames == 160
        ends.append(dict(agent.state_dict()))
    same(*ends)


def test_another_number_of_environments_goes_on_with_an_empty_buffer(tmp_path):
    train(EPSILON, {"env": "CartPole-v1"}, tmp_path, 1)
    module = make(num_envs=4)
    with (
        pytest.warns(UserWarning, match="1 ranks of 2 environments.*fresh episodes"),
        pytest.warns(
            UserWarning,
            match="contents are those of 2 environments, not of data.num_envs: 4.* plays 40 frames",
        ),
    ):
        fit(EPSILON(module.spec), module, tmp_path / "last.ckpt")
    assert module.frames >= 160
    assert len(module.buffer) == module.frames - 100


def test_environments_that_cannot_be_copied_go_on_with_fresh_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rl_lightning.data.resume.environments.Snapshots._try", lambda self, env: "it is too large"
    )
    train(EPSILON, {"env": "CartPole-v1"}, tmp_path, 1)
    module = make()
    with pytest.warns(
        UserWarning,
        match=r"cannot be restored \(it is too large\): training goes on with fresh episodes",
    ):
        fit(EPSILON(module.spec), module, tmp_path / "last.ckpt")
    assert module.frames == 160
    assert len(module.buffer) > 100  # what was there, and what came
    index = torch.nonzero(module.buffer.flags & 1).squeeze(1)
    batch = module.buffer.read(index, 0.9)
    # CartPole moves little in a step: none of them leads from the old episode into the new one.
    assert (batch["next_obs"] - batch["obs"]).abs().max() < 1.5
    step = gym.make("CartPole-v1").unwrapped.tau
    moved = batch["next_obs"][:, 0] - batch["obs"][:, 0] - step * batch["obs"][:, 1]
    assert moved.abs().max() < 1e-5
