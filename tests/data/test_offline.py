"""Recorded episodes as a source of batches: what is read, the clock, resuming, and mistakes."""

import re
import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from probes import OBSERVATIONS, batch
from recorded import fit, make_trainer, offline, record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lightning import (
    BC,
    DQN,
    IQL,
    PPO,
    DictEncoder,
    ImpalaCNN,
    LLMEncoder,
    MLPEncoder,
    OfflineNetwork,
    QNetwork,
)
from rl_lightning.agents.agent import adam
from rl_lightning.cli.command import main
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import OfflineDataModule
from rl_lightning.data import offline_module as module
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.writer import DatasetWriter

NARROW = partial(OfflineNetwork, hidden=(16,))
SMALL = partial(ImpalaCNN, features=8, channels=(4,))
COUNTER = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def count(path, lengths, truncate=False, first=0):
    """Episodes that show 0, 1, 2 … and pay the observation that follows; actions alternate."""
    with DatasetWriter(path, EnvSpec(COUNTER, gym.spaces.Discrete(2), "Counter-v0")) as writer:
        for length in lengths:
            shown = np.arange(first, first + length + 1, dtype=np.float32)[:, None]
            ends, never = np.arange(length) == length - 1, np.zeros(length, bool)
            flags = (never, ends) if truncate else (ends, never)
            writer.add(Episode(shown, np.arange(length) % 2, shown[1:, 0].astype(float), *flags))
    return str(path)


def attached(agent, data, **trainer):
    """The buffer of a module whose trainer is about to begin."""
    made = make_trainer(**trainer)
    made.strategy.connect(agent)
    data.trainer = made
    with data.acting():
        pass
    data.open_source(0)
    return data.read()


def counters(path, **kwargs):
    return OfflineDataModule(path, "Counter-v0", **{"total_updates": 64, **kwargs})


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3, 5, 256])
@pytest.mark.parametrize("truncate", [False, True])
def test_rows_by_hand(block, truncate, tmp_path, monkeypatch):
    """Episodes of 3, 1 and 4 steps, cut into blocks wherever that may be."""
    monkeypatch.setattr(module, "READ_ROWS", block)
    data = counters(count(tmp_path / "data.hdf5", [3, 1, 4], truncate))
    buffer = attached(BC(data.spec), data)
    assert len(buffer) == 8
    rows = torch.tensor([0, 1, 2, 4, 6, 7, 8, 9])
    read = buffer.read(rows, gamma=0.5)
    assert sorted(set(buffer.draw(500).tolist())) == rows.tolist()
    assert read["obs"].flatten().tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert read["next_obs"].flatten().tolist() == [1, 2, 3, 1, 1, 2, 3, 4]
    assert read["action"].tolist() == [0, 1, 0, 0, 0, 1, 0, 1]
    assert read["reward"].tolist() == [1, 2, 3, 1, 1, 2, 3, 4]
    last = 0.5 if truncate else 0
    assert read["discount"].tolist() == [0.5, 0.5, last, last, 0.5, 0.5, 0.5, last]


def masked(path, *episodes):
    """Episodes of one step each, with the given masks of both observations."""
    with DatasetWriter(path, EnvSpec(COUNTER, gym.spaces.Discrete(2), "Counter-v0")) as writer:
        for masks in episodes:
            shown, one = np.zeros((2, 1), np.float32), np.ones(1)
            masks = None if masks is None else np.array(masks, bool)
            writer.add(Episode(shown, np.array([0]), one, one == 0, one == 1, masks))
    return str(path)


@pytest.mark.parametrize("block", [1, 256])
def test_action_masks_by_hand(block, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_ROWS", block)
    data = counters(masked(tmp_path / "data.hdf5", [[1, 0], [0, 1]], None, [[1, 1], [1, 0]]))
    read = attached(DQN(data.spec), data).read(torch.tensor([0, 2, 4]), gamma=0.5)
    assert read["action_mask"].int().tolist() == [[1, 0], [1, 1], [1, 1]]
    assert read["next_action_mask"].int().tolist() == [[0, 1], [1, 1], [1, 0]]


def test_masks_of_another_width_are_refused(tmp_path):
    data = counters(masked(tmp_path / "data.hdf5", [[1, 0, 1], [0, 1, 1]]))
    with pytest.raises(
        ConfigurationError, match=r"holds action masks of 3 actions, but .* of 2 actions"
    ):
        attached(DQN(data.spec), data)


def test_what_is_forbidden_is_not_bootstrapped_from(tmp_path):
    """Action 1 would be worth 10 at the end, were it allowed there."""
    data = counters(masked(tmp_path / "data.hdf5", [[1, 1], [1, 0]]), batch_size=4)
    agent = DQN(data.spec, gamma=1.0, network=partial(QNetwork, hidden=()))
    with torch.no_grad():
        for network in (agent.policy, agent.target):
            network.advantage[0].weight.zero_()
            network.advantage[0].bias.copy_(torch.tensor([2.0, 10.0]))
    data.buffer = attached(agent, data)
    assert agent.bootstrap(data.next_batch()).tolist() == [2.0] * 4


def test_n_step_returns_by_hand(tmp_path):
    data = counters(count(tmp_path / "data.hdf5", [3]), n_step=2, batch_size=64)
    agent = DQN(data.spec, gamma=0.5)
    data.buffer = attached(agent, data)
    found = data.next_batch()
    for row in found:
        shown = int(row["obs"])
        reward, discount = {0: (2, 0.25), 1: (3.5, 0), 2: (3, 0)}[shown]
        assert (row["reward"].item(), row["discount"].item()) == (reward, discount)
    assert found["obs"].shape == (64, 1)
    assert set(found.keys()) == {"obs", "action", "reward", "discount", "next_obs"}


ENCODERS = {
    "vector": MLPEncoder,
    "discrete": MLPEncoder,
    "small_image": SMALL,
    "dict": partial(DictEncoder, encoders={"image": SMALL}),
    "tuple": DictEncoder,
}


@pytest.mark.parametrize("observation", [*ENCODERS, "text", "mixed"])
def test_observations_of_every_kind_as_while_acting(observation, tmp_path):
    """The delayed probe shows state 0, then 1, then 1."""
    text = partial(LLMEncoder, model=tiny_model("bert", tmp_path / "bert"))
    encoder = {
        **ENCODERS,
        "text": text,
        "mixed": partial(DictEncoder, encoders={"text": text}),
    }[observation]
    path = record(tmp_path / "data.hdf5", "delayed", observation, episodes=2)
    data = offline(path, "delayed", observation=observation)
    agent = BC(data.spec, encoder)
    buffer = attached(agent, data)
    read = buffer.read(torch.tensor([0, 1, 3, 4]), gamma=1.0)
    for key, states in {"obs": (0, 1, 0, 1), "next_obs": (1, 1, 1, 1)}.items():
        expected = agent.preprocess(batch(observation, *states))
        same_rows(read[key], expected)
    assert set(ENCODERS) | {"text", "mixed", "image"} == set(OBSERVATIONS)


def same_rows(a, b):
    if isinstance(b, torch.Tensor):
        torch.testing.assert_close(a, b)
    else:
        for key in b:
            same_rows(a[key], b[key])


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary", "box"])
def test_actions_come_back_as_they_were(action, tmp_path):
    path = record(tmp_path / "data.hdf5", "action", action=action, episodes=5)
    data = offline(path, "action", action=action)
    buffer = attached(BC(data.spec), data)
    read = buffer.read(torch.arange(5) * 2, gamma=1.0)["action"]
    recorded = np.stack([e.actions[0] for e in data.recorded.episodes()])
    np.testing.assert_array_equal(read.numpy(), recorded)
    assert read.dtype == (torch.float32 if action == "box" else torch.int64)


def test_a_frozen_model_reads_each_text_once(tmp_path, monkeypatch):
    path = record(tmp_path / "data.hdf5", "policy", "text", episodes=300)
    data = offline(path, observation="text")
    agent = BC(data.spec, partial(LLMEncoder, model=tiny_model("bert", tmp_path / "bert")))
    read = []
    inner = agent.encoder._read_frozen
    monkeypatch.setattr(
        agent.encoder, "_read_frozen", lambda texts: [read.extend(texts), inner(texts)][1]
    )
    buffer = attached(agent, data)
    assert len(read) == 3
    assert len(buffer.columns["obs"]) == 3  # and is stored once


def test_running_statistics_are_those_of_all_observations(tmp_path):
    data = counters(count(tmp_path / "data.hdf5", [3, 1, 4]))
    agent = BC(data.spec, partial(MLPEncoder, normalize=True))
    attached(agent, data)
    shown = np.array([0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4.0])
    moments = agent.encoder.norm.running
    assert moments.count == 11
    assert moments.mean.item() == pytest.approx(shown.mean())
    assert moments.variance.item() == pytest.approx(shown.var())
    raw = torch.tensor([[3.0]])
    expected = (3 - shown.mean()) / shown.std()
    assert agent.preprocess(raw.numpy()) == raw  # buffers hold them as they were
    assert agent.encoder.standardized(raw).item() == pytest.approx(expected, rel=1e-4)


def test_a_file_that_does_not_say_its_spaces_is_judged_by_the_environment(tmp_path):
    path = count(tmp_path / "data.hdf5", [3])
    with h5py.File(path, "r+") as file:
        for name in ("observation_space", "action_space"):
            del file.attrs[name]
    data = counters(path)
    assert len(attached(BC(data.spec), data)) == 3
    wrong = OfflineDataModule(path, "CartPole-v1")
    with pytest.raises(ConfigurationError, match="episode_0: observations"):
        attached(BC(wrong.spec), wrong)


# --- knobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "epochs", "updates"),
    [
        ({"updates_per_epoch": 10, "total_updates": 40}, 4, 40),
        ({"updates_per_epoch": 10, "total_updates": 35}, 4, 40),  # whole epochs
        ({"updates_per_epoch": 100, "total_updates": 7}, 1, 7),
        ({"updates_per_epoch": 130, "total_updates": 130}, 1, 130),  # more than one run of updates
    ],
)
def test_the_budget_in_updates(kwargs, epochs, updates, tmp_path):
    data = counters(count(tmp_path / "data.hdf5", [3]), batch_size=5, **kwargs)
    agent = BC(data.spec)
    seen, inner = [], agent.loss
    agent.loss = lambda batch: [seen.append((len(batch), agent.frames)), inner(batch)][1]
    trainer = make_trainer()
    trainer.fit(agent, data)
    assert trainer.current_epoch == epochs
    assert seen == [(5, n) for n in range(1, updates + 1)]
    assert agent.frames == data.frames == trainer.global_step == updates


def test_obs_dtype_and_storage(tmp_path):
    path = count(tmp_path / "data.hdf5", [3])
    plain = attached(*pair(counters(path))).columns["obs"]
    assert (plain.array.dtype, isinstance(plain.array, np.memmap)) == (np.float32, False)
    place = tmp_path / "here"
    kept = counters(path, obs_dtype="float16", storage="disk", storage_dir=str(place))
    column = attached(*pair(kept)).columns["obs"]
    assert (column.array.dtype, isinstance(column.array, np.memmap)) == (np.float16, True)
    assert place.is_dir()


def pair(data):
    return BC(data.spec), data


def test_all_arguments_of_evaluation_arrive(tmp_path):
    said = {
        "env_kwargs": {"length": 5},
        "wrappers": [{"TimeLimit": {"max_episode_steps": 4}}],
        "vectorization": "async",
        "success_threshold": 2.0,
        "val_episodes": 3,
        "val_num_envs": 2,
        "val_env_kwargs": {"truncate": True},
        "val_seed": 17,
        "val_explore": True,
        "val_transcript_steps": 0,
        "record": "here.hdf5",
    }
    data = counters("none.hdf5", **said)
    assert {name: getattr(data, name) for name in said} == said


def test_evaluation_needs_no_file(tmp_path):
    data = counters(str(tmp_path / "none.hdf5"), val_episodes=2)
    trainer = make_trainer(limit_val_batches=1.0)
    (said,) = trainer.validate(BC(data.spec), data, verbose=False)
    assert said["val/return"] == 6


def test_schedules_run_over_the_updates(tmp_path):
    data = counters(count(tmp_path / "data.hdf5", [3]), total_updates=100, updates_per_epoch=50)
    agent = BC(data.spec, optimizer=partial(adam, lr=1.0), lr_schedule="linear")
    rates, inner = [], agent.loss

    def spy(batch):
        rates.append(agent.trainer.optimizers[0].param_groups[0]["lr"])
        return inner(batch)

    agent.loss = spy
    fit(agent, data)
    np.testing.assert_allclose(rates, 1 - np.arange(100) / 100, atol=1e-9)


# --- who can learn ----------------------------------------------------------------------------


def test_agents_of_replay_learn_here_too(tmp_path):
    data = offline(record(tmp_path / "data.hdf5", "action"), "action", total_updates=600)
    torch.manual_seed(0)
    agent = fit(DQN(data.spec, optimizer=partial(adam, lr=1e-2), gamma=0.5), data)
    with torch.no_grad():
        values = agent.inspect(agent.preprocess(batch("vector", 0)))["values"]
    assert values.tolist() == [pytest.approx([-1, 1], abs=0.1)]


def test_agents_of_rollouts_are_refused(tmp_path):
    data = counters(count(tmp_path / "data.hdf5", [3]))
    with pytest.raises(ConfigurationError, match="PPO does not learn from recorded data; use BC"):
        fit(PPO(data.spec), data)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, not 0"),
        ({"updates_per_epoch": 0}, "data.updates_per_epoch must be at least 1"),
        ({"total_updates": 0}, "data.total_updates must be at least 1, not 0"),
        ({"n_step": 0}, "data.n_step must be at least 1"),
        ({"obs_dtype": "int8"}, "data.obs_dtype must be one of float32, float16, not 'int8'"),
        ({"storage": "tape"}, "data.storage must be memory or disk, not 'tape'"),
        ({"storage_dir": "x"}, "data.storage_dir: x means nothing"),
        ({"val_episodes": 0}, "data.val_episodes must be at least 1"),
    ],
)
def test_impossible_arguments(kwargs, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        counters("none.hdf5", **kwargs)


def test_files_that_do_not_fit(tmp_path):
    path = count(tmp_path / "data.hdf5", [3])
    other = OfflineDataModule(path, "CartPole-v1")
    with pytest.raises(ConfigurationError, match="was recorded with the observation_space"):
        fit(BC(other.spec), other)
    data = counters(str(tmp_path / "none.hdf5"))
    with pytest.raises(ConfigurationError, match=r"there is no file .*none\.hdf5"):
        fit(BC(data.spec), data)
    data = counters(path)
    with pytest.raises(ConfigurationError, match=r"make data\.total_updates smaller"):
        fit(BC(data.spec), data, limit_train_batches=2)


# --- resuming ---------------------------------------------------------------------------------


def same(a, b, path=""):
    """Assert that two nests of plain data and tensors are equal to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b or (a != a and b != b), path


def train(make_agent, data, folder, epochs, ckpt_path=None):
    """Train for `epochs` epochs of a fixed budget; returns the last checkpoint, loaded."""
    torch.manual_seed(1)
    agent = make_agent(data.spec)
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = make_trainer(
        max_epochs=epochs, callbacks=[saver], enable_checkpointing=True, limit_val_batches=1.0
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*max_epochs")
        warnings.filterwarnings("ignore", ".*callbacks used to create")
        trainer.fit(agent, data, ckpt_path=ckpt_path)
    return torch.load(Path(folder) / "last.ckpt", weights_only=True)


CASES = {
    "bc": (partial(BC, encoder=partial(MLPEncoder, normalize=True), lr_schedule="linear"), {}),
    "bc-box": (partial(BC, entropy_coef=0.1), {"action": "box", "val_explore": True}),
    "iql": (partial(IQL, network=NARROW, lr_schedule="cosine"), {"n_step": 2}),
    "iql-disk": (partial(IQL, network=NARROW), {"action": "multi_discrete", "storage": "disk"}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, tmp_path):
    make_agent, kwargs = CASES[case]
    path = record(tmp_path / "data.hdf5", action=kwargs.get("action", "discrete"), episodes=20)
    make = partial(offline, path, updates_per_epoch=70, total_updates=700, val_episodes=2, **kwargs)
    whole = train(make_agent, make(), tmp_path / "whole", 4)
    train(make_agent, make(), tmp_path / "half", 2)
    halves = train(make_agent, make(), tmp_path / "rest", 4, tmp_path / "half" / "last.ckpt")
    assert whole["frames"] == 280
    for key in ("state_dict", "optimizer_states", "frames", "epoch", "global_step"):
        same(whole[key], halves[key], key)
    for checkpoint in (whole, halves):
        checkpoint["OfflineDataModule"].pop("texts")  # the name of a folder
    same(whole["OfflineDataModule"], halves["OfflineDataModule"])


def test_resumed_texts_equal_uninterrupted(tmp_path):
    path = record(tmp_path / "data.hdf5", observation="text", episodes=20)
    agent = partial(BC, encoder=partial(LLMEncoder, model=tiny_model("bert", tmp_path / "bert")))
    make = partial(offline, path, observation="text", total_updates=700, val_episodes=2)
    whole = train(agent, make(), tmp_path / "whole", 2)
    train(agent, make(), tmp_path / "half", 1)
    halves = train(agent, make(), tmp_path / "rest", 2, tmp_path / "half" / "last.ckpt")
    same(whole["state_dict"], halves["state_dict"])


def test_the_rng_matters(tmp_path):
    path = record(tmp_path / "data.hdf5", episodes=20)
    whole = train(BC, offline(path), tmp_path / "whole", 2)
    train(BC, offline(path), tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = torch.Generator().manual_seed(9).get_state()
    checkpoint["OfflineDataModule"]["ranks"][0]["rng"]["torch"] = state
    torch.save(checkpoint, tmp_path / "last.ckpt")
    other = train(BC, offline(path), tmp_path / "rest", 2, tmp_path / "last.ckpt")
    with pytest.raises(AssertionError):
        same(whole["state_dict"], other["state_dict"])


def test_another_file_is_noticed(tmp_path):
    path = tmp_path / "data.hdf5"
    count(path, [3, 5])
    make = partial(counters, str(path), updates_per_epoch=10, val_episodes=2)
    train(BC, make(), tmp_path / "half", 1)
    count(path, [3])  # one more
    told = r"holds 3 episodes of 11 steps and mean return 9, but .* 2 episodes of 8 steps and mean"
    with pytest.warns(UserWarning, match=told):
        train(BC, make(), tmp_path / "rest", 2, tmp_path / "half" / "last.ckpt")


def test_a_second_fit_goes_on_and_another_agent_begins(tmp_path):
    path = record(tmp_path / "data.hdf5", episodes=20)
    data = offline(path, total_updates=100)
    agent = fit(BC(data.spec, partial(MLPEncoder, normalize=True)), data)
    seen = agent.encoder.norm.running.count
    data.total_updates = 200
    fit(agent, data)
    assert agent.frames == data.frames == 200
    assert agent.encoder.norm.running.count == seen == 60
    other = fit(BC(data.spec), data)
    assert other.frames == data.frames == 200
    with pytest.warns(UserWarning, match=r"data\.total_updates=200 are used up by the 200"):
        make_trainer().fit(other, data)


# --- the command line -------------------------------------------------------------------------

CONFIG = """
model: {{class_path: BC}}
data:
  class_path: OfflineDataModule
  init_args:
    {{dataset: {path}, env: Counter-v0, updates_per_epoch: 64, total_updates: 128, val_episodes: 2}}
trainer:
  accelerator: cpu
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: {folder}/logs, name: bc}}
checkpoint: {{dirpath: {folder}/ckpt}}
"""


def test_the_command_line_speaks_of_updates(tmp_path, capfd):
    path = count(tmp_path / "data.hdf5", [3, 4])
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(path=path, folder=tmp_path))
    main(["fit", "--config", str(config)])
    said = capfd.readouterr()
    assert re.search(r"trained 128 of 128 updates at [\d,]+ updates/s", said.out)
    assert "128/128" in said.err
    assert "update/s" in said.err
    (logs,) = (tmp_path / "logs" / "bc").iterdir()
    events = EventAccumulator(str(logs)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"time/updates", "time/updates_per_second", "loss/policy", "val/return"} <= tags
    assert not {"time/frames", "time/fps"} & tags
    assert [e.step for e in events.Scalars("loss/policy")] == list(range(1, 129))
    assert [e.value for e in events.Scalars("time/updates")] == list(range(1, 129))
    main(["fit", "--config", str(config), "--ckpt_path=last", "--data.total_updates=256"])
    assert "trained 256 of 256 updates" in capfd.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", str(config), "--data.dataset=none.hdf5"])
    assert exit_info.value.code == 2
    assert "there is no file none.hdf5" in capfd.readouterr().err
