"""The trainer's arguments and the data modules' counts, from Python."""

import math
import warnings

import numpy as np
import pytest
from training import make_trainer

from rl_lightning import (
    DQN,
    PPO,
    OfflineDataModule,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.core.errors import ConfigurationError

SMALL = {"env": "Counter-v0", "num_envs": 2, "rollout_steps": 6, "total_frames": 24}
REPLAY = {
    "env": "Counter-v0",
    "num_envs": 2,
    "buffer_frames": 100,
    "batch_size": 4,
    "warmup_frames": 8,
    "frames_per_epoch": 8,
    "total_frames": 16,
}
WRONG = {
    "gradient_clip_val": [-1, -0.5, math.nan, math.inf],
    "check_val_every_n_epoch": [0, -1],
    "val_check_interval": [0],
    "accumulate_grad_batches": [0],
    "log_every_n_steps": [-1],
    "num_sanity_val_steps": [-2],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_arguments_with_which_training_would_fail_later_are_refused(name, value):
    data = RolloutDataModule(**SMALL)
    with pytest.raises(ConfigurationError, match=rf"trainer\.{name}.*{value}"):
        make_trainer(**{name: value}).fit(PPO(data.spec), data)


@pytest.mark.parametrize("name", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_trainer_that_may_do_nothing_says_so_once(name):
    for data, agent in ((RolloutDataModule(**SMALL), PPO), (ReplayDataModule(**REPLAY), DQN)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = make_trainer(gradient_clip_val=None, **{name: 0})
            trainer.fit(agent(data.spec), data)
        said = [str(w.message) for w in caught if "nothing is trained" in str(w.message)]
        assert len(said) == 1
        assert f"trainer.{name} is 0" in said[0]
        assert not [w for w in caught if "ends training before" in str(w.message)]
        assert data.frames == 0


COUNTS = {
    RolloutDataModule: (
        {**SMALL, "minibatch_size": 12},
        ("num_envs", "rollout_steps", "total_frames", "minibatch_size", "passes", "val_episodes"),
    ),
    ReplayDataModule: (
        REPLAY,
        ("buffer_frames", "batch_size", "warmup_frames", "n_step", "total_frames", "her_goals"),
    ),
    OfflineDataModule: (
        {"dataset": "x.hdf5", "env": "Counter-v0"},
        ("batch_size", "updates_per_epoch", "total_updates", "n_step", "val_num_envs"),
    ),
}
CASES = [(module, name) for module, (_, names) in COUNTS.items() for name in names]


@pytest.mark.parametrize(("module", "name"), CASES)
def test_counts_may_be_whole_floats_and_nothing_else(module, name):
    given = COUNTS[module][0]
    whole = getattr(module(**given), name)
    for kind in (float, np.float64, np.int64):
        same = getattr(module(**{**given, name: kind(whole)}), name)
        assert same == whole
        assert type(same) is int
    for wrong in (whole + 0.5, math.nan, math.inf, "4", True):
        with pytest.raises(ConfigurationError, match=rf"data\.{name} must be a whole number"):
            module(**{**given, name: wrong})


def test_numbers_of_environments_that_are_a_slip_of_the_keyboard_are_refused():
    for name in ("num_envs", "val_num_envs"):
        with pytest.raises(ConfigurationError, match=rf"data\.{name} must be at most 1,000,000"):
            RolloutDataModule(**{**SMALL, name: 1e9})
    with pytest.raises(ConfigurationError, match=r"minibatch_size: 7 does not divide"):
        RolloutDataModule(**{**SMALL, "rollout_steps": 10**9, "minibatch_size": 7})


@pytest.mark.parametrize("module", COUNTS)
def test_negative_transcripts_are_refused(module):
    with pytest.raises(ConfigurationError, match=r"data\.val_transcript_steps must be at least 0"):
        module(**{**COUNTS[module][0], "val_transcript_steps": -3})


def test_a_run_whose_counts_were_whole_floats():
    floats = {k: float(v) if isinstance(v, int) else v for k, v in SMALL.items()}
    data = RolloutDataModule(**floats, passes=2.0, minibatch_size=6.0, val_episodes=2.0)
    make_trainer(limit_val_batches=1.0).fit(PPO(data.spec), data)
    assert data.frames == 24


@pytest.mark.parametrize("module", [RolloutDataModule, ReplayDataModule, OfflineDataModule])
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, math.nan])
def test_seeds_that_no_generator_takes_are_refused(module, seed):
    given = COUNTS[module][0]
    for name in ("seed", "val_seed") if module is not OfflineDataModule else ("val_seed",):
        with pytest.raises(ConfigurationError, match=rf"data\.{name} must be"):
            module(**{**given, name: seed})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"batch_size": 101}, "buffer_frames: 100 hold less than data.batch_size: 101"),
        ({"collect_frames": 102, "frames_per_epoch": 102}, "less than data.collect_frames: 102"),
        ({"n_step": 51}, r"data.n_step: 51 · num_envs: 2; make it at least 102"),
    ],
)
def test_a_buffer_without_room_is_refused_at_once(data, message):
    with pytest.raises(ConfigurationError, match=message):
        ReplayDataModule(**{**REPLAY, **data})


def test_a_buffer_without_room_for_the_warm_up_is_refused_before_training():
    data = ReplayDataModule(**{**REPLAY, "warmup_frames": 101, "total_frames": 200})
    with pytest.raises(ConfigurationError, match=r"buffer_frames: 100 hold less than .*: 101"):
        make_trainer(gradient_clip_val=None).fit(DQN(data.spec), data)
