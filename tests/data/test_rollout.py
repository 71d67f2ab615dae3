"""The on-policy data module: what it collects, when, how it is cut up, and how long it goes on."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDict
from training import fit

from rl_lightning import A2C, PPO, ActorCritic
from rl_lightning.data import Collector, RolloutDataModule
from rl_lightning.data.rollout_module import RolloutLoader

SMALL = {
    "env": "Counter-v0",
    "num_envs": 2,
    "rollout_steps": 6,
    "minibatch_size": 4,
    "passes": 2,
    "rollouts_per_epoch": 2,
    "total_frames": 48,  # two epochs of two rollouts of 12 frames
}
UPDATES = 2 * 3  # of one rollout
MEMORY = partial(ActorCritic, recurrent="gru", recurrent_size=4)


class Watch(Callback):
    """Notes batches, updates, epochs and validations."""

    def __init__(self):
        self.updates = self.epochs = self.validations = 0
        self.shapes, self.frames = [], []
        self.metadata = None

    def on_train_start(self, trainer, pl_module):
        env = trainer.datamodule.collector.env
        self.envs, self.metadata = env.num_envs, env.metadata

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.shapes.append(None if batch is None else tuple(batch.batch_size))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.updates += 1

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        self.frames.append(trainer.datamodule.frames)

    def on_validation_end(self, trainer, pl_module):
        self.validations += 1


def train(agent=PPO, trainer=None, **data):
    """Returns what was watched, the data module and the agent."""
    module, watch = RolloutDataModule(**{**SMALL, **data}), Watch()
    made = agent(module.spec)
    callbacks = [watch, *(trainer or {}).pop("callbacks", [])]
    fit(made, module, callbacks=callbacks, **(trainer or {}))
    return watch, module, made


# --- one batch after the other ----------------------------------------------------------------


@pytest.fixture
def collects(monkeypatch):
    """Fills with the number of updates made before each collection."""
    seen, watch = [], SimpleNamespace(updates=0)
    collect, step = Collector.collect, PPO.on_before_zero_grad

    def noting(self, agent):
        seen.append(watch.updates)
        return collect(self, agent)

    def counting(self, optimizer):
        watch.updates += 1
        return step(self, optimizer)

    monkeypatch.setattr(Collector, "collect", noting)
    monkeypatch.setattr(PPO, "on_before_zero_grad", counting)
    return seen


def test_every_rollout_is_collected_after_all_updates_of_the_one_before(collects):
    train()
    assert collects == [0, UPDATES, 2 * UPDATES, 3 * UPDATES]


def test_without_a_length_lightning_would_collect_too_early(collects, monkeypatch):
    """The trap itself: one batch is fetched ahead, so a rollout comes before the last update."""
    monkeypatch.delattr(RolloutLoader, "__len__")
    train()
    assert collects[1] == UPDATES - 1


def test_weights_that_act_are_the_weights_that_were_updated_last(monkeypatch):
    """The same by value: parameters at a collection are the ones after the update before it."""
    after, at_collection = [], []
    collect = Collector.collect

    class Weights(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            after.append(pl_module.policy.action_head.linear.bias.detach().clone())

    def noting(self, agent):
        at_collection.append((len(after), agent.policy.action_head.linear.bias.clone()))
        return collect(self, agent)

    monkeypatch.setattr(Collector, "collect", noting)
    train(trainer={"callbacks": [Weights()]})
    assert [n for n, _ in at_collection] == [0, UPDATES, 2 * UPDATES, 3 * UPDATES]
    for n, bias in at_collection[1:]:
        assert torch.equal(bias, after[n - 1])
        assert not torch.equal(bias, after[n - 2])


@pytest.mark.parametrize("stop", [True, False])
def test_the_loader_yields_as_many_batches_as_it_says(stop, monkeypatch):
    counts = []
    walk = RolloutLoader.__iter__

    def counting(self):
        counts.append(0)
        for batch in walk(self):
            counts[-1] += 1
            yield batch

    monkeypatch.setattr(RolloutLoader, "__iter__", counting)
    monkeypatch.setattr(PPO, "stop_passes", lambda self: stop)
    watch, module, _ = train()
    assert counts == [2 * UPDATES] * 2 == [len(RolloutLoader(module))] * 2
    assert watch.updates == (4 if stop else 4 * UPDATES)  # one a rollout, or all of them


# --- minibatches ------------------------------------------------------------------------------


def minibatches(batch, dim, passes=3, parts=4):
    agent = SimpleNamespace(device=torch.device("cpu"), stop_passes=lambda: False)
    data = SimpleNamespace(agent=agent, passes=passes, minibatches=parts)
    out = list(RolloutLoader(data)._minibatches(batch, dim))  # type: ignore[arg-type]
    return [out[i : i + parts] for i in range(0, len(out), parts)]


def test_the_minibatches_of_a_pass_are_a_partition_of_the_rollout():
    batch = TensorDict({"row": torch.arange(24), "twice": 2 * torch.arange(24)}, batch_size=24)
    passes = minibatches(batch, dim=0)
    assert len(passes) == 3
    orders = set()
    for parts in passes:
        assert [len(part) for part in parts] == [6] * 4
        rows = torch.cat([part["row"] for part in parts])
        assert sorted(rows.tolist()) == list(range(24))
        assert all(torch.equal(2 * part["row"], part["twice"]) for part in parts)
        orders.add(tuple(rows.tolist()))
    assert len(orders) == 3  # shuffled anew each time
    assert tuple(range(24)) not in orders


def test_sequences_are_shuffled_whole():
    step, column = torch.arange(5)[:, None].expand(5, 8), torch.arange(8).expand(5, 8)
    batch = TensorDict({"step": step, "column": column}, batch_size=(5, 8))
    for parts in minibatches(batch, dim=1):
        assert [tuple(part.batch_size) for part in parts] == [(5, 2)] * 4
        for part in parts:
            assert torch.equal(part["step"], step[:, :2])
            assert (part["column"] == part["column"][0]).all()
        columns = torch.cat([part["column"][0] for part in parts])
        assert sorted(columns.tolist()) == list(range(8))


@pytest.mark.parametrize(
    ("data", "shape", "count"),
    [
        ({}, (4,), 24),
        ({"minibatch_size": 6}, (6,), 16),
        ({"minibatch_size": None}, (12,), 8),
        ({"passes": 1}, (4,), 12),
        ({"rollout_steps": 3, "minibatch_size": 3}, (3,), 32),
        ({"num_envs": 4, "minibatch_size": 8}, (8,), 12),
    ],
)
def test_minibatch_size_passes_and_rollout_size(data, shape, count):
    watch, _, _ = train(**data)
    assert set(watch.shapes) == {shape}
    assert watch.updates == count


@pytest.mark.parametrize(
    ("length", "shape"), [(None, (6, 1)), (3, (3, 2)), (2, (2, 3)), (1, (1, 6))]
)
def test_sequence_length_cuts_rollouts_of_recurrent_agents(length, shape):
    watch, _, _ = train(partial(PPO, network=MEMORY, sequence_length=length), minibatch_size=6)
    assert set(watch.shapes) == {shape}
    whole = {"minibatch_size": None, "passes": 1}
    watch, _, _ = train(partial(A2C, network=MEMORY, sequence_length=length), **whole)
    assert set(watch.shapes) == {(length or 6, 12 // (length or 6))}


# --- frames, epochs, budget -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "epochs"),
    [
        ({}, 2),
        ({"rollouts_per_epoch": 1}, 4),
        ({"total_frames": 49}, 3),
        ({"total_frames": 24}, 1),
        ({"rollouts_per_epoch": 1, "total_frames": 1}, 1),
    ],
)
def test_the_budget_in_frames_sets_the_epochs(data, epochs):
    watch, module, agent = train(**data)
    per_epoch = 12 * module.rollouts_per_epoch
    assert watch.epochs == epochs
    assert watch.frames == [per_epoch * (i + 1) for i in range(epochs)]
    assert module.frames == agent.frames == per_epoch * epochs
    assert agent.progress == 1 - 12 / module.frames  # the last rollout still learns


def test_a_larger_budget_has_the_epochs_that_were_asked_for():
    """A first budget smaller than an epoch does not shrink the epochs of the next one."""
    module = RolloutDataModule(
        "Counter-v0", num_envs=2, rollout_steps=6, rollouts_per_epoch=4, total_frames=12
    )
    agent = fit(A2C(module.spec), module)
    assert (module.frames, module.frames_per_epoch) == (12, 12)
    module.total_frames = 60
    fit(agent, module)
    assert (module.frames, module.frames_per_epoch) == (60, 48)


def test_resets_of_a_native_vector_env_are_no_frames():
    """Episodes of 3 steps and a reset: 6 steps hold 5 frames, or 4 if they begin with the end."""
    watch, module, _ = train(vectorization="native", rollouts_per_epoch=1)
    # Resets at steps 3, 7, 11, 15 … of each environment; budget 48 for 2 environments.
    resets = np.arange(3, 60, 4)
    per_rollout = [2 * (6 - ((resets >= 6 * i) & (resets < 6 * i + 6)).sum()) for i in range(6)]
    total = np.cumsum(per_rollout)
    needed = int(np.searchsorted(total, 48)) + 1
    assert watch.epochs == needed > 4
    assert watch.frames == total[:needed].tolist()
    assert module.frames < 12 * needed


def test_a_larger_budget_goes_on(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    train(trainer={"callbacks": [saver], "enable_checkpointing": True})
    larger = RolloutDataModule(**{**SMALL, "total_frames": 96})
    watch = Watch()
    fit(PPO(larger.spec), larger, str(tmp_path / "last.ckpt"), callbacks=[watch])
    assert watch.frames == [72, 96]
    done = RolloutDataModule(**SMALL)
    watch = Watch()
    fit(PPO(done.spec), done, str(tmp_path / "last.ckpt"), callbacks=[watch])
    assert watch.updates == 0


def test_max_epochs_limits_the_budget():
    assert train(trainer={"max_epochs": 1})[0].epochs == 1
    assert train(trainer={"max_epochs": 7})[0].epochs == 2


def test_validation_follows_the_epochs():
    trainer = {"limit_val_batches": 1.0, "check_val_every_n_epoch": 2}
    watch, _, _ = train(rollouts_per_epoch=1, trainer=trainer, val_episodes=1)
    assert (watch.epochs, watch.validations) == (4, 2)
