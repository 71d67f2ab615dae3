"""QTable on rollouts and on replay, and how it meets the trainer without an optimizer."""

import csv
import warnings
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from probes import MASKS, batch
from tabular_probes import constant, fit
from tabular_probes import train as train_table
from tensordict import TensorDict
from training import make_trainer

from rl_lightning import QTable, ReplayDataModule, RolloutDataModule, TableEncoder
from rl_lightning.agents.q_table import METHODS
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec, Rollout
from rl_lightning.data.collect.collector import Collector
from rl_lightning.envs import make_vector_env

s = gym.spaces


def train(env, method="q_learning", frames=640, data=None, **kwargs):
    data = {"num_envs": 4, "rollout_steps": 4, **(data or {})}
    kwargs = {"exploration": constant(1.0), "alpha": 0.5, **kwargs}
    return train_table(env, frames, data=data, method=method, **kwargs)


def test_what_a_rollout_becomes():
    spec = EnvSpec(s.Discrete(2), s.Discrete(2))
    agent = QTable(spec, method="sarsa", gamma=0.9, exploration=constant(0.0))
    agent.policy.q.copy_(torch.tensor([[1, 2], [4, 3]]))
    flags = torch.tensor([[False, True], [False, False]])
    mask = torch.tensor([[[1, 1], [1, 0]], [[0, 1], [1, 1]]]).bool()
    steps = {
        "obs": torch.tensor([[0, 1], [1, 0]]),
        "action": torch.tensor([[0, 1], [1, 0]]),
        "reward": torch.ones(2, 2),
        "terminated": flags,
        "truncated": flags.flip(0, 1),  # the other environment, at the other step
        "action_mask": mask,
    }
    rollout = Rollout(
        TensorDict(steps, [2, 2]),
        last_obs=torch.tensor([1, 0]),
        final_obs=torch.tensor([0]),
        final_index=(torch.tensor([1]), torch.tensor([0])),
        last_mask=torch.tensor([[True, True], [True, False]]),
        final_mask=torch.tensor([[True, False]]),
    )
    out = agent.prepare(rollout)
    assert out["discount"].tolist() == [[pytest.approx(0.9), 0], [pytest.approx(0.9)] * 2]
    assert out["next_obs"].tolist() == [[1, 0], [0, 0]]  # the final observation, not the next first
    assert out["next_action_mask"].int().tolist() == [[[0, 1], [1, 1]], [[1, 0], [1, 0]]]
    assert out["next_action"].tolist() == [[1, 0], [0, 0]]  # drawn where none was taken
    assert out["time"].tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_a_rollout_brings_the_masks_of_what_follows(vectorization):
    kwargs = {"task": "truncated", "observation": "discrete", "mask": True, "horizon": 3}
    env = make_vector_env("Probe-v0", 2, vectorization, kwargs)
    agent = QTable(EnvSpec(env.single_observation_space, env.single_action_space))
    even, odd = ([[bool(v) for v in m]] * 2 for m in MASKS["discrete"])
    rollout = Collector(env, 3, seed=0).collect(agent)
    assert rollout.final_mask.tolist() == odd
    assert rollout.last_mask.tolist() == (odd if vectorization == "native" else even)
    rollout = Collector(env, 2, seed=0).collect(agent)
    assert rollout.final_mask is None
    assert rollout.last_mask.tolist() == even


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("method", METHODS)
def test_collecting_keeps_to_the_mask(method, vectorization):
    # The probe raises when it is not kept to.
    env = {"task": "truncated", "observation": "discrete", "mask": True}
    train("Probe-v0", method, data={"env_kwargs": env, "vectorization": vectorization})


@pytest.mark.learning
@pytest.mark.parametrize("observation", ["discrete", "text", "small_image"])
@pytest.mark.parametrize("method", METHODS)
def test_probes_of_known_values(method, observation):
    def values(task, *states):
        env = {"task": task, "observation": observation}
        agent = train("Probe-v0", method, data={"env_kwargs": env}, gamma=0.7)
        return agent.inspect(agent.preprocess(batch(observation, *states)))["values"].flatten()

    assert values("constant", 0).tolist() == pytest.approx([1, 1], abs=0.01)
    assert values("observation", 0, 1).tolist() == pytest.approx([-1, -1, 1, 1], abs=0.01)
    assert values("action", 0).tolist() == pytest.approx([-1, 1], abs=0.01)
    assert values("delayed", 0, 1).tolist() == pytest.approx([0.7, 0.7, 1, 1], abs=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("truncate", [True, False])
def test_a_time_limit_is_not_an_end(method, truncate):
    # The last observation is never acted in, so it is worth the initial value.
    env = {"env_kwargs": {"length": 2, "truncate": truncate}}
    agent = train("Steps-v0", method, gamma=0.5, initial_value=6.0, alpha=1.0, data=env)
    last = 1 + 0.5 * 6 if truncate else 1
    expected = [1 + 0.5 * last] * 2 + [last] * 2 + [6] * 2
    assert agent.policy.q.mean(0).flatten().tolist() == pytest.approx(expected)


@pytest.mark.learning
@pytest.mark.parametrize("terminate", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_native_environments_and_their_resets(method, terminate):
    env = {"task": "truncated", "observation": "discrete", "terminate": terminate}
    data = {"vectorization": "native", "env_kwargs": env, "rollout_steps": 30}
    agent = train("Probe-v0", method, 4_800, data=data, gamma=0.8, alpha=1.0, alpha_decay=0.6)
    # One state: four steps of five go on with its own value, or with a time limit all of them.
    goes_on = 0.8 if terminate else 1.0
    assert agent.policy.q[:, 0].flatten().tolist() == pytest.approx(
        [1 / (1 - goes_on * 0.8)] * 2 * len(agent.policy.q), abs=0.15
    )


@pytest.mark.parametrize("method", METHODS)
def test_replay(method):
    env = {"task": "delayed", "observation": "text"}
    data = ReplayDataModule(
        "Probe-v0", 4, batch_size=32, warmup_frames=32, frames_per_epoch=400, total_frames=1600,
        env_kwargs=env, seed=0,
    )  # fmt: skip
    agent = QTable(data.spec, method=method, alpha=0.5, gamma=0.7)
    if method == "sarsa":
        with pytest.raises(ConfigurationError, match="does not learn from replay"):
            fit(agent, data)
        return
    fit(agent, data)
    values = agent.inspect(agent.preprocess(batch("text", 0, 1)))["values"]
    assert values.flatten().tolist() == pytest.approx([0.7, 0.7, 1, 1], abs=0.02)


def test_checkpoints_logs_and_steps_without_an_optimizer(tmp_path):
    data = RolloutDataModule(
        "Probe-v0", 4, 4, rollouts_per_epoch=5, total_frames=240, val_episodes=4, seed=0,
        env_kwargs={"task": "action", "observation": "discrete"},
    )  # fmt: skip
    agent = QTable(data.spec, exploration=constant(0.25))
    saver = ModelCheckpoint(
        tmp_path, "{epoch}-{step}", monitor="val/return", mode="max", save_top_k=-1
    )
    logger = CSVLogger(tmp_path, "logs")
    trainer = fit(
        agent, data, callbacks=[saver], enable_checkpointing=True, logger=logger,
        log_every_n_steps=2, limit_val_batches=1.0,
    )  # fmt: skip
    assert trainer.global_step == 15
    assert len(saver.best_k_models) == 3
    assert float(saver.best_model_score) == 1.0
    saved = torch.load(saver.best_model_path, weights_only=True)
    assert saved["state_dict"]["policy.q"].shape == (1, 3, 2)
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        table = list(csv.DictReader(file))
    # Frames are the axis: rollouts of 16, every second of them logged.
    logged = [row for row in table if row["value/q"]]
    assert [int(row["step"]) for row in logged] == list(range(32, 241, 32))
    assert {float(row["explore/epsilon"]) for row in logged} == {0.25}
    assert [int(row["step"]) for row in table if row["val/return"]] == [80, 160, 240]
    assert float(logged[-1]["table/cells"]) == 2.0


def test_evaluating_changes_nothing(tmp_path):
    def end(**trainer):
        torch.manual_seed(0)
        data = RolloutDataModule(
            "TextMaze-v0", 4, 8, total_frames=256, val_env_kwargs={"seed_range": [5, 9]}, seed=0,
            val_episodes=4,
        )  # fmt: skip
        agent = QTable(data.spec, encoder=partial(TableEncoder, capacity=1000))
        fit(agent, data, **trainer)
        return agent.state_dict()

    plain, judged = end(), end(limit_val_batches=1.0)
    assert len(plain["policy.encoder._extra_state"]) > 10
    assert plain["policy.encoder._extra_state"] == judged["policy.encoder._extra_state"]
    for key in ("policy.q", "policy.updates"):
        assert torch.equal(plain[key], judged[key])
    assert not plain["policy.updates"][:, -1].any()  # nobody acts where unseen observations live


def test_load_from_checkpoint(tmp_path):
    data = {"env_kwargs": {"task": "delayed", "observation": "text"}}
    encoder = partial(TableEncoder, capacity=50)
    agent = train("Probe-v0", "double_q", data=data, encoder=encoder, alpha_decay=0.5)
    trainer = make_trainer()
    trainer.strategy.connect(agent)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = QTable.load_from_checkpoint(tmp_path / "a.ckpt")
    obs = batch("text", 0, 1, 2)
    expected, values = (a.inspect(a.preprocess(obs))["values"] for a in (agent, loaded))
    assert torch.equal(expected, values)
    assert values[1].sum() > 0
    assert (loaded.method, loaded.alpha_decay) == ("double_q", 0.5)
    assert loaded.exploration.start == 1.0
    assert loaded.encoder.capacity == 50


def test_one_rank_only():
    agent = QTable(EnvSpec(s.Discrete(2), s.Discrete(2)))
    agent._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(ConfigurationError, match=r"2 ranks.*trainer\.devices: 1"):
        agent.setup("fit")


def test_there_is_no_gradient_to_clip():
    data = RolloutDataModule("Steps-v0", 4, 4, total_frames=16)
    trainer = make_trainer(gradient_clip_val=0.5)
    with pytest.raises(MisconfigurationException, match="gradient_clip_val"):
        trainer.fit(QTable(data.spec), data)
