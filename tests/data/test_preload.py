"""A replay buffer that begins with recorded episodes."""

import warnings
from functools import partial

import gymnasium as gym
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from probes import Probe
from recorded import record
from test_offline import COUNTER, attached, count, counters
from training import make_trainer

from rl_lightning import BC, DQN, MLPEncoder, QNetwork, ReplayDataModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings import into_buffer as preload
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.writer import DatasetWriter
from rl_lightning.exploration import EpsilonGreedy

TINY = partial(QNetwork, hidden=(8,))
AGENT = partial(DQN, network=TINY, exploration=partial(EpsilonGreedy, 0.5, 0.5, 1.0))
SMALL = {
    "env": "Counter-v0",
    "num_envs": 2,
    "buffer_frames": 200,
    "batch_size": 8,
    "warmup_frames": 12,
    "frames_per_epoch": 20,
    "total_frames": 52,
    "seed": 3,
}


KEYS = ["action", "reward", "discount", "obs", "next_obs"]


class Look(Callback):
    """Keeps the transitions at the end of training, before the module lets them go."""

    def on_train_end(self, trainer, pl_module):
        self.buffer = trainer.datamodule.buffer
        self.rows = transitions(self.buffer)


def transitions(buffer, n_step=1, gamma=0.5):
    """All of them, as a sorted list of tuples of numbers."""
    index = torch.from_numpy(np.flatnonzero(buffer.flags.numpy() & 1))
    batch = buffer.read(index, gamma, n_step)
    flat = torch.cat([batch[key].reshape(len(index), -1).double() for key in KEYS], dim=1)
    return sorted(map(tuple, flat.tolist()))


def train(path, agent=AGENT, trainer=None, ckpt_path=None, **data):
    torch.manual_seed(0)
    module = ReplayDataModule(dataset=path, **{**SMALL, **data})
    look = Look()
    callbacks = [look, *(trainer or {}).pop("callbacks", [])]
    made = make_trainer(gradient_clip_val=None, **{**(trainer or {}), "callbacks": callbacks})
    made.fit(agent(module.spec), module, ckpt_path=ckpt_path)
    return module, look


def preloaded(agent, path, observe=True, goals=0, **data):
    """A buffer with nothing but the recorded episodes in it."""
    module = ReplayDataModule(dataset=path, **{**SMALL, **data})
    made = make_trainer(gradient_clip_val=None)
    made.strategy.connect(agent)
    module.trainer, module.her_goals = made, goals
    module.buffer = module.make_buffer()
    agent.frames = 0 if observe else 1
    module._preload()
    return module.buffer


@pytest.mark.parametrize("num_envs", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 2, 256])
@pytest.mark.parametrize("n_step", [1, 2])
@pytest.mark.parametrize("truncate", [False, True])
def test_the_transitions_are_those_of_offline_learning(
    truncate, n_step, block, num_envs, tmp_path, monkeypatch
):
    monkeypatch.setattr(preload, "READ_ROWS", block)
    path = count(tmp_path / "data.hdf5", [3, 1, 4, 2, 2], truncate)
    data = counters(path)
    agent = AGENT(data.spec)
    expected = transitions(attached(agent, data), n_step)
    assert len(expected) == 12
    buffer = preloaded(agent, path, num_envs=num_envs, prioritized=True)
    assert transitions(buffer, n_step) == expected
    drawn, _ = buffer.draw_by_priority(600, 1.0)
    assert len(set(drawn.tolist())) == 12


def test_episodes_are_shared_out_evenly(tmp_path):
    path = count(tmp_path / "data.hdf5", [9, 1, 1, 1, 4])
    buffer = preloaded(AGENT(counters(path).spec), path)
    assert buffer._counts.tolist() == [10, 11]


def test_ranks_share_them(tmp_path, monkeypatch):
    path = count(tmp_path / "data.hdf5", [1, 2, 3, 4, 5])
    agent, lengths = AGENT(counters(path).spec), []
    monkeypatch.setattr(L.Trainer, "world_size", property(lambda trainer: 2))
    monkeypatch.setattr(ReplayDataModule, "_sum_over_ranks", lambda module, count: count)
    for rank in range(2):
        monkeypatch.setattr(L.Trainer, "global_rank", property(lambda trainer, rank=rank: rank))
        lengths.append(len(preloaded(agent, path)))
    assert lengths == [1 + 3 + 5, 2 + 4]


def test_masks_and_stacks(tmp_path):
    """A stack's frames are rows, and what is read is what was recorded."""
    path, frames = tmp_path / "data.hdf5", np.arange(5, dtype=np.float32)
    space = gym.spaces.Box(-np.inf, np.inf, (2, 1), np.float32)
    shown = np.stack([frames[[0, 0, 1, 2]], frames[[0, 1, 2, 3]]], 1)[..., None]
    masks = np.array([[1, 0], [0, 1], [1, 1], [1, 0]], bool)
    never, one = np.zeros(3, bool), np.ones(3)
    with DatasetWriter(path, EnvSpec(space, gym.spaces.Discrete(2), "Counter-v0")) as writer:
        writer.add(Episode(shown, np.array([0, 1, 0]), one, never, never, masks))
    agent = AGENT(EnvSpec(space, gym.spaces.Discrete(2), "Counter-v0"))
    stacked = {"FrameStackObservation": {"stack_size": 2}}
    buffer = preloaded(agent, str(path), wrappers=[stacked], frame_stack=2, num_envs=1)
    read = buffer.read(torch.tensor([1, 2, 3]), 0.5)
    assert read["obs"].tolist() == [[0, 0], [0, 1], [1, 2]]
    assert read["next_obs"].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert read["action_mask"].int().tolist() == masks[:3].astype(int).tolist()
    assert read["next_action_mask"].int().tolist() == masks[1:].astype(int).tolist()
    assert len(buffer) == 3


def test_collecting_goes_on_behind_them(tmp_path):
    """Recorded episodes count to 100 and more; none is joined to one that was played."""
    module, look = train(count(tmp_path / "data.hdf5", [3, 4, 5], first=100))
    assert module.frames == 52  # what was recorded is no frame of this run
    assert len(look.buffer) == 12 + 52
    buffer = look.buffer
    index = torch.from_numpy(np.flatnonzero(buffer.flags.numpy() & 1))
    batch = buffer.read(index, 1.0)
    assert (batch["next_obs"] == batch["obs"] + 1).all()
    assert int((batch["obs"] >= 100).sum()) == 12


def test_it_is_there_before_the_first_update(tmp_path):
    drawn = []

    class Spy(DQN):
        def loss(self, batch):
            drawn.append(batch["obs"])
            return super().loss(batch)

    path = count(tmp_path / "data.hdf5", [30], first=100)
    train(path, partial(Spy, network=TINY), warmup_frames=0, num_envs=1)
    assert (drawn[0] >= 100).sum() >= 5


def test_hindsight_knows_where_recorded_episodes_end(tmp_path):
    """Of each row, the final observation of its episode: how long that was."""
    path = count(tmp_path / "data.hdf5", [3, 1, 4])
    buffer = preloaded(AGENT(counters(path).spec), path, goals=4)
    index = torch.from_numpy(np.flatnonzero(buffer.flags.numpy() & 1))
    shown = buffer.read(index, 1.0)["obs"].flatten().tolist()
    last = buffer.columns["obs"].read(buffer.last(index)).flatten().tolist()
    expected = [(t, length) for length in (3, 1, 4) for t in range(length)]
    assert sorted(zip(shown, last, strict=True)) == sorted(expected)


@pytest.mark.parametrize("observe", [True, False])
def test_running_statistics_see_them_once(observe, tmp_path):
    path = count(tmp_path / "data.hdf5", [3], first=7)
    agent = AGENT(counters(path).spec, encoder=partial(MLPEncoder, normalize=True))
    preloaded(agent, path, observe)
    seen = agent.encoder.norm.running
    assert float(seen.mean) == pytest.approx(8.5 if observe else 0.0)


def test_what_does_not_fit_is_told(tmp_path):
    path = count(tmp_path / "data.hdf5", [60, 60, 60])
    with pytest.warns(UserWarning, match=r"\d+ of the 180 transitions of .* find no room; make"):
        train(path, buffer_frames=100, warmup_frames=0, total_frames=20)


def test_mistakes_are_told_before_anything_is_played(tmp_path):
    with pytest.raises(ConfigurationError, match="there is no file"):
        train(str(tmp_path / "none.hdf5"))
    path = record(tmp_path / "other.hdf5", observation="vector")
    with pytest.raises(ConfigurationError, match="recorded with the observation_space"):
        train(path)
    with pytest.raises(ConfigurationError, match="BC does not learn from replay"):
        train(path, BC)


def saver(folder):
    return ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    path = count(tmp_path / "data.hdf5", [3, 4, 5], first=100)

    def run(name, epochs, ckpt_path=None, **data):
        kept = {"callbacks": [saver(tmp_path / name)], "enable_checkpointing": True}
        trainer = {"max_epochs": epochs, **kept}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train(path, trainer=trainer, ckpt_path=ckpt_path, **data)

    whole = run("whole", 2)[1].rows
    run("half", 1)
    reads = []
    monkeypatch.setattr(ReplayDataModule, "_preload", lambda *args: reads.append(args))
    assert run("rest", 2, tmp_path / "half" / "last.ckpt")[1].rows == whole
    assert not reads  # they are in the saved contents


def test_without_saved_contents_they_are_read_again(tmp_path):
    path = count(tmp_path / "data.hdf5", [3, 4, 5], first=100)
    kept = {"callbacks": [saver(tmp_path)], "enable_checkpointing": True}
    train(path, trainer={"max_epochs": 1, **kept}, save_replay=False)
    with pytest.warns(UserWarning, match="the policy plays 12 frames"):
        module, look = train(path, ckpt_path=tmp_path / "last.ckpt", save_replay=False)
    assert module.frames == 32 + 12 + 20
    rows = [dict(zip(KEYS, row, strict=True)) for row in look.rows]
    assert sum(row["obs"] >= 100 for row in rows) == 12
    assert all(row["next_obs"] == row["obs"] + 1 for row in rows)


def test_from_offline_to_online_learning(tmp_path):
    """A checkpoint of one data module is where the other begins, with its frames at 0."""
    path = count(tmp_path / "data.hdf5", [3, 4, 5], first=100)
    data = counters(path, total_updates=64, updates_per_epoch=64)
    agent = AGENT(data.spec, encoder=partial(MLPEncoder, normalize=True))
    trainer = make_trainer(
        gradient_clip_val=None, callbacks=[saver(tmp_path)], enable_checkpointing=True
    )
    trainer.fit(agent, data)
    begun = []

    class Spy(DQN):
        def on_train_start(self):
            begun.append({key: value.clone() for key, value in self.state_dict().items()})
            super().on_train_start()

    def spy(spec):
        return Spy(spec, network=TINY, encoder=partial(MLPEncoder, normalize=True))

    module, look = train(path, spy, ckpt_path=tmp_path / "last.ckpt", warmup_frames=0)
    assert len(begun) == 1
    for key, value in agent.state_dict().items():  # statistics, too: they have seen these rows
        assert torch.equal(begun[0][key], value), key
    assert module.frames == 60
    assert len(look.buffer) == 12 + 60


def masked(path, mask, episodes=12):
    """Episodes of the delayed probe, with its masks or without; actions keep to them."""
    env = Probe("delayed", mask=True)
    with DatasetWriter(
        path, EnvSpec(env.observation_space, env.action_space, "Probe-v0")
    ) as writer:
        for _ in range(episodes):
            obs, info = env.reset(seed=0)
            seen, masks, steps, over = [obs], [info["action_mask"]], [], False
            while not over:
                action = int(np.argmax(masks[-1]))
                obs, reward, over, _, info = env.step(action)
                seen.append(obs)
                masks.append(info["action_mask"])
                steps.append((action, reward, over, False))
            actions, *rest = zip(*steps, strict=True)
            given = np.array(masks) if mask else None
            writer.add(Episode(np.array(seen), np.array(actions), *map(np.array, rest), given))
    return str(path)


MASKED = {"env": "Probe-v0", "total_frames": 92, "buffer_frames": 60}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("recorded", "played"), [(True, True), (True, False), (False, True)])
def test_masks_of_some_rows_only(recorded, played, split, tmp_path):
    """Where there is none everything is allowed, in a ring that goes round, and resumed too."""
    path = masked(tmp_path / "data.hdf5", recorded)
    data = {**MASKED, "env_kwargs": {"task": "delayed", "mask": played}}
    kept = {"callbacks": [saver(tmp_path)], "enable_checkpointing": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if split:
            train(path, trainer={"max_epochs": 2, **kept}, **data)
        _, look = train(path, ckpt_path=tmp_path / "last.ckpt" if split else None, **data)
    index = torch.from_numpy(np.flatnonzero(look.buffer.flags.numpy() & 1))
    batch = look.buffer.read(index, 1.0)
    assert batch["action_mask"].gather(1, batch["action"].long()[:, None]).all()
    assert batch["next_action_mask"].any(1).all()
    assert len(index) > 20
    if not played:  # every recorded row is gone
        assert batch["action_mask"].all()


@pytest.mark.parametrize("silent", [True, False])
def test_a_mask_column_that_comes_later(silent, tmp_path):
    buffer = preloaded(
        AGENT(counters(count(tmp_path / "data.hdf5", [2])).spec), str(tmp_path / "data.hdf5")
    )
    assert buffer.mask_dim == 0
    x, mask = torch.zeros(2, 1), torch.tensor([[True, False], [False, True]])
    buffer.begin(x, mask=mask)
    buffer.act(torch.zeros(2), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    buffer.push(x, mask=None if silent else mask)
    assert buffer.mask_dim == 2
    newest = torch.from_numpy(buffer.head * 2 + np.arange(2)) - 2
    read = buffer.read(newest, 1.0)
    assert read["action_mask"].tolist() == mask.tolist()
    assert read["next_action_mask"].tolist() == ([[True] * 2] * 2 if silent else mask.tolist())
    assert buffer.read(torch.tensor([0, 2]), 1.0)["action_mask"].all()  # recorded


def test_masks_of_another_width_name_the_file(tmp_path):
    path = tmp_path / "data.hdf5"
    shown, one = np.zeros((2, 1), np.float32), np.ones(1)
    with DatasetWriter(path, EnvSpec(COUNTER, gym.spaces.Discrete(2), "Counter-v0")) as writer:
        masks = np.ones((2, 3), bool)
        writer.add(Episode(shown, np.array([0]), one, one == 0, one == 1, masks))
    with pytest.raises(ConfigurationError, match=r"data.hdf5 holds action masks of 3 actions, but"):
        train(str(path))


def test_other_episodes_than_those_of_the_contents_are_told(tmp_path):
    first, other = count(tmp_path / "a.hdf5", [3, 4]), count(tmp_path / "b.hdf5", [5])
    kept = {"callbacks": [saver(tmp_path)], "enable_checkpointing": True}
    last = tmp_path / "last.ckpt"

    def go_on(path, epochs):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train(path, trainer={"max_epochs": epochs, **kept}, ckpt_path=last, total_frames=200)
        return [str(w.message) for w in told if "contents began with" in str(w.message)]

    train(first, trainer={"max_epochs": 1, **kept}, total_frames=200)
    assert go_on(first, 2) == []
    assert go_on(None, 3) == []  # they are in the contents anyway
    (told,) = go_on(other, 4)
    assert "b.hdf5 holds 1 episodes of 5 steps" in told
    assert "began with 2 episodes of 7 steps" in told
    with pytest.raises(ConfigurationError, match="there is no file"):
        go_on(str(tmp_path / "none.hdf5"), 5)


def test_a_checkpoint_of_before_the_first_frame(tmp_path):
    """What is played after it does not go on a recorded episode."""
    path = count(tmp_path / "data.hdf5", [3, 4, 5], first=100)
    data = counters(path, total_updates=64, updates_per_epoch=64)
    offline = make_trainer(
        gradient_clip_val=None, callbacks=[saver(tmp_path)], enable_checkpointing=True
    )
    offline.fit(AGENT(data.spec), data)

    class Save(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    begin = {"ckpt_path": tmp_path / "last.ckpt", "warmup_frames": 0}
    train(path, trainer={"callbacks": [Save()]}, **begin)
    _, look = train(path, ckpt_path=tmp_path / "early.ckpt", warmup_frames=0)
    rows = [dict(zip(KEYS, row, strict=True)) for row in look.rows]
    assert len(rows) == 12 + 60
    assert all(row["next_obs"] == row["obs"] + 1 for row in rows)
