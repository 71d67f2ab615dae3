"""A copy of a data module has its arguments, and nothing of the run that the original is in."""

import copy
import inspect
import pickle
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from recorded import demonstrate, offline, record
from training import make_trainer

from rl_lightning import BC, DQN, PPO, ReplayDataModule, RolloutDataModule

pytestmark = pytest.mark.filterwarnings("ignore")
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda data: pickle.loads(pickle.dumps(data))}


def rollouts(folder):
    data = RolloutDataModule(
        "Probe-v0", num_envs=2, rollout_steps=4, total_frames=24, normalize_reward=True, seed=0
    )
    return PPO, data


def replay(folder):
    data = ReplayDataModule(
        "Probe-v0",
        total_frames=24,
        warmup_frames=8,
        frames_per_epoch=8,
        batch_size=4,
        buffer_frames=50_000,
        seed=0,
    )
    return DQN, data


def recordings(folder):
    path = record(folder / "data.hdf5", choose=demonstrate, episodes=16)
    return BC, offline(path, total_updates=6, updates_per_epoch=2)


CASES = {"rollouts": rollouts, "replay": replay, "recordings": recordings}


class Copier(L.Callback):
    def __init__(self):
        self.made = []

    def copies(self, data):
        for make in COPIES.values():
            self.made.append((make(data), len(pickle.dumps(data))))

    def on_train_batch_end(self, trainer, agent, *args):
        self.copies(trainer.datamodule)

    def on_validation_end(self, trainer, agent):
        self.copies(trainer.datamodule)


def arguments(data):
    """What the constructor was given."""
    names = inspect.signature(type(data)).parameters
    return {name: getattr(data, name) for name in names if name in vars(data)}


@pytest.mark.parametrize("name", CASES)
def test_a_copy_is_in_no_run(name, tmp_path):
    make, data = CASES[name](tmp_path)
    torch.manual_seed(0)
    agent = make(data.spec)  # from here on the module holds a spare environment
    copier = Copier()
    copier.copies(data)
    make_trainer(callbacks=[copier], limit_val_batches=1.0, gradient_clip_val=None).fit(agent, data)
    copier.copies(data)
    assert len(copier.made) > 8
    said = arguments(data)
    for made, size in copier.made:
        assert made.trainer is None
        assert made.frames == 0
        assert not {"_spare", "recorded", "snapshots", "weak_metrics"} & vars(made).keys()
        assert getattr(made, "buffer", None) is made.collector is None
        assert arguments(made) == {key: said[key] for key in arguments(made)}
        assert made.spec == data.spec
        assert size < 10_000


@pytest.mark.parametrize("name", CASES)
def test_runs_with_copies_are_equal(name, tmp_path):
    make, data = CASES[name](tmp_path)
    torch.manual_seed(0)
    agent = make(data.spec)
    states = []
    for module in (copy.deepcopy(data), data, copy.deepcopy(data)):
        twin = copy.deepcopy(agent)
        torch.manual_seed(0)
        make_trainer(gradient_clip_val=None).fit(twin, module)
        states.append(twin.state_dict())
    for state in states[1:]:
        assert all(torch.equal(states[0][key], state[key]) for key in state)


def test_arguments_set_later_are_copied(tmp_path):
    _, data = replay(tmp_path)
    data.batch_size, data.env_kwargs["task"] = 9, "match"
    made = copy.deepcopy(data)
    data.env_kwargs["task"] = "constant"
    assert made.batch_size == 9
    assert made.env_kwargs == {"task": "match"}


def test_an_environment_that_cannot_be_copied_is_no_obstacle(tmp_path):
    _, data = rollouts(tmp_path)
    assert data.spec is not None
    data._spare.unwrapped.simulator = SimpleNamespace(memory=iter(()), lock=(i for i in ()))
    for make in COPIES.values():
        assert make(data).spec == data.spec
