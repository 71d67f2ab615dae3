"""Fewer episodes are a fair share of the episodes, and one that never ends is spoken of."""

import warnings
from types import SimpleNamespace

import pytest
from test_evaluation import Episodes, always
from training import fit, make_trainer

from rl_lightning import DQN, PPO, ReplayDataModule
from rl_lightning.callbacks import FrameProgressBar
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.collect import patience

SHORT, LONG = 2, 20


def uneven(**kwargs):
    sizes = {"num_envs": 2, "rollout_steps": 16, "total_frames": 32}
    evaluation = {"val_episodes": 16, "val_num_envs": 4, "val_seed": 1_000_000}
    return RolloutDataModule("Uneven-v0", **{**sizes, **evaluation, **kwargs})


def lengths(stage, data=None, **limit):
    """Of the episodes that one run of `stage` counts."""
    data, kept = data or uneven(), Episodes()
    trainer = make_trainer(**{"limit_val_batches": 1.0, "callbacks": [kept], **limit})
    agent = PPO(data.spec)
    if stage == "predict":
        episodes = trainer.predict(agent, data)
    elif stage == "test":
        kept.on_test_batch_end = lambda *args: kept.episodes.append(args[3])
        trainer.test(agent, data, verbose=False)
        episodes = kept.episodes
    else:
        trainer.validate(agent, data, verbose=False)
        episodes = kept.episodes[-1]
    return sorted(e["length"] for e in episodes)


@pytest.mark.parametrize("limit", [8, 0.5])
@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("validate", "limit_val_batches"),
        ("test", "limit_test_batches"),
        ("predict", "limit_predict_batches"),
    ],
)
def test_a_limit_is_split_over_environments_as_val_episodes_are(stage, name, limit):
    played = lengths(stage, **{name: limit})
    assert played == [SHORT] * 2 + [LONG] * 6 == lengths(stage, uneven(val_episodes=8))


def test_a_limit_beyond_all_episodes_is_none():
    assert lengths("validate", limit_val_batches=99) == lengths("validate")


def test_one_episode_is_that_of_the_first_environment():
    assert lengths("validate", limit_val_batches=1) == [SHORT]


@pytest.mark.parametrize("limit", [4, 0.25])
def test_a_limit_holds_in_training_too(limit):
    """And what the best checkpoint is chosen by is the mean of these."""
    data, kept = uneven(), Episodes()
    fit(PPO(data.spec), data, callbacks=[kept], limit_val_batches=limit)
    assert sorted(e["length"] for e in kept.episodes[0]) == [SHORT] + [LONG] * 3
    mean = sum(e["return"] for e in kept.episodes[0]) / 4
    assert kept.metrics[0]["val/return"] == pytest.approx(mean)


def test_zero_switches_validation_off():
    data, kept = uneven(), Episodes()
    fit(PPO(data.spec), data, callbacks=[kept], limit_val_batches=0)
    assert not kept.episodes


def test_a_share_of_less_than_one_episode_is_explained():
    with pytest.raises(Exception, match=r"limit_val_batches"):
        lengths("validate", limit_val_batches=0.01)


@pytest.mark.parametrize("limit", [8, 0.5])
def test_only_what_is_counted_is_recorded(tmp_path, limit):
    data = uneven(record=str(tmp_path / "out.hdf5"))
    played = lengths("predict", data, limit_predict_batches=limit)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "out.hdf5") as file:
        recorded = sorted(len(group["rewards"]) for group in file.values())
    assert recorded == played


def test_another_limit_is_another_loader():
    """A tool that changes the limit between two evaluations gets what it asks for."""
    data = uneven()
    data.trainer = make_trainer(limit_val_batches=8)
    first = data.val_dataloader()
    assert data.val_dataloader() is first
    data.trainer.limit_val_batches = 0.25
    second = data.val_dataloader()
    assert (second.episodes, len(second), second.env.num_envs) == (4, 16, 4)
    data.teardown("validate")


def test_fast_dev_run_goes_once_through_everything():
    data, kept = uneven(), Episodes()
    trainer = make_trainer(fast_dev_run=True, callbacks=[kept])
    agent = PPO(data.spec)
    trainer.fit(agent, data)
    assert (trainer.global_step, len(kept.episodes[0])) == (1, 1)
    assert trainer.test(agent, data, verbose=False)[0]["test/length"] == SHORT
    assert len(trainer.predict(agent, data)) == 1


def test_the_bar_knows_how_many_episodes_there_will_be(capsys):
    data = uneven()
    bars = {"enable_progress_bar": True, "callbacks": [FrameProgressBar()]}
    make_trainer(limit_val_batches=8, **bars).validate(PPO(data.spec), data, verbose=False)
    assert "0/8 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "dev", "episodes", "length"),
    [(4, False, 2, 2), (0.5, False, 4, 8), (1, 1, 1, 1), (3, 3, 2, 2), (99, False, 8, 8)],
)
def test_ranks_share_a_limit(limit, dev, episodes, length):
    data = uneven()
    asked = {"limit_val_batches": limit, "fast_dev_run": dev}
    data.trainer = SimpleNamespace(world_size=2, global_rank=1, **asked)  # type: ignore[assignment]
    loader = data.val_dataloader()
    assert (loader.episodes, len(loader)) == (episodes, length)
    assert loader.seed == data.val_seed + loader.env.num_envs
    data.teardown("validate")


def test_a_limit_that_ranks_cannot_share_is_explained():
    data = uneven()
    asked = {"limit_test_batches": 3, "fast_dev_run": False}
    data.trainer = SimpleNamespace(world_size=2, global_rank=0, **asked)  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"limit_test_batches: 3 .* 2 ranks"):
        data.test_dataloader()


def replay():
    sizes = {"num_envs": 1, "total_frames": 20, "warmup_frames": 5, "frames_per_epoch": 5}
    return ReplayDataModule("Counter-v0", buffer_frames=50, batch_size=8, collect_frames=1, **sizes)


@pytest.mark.parametrize("limit", [{"overfit_batches": v} for v in (1, 0.5, 1.0)])
@pytest.mark.parametrize("agent", [PPO, DQN])
def test_overfitting_to_a_few_batches_is_refused(agent, limit):
    data = uneven() if agent is PPO else replay()
    with pytest.raises(ConfigurationError, match=r"overfit_batches.*total_frames"):
        fit(agent(data.spec), data, gradient_clip_val=None, **limit)


@pytest.mark.parametrize("limit", [1, 3, 0.5])
@pytest.mark.parametrize("agent", [PPO, DQN])
def test_training_on_a_part_of_an_epoch_is_refused(agent, limit):
    data = uneven() if agent is PPO else replay()
    with pytest.raises(ConfigurationError, match=r"limit_train_batches.*total_frames"):
        fit(agent(data.spec), data, gradient_clip_val=None, limit_train_batches=limit)


def test_training_on_all_of_an_epoch_is_not_refused():
    data = uneven()
    fit(PPO(data.spec), data, limit_train_batches=1.0)
    assert data.frames == 32


# --- episodes that never end --------------------------------------------------------------------

NEVER = 10**9


def impatient(monkeypatch, steps=30, seconds=1e9):
    monkeypatch.setattr(patience, "STEPS", steps)
    monkeypatch.setattr(patience, "SECONDS", seconds)


@pytest.mark.parametrize(
    "data",
    [
        {"env": "Counter-v0", "env_kwargs": {"length": NEVER}},
        {"env": "Counter-v0", "env_kwargs": {"length": NEVER}, "vectorization": "native"},
        {"env": "Uneven-v0", "env_kwargs": {"long": NEVER}, "val_seed": 0},  # one of four ends
    ],
    ids=["sync", "native", "one environment only"],
)
def test_waiting_for_an_episode_that_never_ends_is_spoken_of(monkeypatch, data):
    impatient(monkeypatch)
    module = RolloutDataModule(val_episodes=8, val_num_envs=4, **data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # which ends the waiting here
        warnings.filterwarnings("ignore", "GPU available but not used")
        with pytest.raises(UserWarning, match=r"of '\w+-v0' to end.*max_episode_steps"):
            make_trainer(limit_val_batches=1.0).validate(PPO(module.spec), module, verbose=False)


def test_slow_steps_are_spoken_of_after_a_time(monkeypatch):
    impatient(monkeypatch, steps=NEVER, seconds=0.0)
    module = RolloutDataModule("Counter-v0", env_kwargs={"length": 100}, val_episodes=1)
    with pytest.warns(UserWarning, match="max_episode_steps"):
        make_trainer(limit_val_batches=1.0).validate(PPO(module.spec), module, verbose=False)


def test_long_episodes_are_legitimate_and_spoken_of_ever_more_rarely(monkeypatch):
    impatient(monkeypatch)
    module = RolloutDataModule("Counter-v0", env_kwargs={"length": 500}, val_episodes=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(limit_val_batches=1.0)
        metrics = trainer.validate(always(module.spec, 0), module, verbose=False)[0]
    assert metrics["val/length"] == 500
    assert sum("max_episode_steps" in str(w.message) for w in caught) == 5  # 30, 60, … 480


@pytest.mark.parametrize("kwargs", ["env_kwargs", "val_env_kwargs"])
def test_the_way_out_works(kwargs):
    arguments = {"env_kwargs": {"length": NEVER}}
    arguments[kwargs] = {**arguments.get(kwargs, {}), "max_episode_steps": 7}
    module = RolloutDataModule("Counter-v0", val_episodes=2, **arguments)
    trainer = make_trainer(limit_val_batches=1.0)
    assert trainer.validate(PPO(module.spec), module, verbose=False)[0]["val/length"] == 7
