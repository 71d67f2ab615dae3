"""Wrong command lines: each ends in one sentence that says what would be right."""

import re
import warnings

import pytest
from test_cli import CARTPOLE, SHORT, error_of

from rl_lightning.cli import main

DQN = ["--config", "configs/dqn/cartpole.yaml", "--trainer.logger=false"]
MISTAKES = {
    # Numbers that nothing can be done with.
    "--seed_everything=-1": "seed_everything must be at least 0, not -1",
    "--seed_everything=99999999999": "seed_everything must be at most 4,294,967,295",
    "--data.seed=-1": "data.seed must be at least 0, not -1",
    "--data.val_seed=-1": "data.val_seed must be at least 0, not -1",
    "--data.val_transcript_steps=-3": "data.val_transcript_steps must be at least 0, not -3",
    "--data.num_envs=1e9": "data.num_envs must be at most 1,000,000",
    "--model.optimizer.lr=-1": "model.optimizer: Invalid learning rate: -1.0",
    "--model.optimizer.lr=.nan": "model.optimizer.lr: expected a number, not nan",
    "--model.optimizer=torch.optim.SGD --model.optimizer.lr=.inf": "lr must be finite, not inf",
    "--model.optimizer.betas=[2, 2]": "model.optimizer: Invalid beta parameter",
    "--model.entropy_coef=.inf": "entropy_coef must be finite, not inf",
    "--data.rollout_steps=1e13": "not enough memory .*make data.num_envs, data.rollout_steps",
    "--data.rollout_steps=1e18 --data.minibatch_size=null": "not enough memory",
    # Null where it means nothing.
    "--data.num_envs=null": "data.num_envs: null is no value; leave it out",
    "--data.val_seed=null": "data.val_seed: null is no value",
    "--model.encoder=null": "model.encoder: null is no value",
    "--data.env=null": "data: RolloutDataModule needs env",
    # Arguments of the trainer.
    "--trainer.precision=16": "trainer.precision: 16 computes in float16.*bf16-mixed",
    "--trainer.precision=16-mixed": "trainer.precision: 16-mixed computes in float16",
    "--trainer.gradient_clip_val -1": "trainer.gradient_clip_val: -1 is no largest norm",
    "--trainer.check_val_every_n_epoch=0": "check_val_every_n_epoch: 0 must be at least 1",
    "--trainer.devices=2000": "trainer.devices: 2000 would start as many processes",
    "--trainer.devices=x": "trainer: `devices` .* should be an int > 0",
    "--trainer.max_epoch=1": "unrecognized.*did you mean trainer.max_epochs",
    "--trainr.max_epochs=1": "unrecognized.*did you mean trainer",
    "--trainer=[1, 2]": "trainer",
    # Classes of another kind, or none.
    "--model=MLPEncoder": "model: MLPEncoder is no agent; there are .*PPO",
    "--model=torch.nn.Linear": "model: torch.nn.Linear is no agent",
    "--model=Agent": "model: Agent is what others are derived from; choose one of .*PPO",
    "--model=": "model: no class '' can be imported.*there are A2C",
    "--model=[1]": r"model: a class is written as NAME, or \{class_path.*, not \[1\]",
    "--data=PPO": "data: PPO is no data module; there are .*RolloutDataModule",
    "--data=RLDataModule": "data: RLDataModule is what others are derived from",
    "--data=OfflineDataModule": "data: OfflineDataModule needs dataset",
    "--model.encoder=PPO": "model.encoder: PPO is no encoder; there are .*MLPEncoder",
    "--model.encoder=Encoder": "model.encoder: Encoder is what others are derived from",
    "--model.optimizer=SDG": "model.optimizer: no class 'SDG'.*nearest are SGD",
    "--trainer.callbacks+=EarlyStoping": "no class 'EarlyStoping'.*nearest are EarlyStopping",
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=x": (
        "EarlyStopping has no argument 'monitr'; did you mean 'monitor'"
    ),
    # Words that are missing or too many.
    "--data.num_envs": "--data.num_envs needs a value behind it",
    "--config": "--config needs a value behind it",
    "--config=": "config: expected a file",
    "--config=tests": "config: Path is not a file: .*tests'",
    "--data.num_envs=${nowhere}": r"data.num_envs: the interpolation .* there is no nowhere",
    "--data.num_envs=${oc.env:NO_SUCH_WORD}": "data.num_envs: .*'NO_SUCH_WORD' not found",
    "--data.num_envs=${": "data.num_envs: the interpolation",
}  # fmt: skip


@pytest.mark.parametrize("option", MISTAKES)
def test_a_mistake_ends_with_one_sentence(option, capfd):
    options = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    words = re.split(r" (?=-)", option)
    if words[-1] == "-1":  # the value of the option before it
        words = option.split(" ")
    error = error_of(["fit", *CARTPOLE, *SHORT, *options, *words], capfd, status=None)
    assert re.search(MISTAKES[option], error), error


PAIRS = {
    "--model=DQN": (CARTPOLE, "DQN does not learn from rollouts: .*give --data ReplayDataModule"),
    "--model=BC": (CARTPOLE, "BC does not learn from rollouts: .*give --data OfflineDataModule"),
    "--model=PPO": (DQN, "PPO does not learn from replay: .*give --data RolloutDataModule"),
    "--data=RolloutDataModule": (DQN, "DQN does not learn from rollouts: .*ReplayDataModule"),
    "--data=ReplayDataModule --data.total_frames=9000": (
        CARTPOLE,
        "PPO does not learn from replay: .*give --data RolloutDataModule",
    ),
    "--model=DQN --data=ReplayDataModule --data.total_frames=9000": (
        CARTPOLE,
        "clip by model.max_grad_norm: give --trainer.gradient_clip_val null",
    ),
}


@pytest.mark.parametrize("options", PAIRS)
def test_an_agent_over_anothers_configuration_is_told_its_data_module(options, capfd):
    config, message = PAIRS[options]
    more = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    error = error_of(["fit", *config, *more, *options.split()], capfd)
    assert re.search(message, error), error


ROOM = {
    "--data.buffer_frames=64": "buffer_frames: 64 hold less than data.batch_size: 128",
    "--data.buffer_frames=999": "buffer_frames: 999 hold less than data.warmup_frames: 1000",
    "--data.n_step=10_000": r"hold less than data.n_step: 10000 · num_envs: 4; .* least 40000",
}


@pytest.mark.parametrize("option", ROOM)
def test_a_buffer_without_room_for_what_it_is_for(option, capfd):
    error = error_of(["fit", *DQN, "--trainer.enable_checkpointing=false", option], capfd)
    assert re.search(ROOM[option], error), error


MONITORS = {
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/retrun": "EarlyStopping",
    "--checkpoint.monitor=val/retrun": "checkpoint.monitor",
}


@pytest.mark.parametrize("options", MONITORS)
def test_a_misspelt_metric_is_answered_with_those_there_are_nearest_first(options, tmp_path, capfd):
    more = ["--trainer.logger=false", f"--checkpoint.dirpath={tmp_path}"]
    more += ["--data.total_frames=256", "--trainer.check_val_every_n_epoch=1"]
    error = error_of(["fit", *CARTPOLE, *SHORT, *more, *options.split()], capfd)
    there = "no metric 'val/retrun' is logged; there is val/return, val/return_std"
    assert f"{MONITORS[options]}: {there}" in error


def test_a_run_without_validation_says_why_there_is_no_best_checkpoint(tmp_path, capfd):
    more = ["--trainer.logger=false", f"--checkpoint.dirpath={tmp_path}"]
    main(["fit", *CARTPOLE, *SHORT, *more, "--data.total_frames=256"])
    assert "no best checkpoint: val/return was never logged" in capfd.readouterr().out


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_trainer_that_may_do_nothing_says_that_nothing_is_trained(limit, tmp_path):
    more = ["--trainer.logger=false", f"--checkpoint.dirpath={tmp_path}"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", *CARTPOLE, *SHORT, *more, f"--trainer.{limit}=0"])
    said = [str(w.message) for w in caught if "is trained" in str(w.message)]
    assert len(said) == 1
    assert f"nothing is trained: trainer.{limit} is 0" in said[0]
    assert not [w for w in caught if "ends training before" in str(w.message)]
