"""Lightning's searches for a learning rate and a batch size: they work, or say why not."""

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from recorded import offline, record
from training import make_trainer

from rl_lightning import A2C, BC, DQN, PPO
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import ReplayDataModule, RolloutDataModule


def rollouts(**kwargs):
    small = {"num_envs": 2, "rollout_steps": 8, "total_frames": 160, "seed": 1}
    return RolloutDataModule("CartPole-v1", **{**small, **kwargs})


def replay(**kwargs):
    small = {"num_envs": 2, "buffer_frames": 200, "batch_size": 8, "warmup_frames": 20, "seed": 1}
    small |= {"frames_per_epoch": 20, "total_frames": 60}
    return ReplayDataModule("CartPole-v1", **{**small, **kwargs})


def recorded(folder):
    path = record(folder / "recorded.hdf5", episodes=8)
    return offline(path, batch_size=8, updates_per_epoch=10, total_updates=20)


def trainer(folder, **kwargs):
    return make_trainer(gradient_clip_val=None, default_root_dir=folder, **kwargs)


@pytest.mark.parametrize("make_agent", [PPO, A2C])
def test_a_rate_is_searched_from_the_lowest_and_training_begins_at_frame_0(make_agent, tmp_path):
    data, rates = rollouts(normalize_reward=True), []

    class Watched(make_agent):
        def optimizer_step(self, *args, **kwargs):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            super().optimizer_step(*args, **kwargs)

    agent = Watched(data.spec)
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    made = trainer(tmp_path)
    found = Tuner(made).lr_find(agent, data, num_training=10, min_lr=1e-6, update_attr=False)
    assert rates[0] == pytest.approx(1e-6)
    assert rates == sorted(rates)
    assert len(found.results["lr"]) == len(rates) == 10
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())
    rates.clear()
    made.fit(agent, data)
    assert agent.frames == data.frames == 160
    assert len(rates) == 10
    assert len(set(rates)) == 1


def test_a_rate_is_searched_within_a_run_too(tmp_path):
    finder = LearningRateFinder(num_training_steps=5, update_attr=False)
    data = rollouts(normalize_reward=True)
    made = trainer(tmp_path, callbacks=[finder])
    made.fit(PPO(data.spec), data)
    assert data.frames == 160
    assert made.global_step == 10
    assert data._reward_norm.state_dict()["moments"][0] == 160  # the search's are forgotten


def test_a_search_for_a_rate_that_means_nothing_is_refused(tmp_path):
    cases = [
        (DQN, replay(), {"update_attr": False}, "lr_find .* DQN, which makes many updates"),
        (BC, recorded(tmp_path), {"update_attr": False}, "lr_find .* BC, which makes many updates"),
        (PPO, rollouts(), {}, "lr_find .* no lr of PPO .* update_attr=False"),
    ]
    for make_agent, data, options, why in cases:
        with pytest.raises(ConfigurationError, match=why):
            Tuner(trainer(tmp_path)).lr_find(make_agent(data.spec), data, **options)
    data = rollouts()
    agent = PPO(data.spec, lr_schedule="linear")
    with pytest.raises(ConfigurationError, match=r"lr_find .* constant, not linear"):
        Tuner(trainer(tmp_path)).lr_find(agent, data, update_attr=False)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["replay", "recorded"])
def test_a_search_for_a_batch_size_leaves_the_whole_budget(kind, steps, tmp_path):
    data = replay() if kind == "replay" else recorded(tmp_path)
    agent = (DQN if kind == "replay" else BC)(data.spec)
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=steps)
    made = trainer(tmp_path, callbacks=[finder])
    made.fit(agent, data)
    assert agent.frames == data.frames == data.total_frames
    assert made.global_step == 20
    assert data.batch_size == 4


def test_a_batch_size_that_is_none_is_not_searched(tmp_path):
    data = rollouts()
    made = trainer(tmp_path, callbacks=[BatchSizeFinder()])
    with pytest.raises(ConfigurationError, match=r"BatchSizeFinder cannot try out data\.minibatch"):
        made.fit(PPO(data.spec), data)


def test_a_search_loses_no_replay_contents(tmp_path):
    data = replay()
    made = trainer(tmp_path)
    made.fit(DQN(data.spec), data)
    made.save_checkpoint(tmp_path / "last.ckpt")
    data = replay(total_frames=100)
    made = trainer(tmp_path, callbacks=[BatchSizeFinder()])
    with pytest.raises(ConfigurationError, match="BatchSizeFinder would lose the replay contents"):
        made.fit(DQN(data.spec), data, ckpt_path=tmp_path / "last.ckpt")
