"""Wrong command lines: each ends in one sentence that says what would be right."""

import re
import warnings

import pytest
from test_cli import CARTPOLE, SHORT, error_of

from rl_lightning.cli.command import main

DQN = ["--config", "configs/dqn/cartpole.yaml", "--trainer.logger=false"]
MISTAKES = {
    # Numbers that nothing can be done with.
    "--seed_everything=-1": "seed_everything must be at least 0, not -1",
    "--data.seed=-1": "data.seed must be at least 0, not -1",
    "--model.optimizer.lr=-1": "model.optimizer: Invalid learning rate: -1.0",
    "--model.optimizer.lr=.nan": "model.optimizer.lr: expected a number, not nan",
    "--data.rollout_steps=1e13": "not enough memory .*make data.num_envs, data.rollout_steps",
    # Null where it means nothing.
    "--data.num_envs=null": "data.num_envs: null is no value; leave it out",
    "--model.encoder=null": "model.encoder: null is no value",
    "--data.env=null": "data: RolloutDataModule needs env",
    # Arguments of the trainer.
    "--trainer.precision=16": "trainer.precision: 16 computes in float16.*bf16-mixed",
    "--trainer.gradient_clip_val -1": "trainer.gradient_clip_val: -1 is no largest norm",
    "--trainer.devices=x": "trainer: `devices` .* should be an int > 0",
    "--trainer.max_epoch=1": "unrecognized.*did you mean trainer.max_epochs",
    "--trainr.max_epochs=1": "unrecognized.*did you mean trainer",
    "--trainer=[1, 2]": "trainer",
    # Classes of another kind, or none.
    "--model=MLPEncoder": "model: MLPEncoder is no agent; nearest are ",
    "--model=Agent": "model: Agent is what others are derived from; choose one of .*PPO",
    "--model=[1]": r"model: a class is written as NAME, or \{class_path.*, not \[1\]",
    "--data=PPO": "data: PPO is no data module; there are .*RolloutDataModule",
    "--data=OfflineDataModule": "data: OfflineDataModule needs dataset",
    "--model.encoder=PPO": "model.encoder: PPO is no encoder; nearest are .*MLPEncoder",
    "--model.optimizer=SDG": "model.optimizer: no class 'SDG'.*nearest are SGD",
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=x": (
        "EarlyStopping has no argument 'monitr'; did you mean 'monitor'"
    ),
    # Words that are missing or too many.
    "--data.num_envs": "--data.num_envs needs a value behind it",
    "--config=": "config: expected a file",
    "--config=tests": "config: Path is not a file: .*tests'",
    "--data.num_envs=${nowhere}": r"data.num_envs: the interpolation .* there is no nowhere",
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
    "--model=PPO": (DQN, "PPO does not learn from replay: .*give --data RolloutDataModule"),
    "--model=DQN --data=ReplayDataModule --data.total_frames=9000 --model.max_grad_norm=9": (
        CARTPOLE,
        "gradient_clip_val: 0.5 .*max_grad_norm: 9.0 are two names of one thing",
    ),
    "--trainer.gradient_clip_val=0.5": (
        ["--config", "configs/tabular/frozenlake-4x4.yaml"],
        "A table has no gradients: give --trainer.gradient_clip_val null",
    ),
}


@pytest.mark.parametrize("options", PAIRS)
def test_an_agent_over_anothers_configuration_is_told_its_data_module(options, capfd):
    config, message = PAIRS[options]
    more = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    error = error_of(["fit", *config, *more, *options.split()], capfd)
    assert re.search(message, error), error


def test_a_buffer_without_room_for_what_it_is_for(capfd):
    more = ["--trainer.enable_checkpointing=false", "--data.buffer_frames=999"]
    error = error_of(["fit", *DQN, *more], capfd)
    assert "buffer_frames: 999 hold less than data.warmup_frames: 1000" in error


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
    assert "no best checkpoint: no validation was due" in capfd.readouterr().out


def test_a_trainer_that_may_do_nothing_says_that_nothing_is_trained(tmp_path):
    more = ["--trainer.logger=false", f"--checkpoint.dirpath={tmp_path}"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", *CARTPOLE, *SHORT, *more, "--trainer.max_epochs=0"])
    said = [str(w.message) for w in caught if "is trained" in str(w.message)]
    assert len(said) == 1
    assert "nothing is trained: trainer.max_epochs is 0" in said[0]
    assert not [w for w in caught if "ends training before" in str(w.message)]


def test_a_reward_that_there_is_not(tmp_path, capsys):
    rewards = "[{class_path: rl_lightning.GoalSimilarty, init_args: {goal: x}}]"
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: rl_lightning.PPO\ndata:\n  class_path: rl_lightning.RolloutDataModule\n"
        f"  init_args: {{env: TextMaze-v0, rewards: {rewards}}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config)])
    assert ended.value.code == 2
    assert "data.rewards: rl_lightning has no GoalSimilarty" in capsys.readouterr().err
