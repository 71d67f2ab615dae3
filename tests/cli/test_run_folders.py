"""No run takes the place of another's checkpoints, and `--ckpt_path last` finds its own."""

import os
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from rl_lightning.callbacks import run_folder
from rl_lightning.callbacks.run_folder import RUN_CONFIG, differences, find_checkpoint, runs_in
from rl_lightning.cli.command import main
from rl_lightning.core.errors import ConfigurationError

BASE = ["--config", "tests/cartpole.yaml", "--data.rollouts_per_epoch=1", "--data.passes=1"]
BASE += ["--data.val_episodes=1", "--trainer.enable_model_summary=false"]
BASE += ["--trainer.enable_progress_bar=false", "--data.minibatch_size=256"]
BASE += ["--trainer.check_val_every_n_epoch=1", "--data.total_frames=256"]


def run(folder, *options, verb="fit"):
    where = [f"--checkpoint.dirpath={folder}/ck"]
    where += [f"--trainer.logger.init_args.save_dir={folder}/logs"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([verb, *BASE, *where, *options])


def refused(capfd, folder, *options, verb="fit"):
    """The one sentence that a command ends with."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run(folder, *options, verb=verb)
    assert exit_info.value.code == 2
    return capfd.readouterr().err.strip().splitlines()[-1]


def frames(path):
    return torch.load(path, weights_only=True)["frames"]


def seed(folder):
    return yaml.safe_load((folder / RUN_CONFIG).read_text())["seed_everything"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


OWN = ["best.ckpt", "last.ckpt", RUN_CONFIG]


def test_runs_of_other_seeds_and_values_stay_apart_and_each_can_go_on(tmp_path, capfd):
    ck = tmp_path / "ck"
    run(tmp_path)
    assert names(ck) == OWN
    first = (ck / "last.ckpt").read_bytes()
    capfd.readouterr()
    run(tmp_path, "--seed_everything=2")
    assert f"checkpoints go to {ck}/version_1: those of" in capfd.readouterr().out
    assert names(ck) == [*OWN, "version_1"]
    assert names(ck / "version_1") == OWN
    assert names(tmp_path / "logs" / "ppo-cartpole") == ["version_0", "version_1"]
    assert (ck / "last.ckpt").read_bytes() == first

    capfd.readouterr()
    more = ["--ckpt_path=last", "--data.total_frames=512"]
    run(tmp_path, *more, "--seed_everything=2", "--trainer.log_every_n_steps=1")
    assert f"going on from {ck}/version_1/last.ckpt" in capfd.readouterr().out
    assert frames(ck / "version_1" / "last.ckpt") == 512
    assert (ck / "last.ckpt").read_bytes() == first
    assert names(ck) == [*OWN, "version_1"]  # it did not go on elsewhere

    said = refused(capfd, tmp_path, *more, "--seed_everything=3")
    assert "ckpt_path: last finds only runs of another configuration" in said
    assert "seed_everything: 2, not 3" in said

    # What was trained must be the same, not how it is evaluated.
    run(tmp_path, "--ckpt_path=best", "--data.val_episodes=2", verb="validate")
    assert f"using {ck}/best.ckpt" in capfd.readouterr().out


def test_going_on_from_a_file_stays_in_its_folder_if_it_is_this_run(tmp_path):
    ck = tmp_path / "ck"
    run(tmp_path)
    run(tmp_path, "--data.total_frames=512", f"--ckpt_path={ck}/best.ckpt")
    assert names(ck) == OWN
    assert frames(ck / "last.ckpt") == 512
    run(tmp_path, "--data.total_frames=768", f"--ckpt_path={ck}/best.ckpt", "--seed_everything=2")
    assert seed(ck / "version_2") == 2  # its logs are version_2
    assert frames(ck / "last.ckpt") == 512


def test_the_same_once_more_is_another_run_without_logs_too(tmp_path):
    options = ["--checkpoint.dirpath=null", "--trainer.logger=false"]
    for _ in range(2):
        run(tmp_path, *options, f"--trainer.default_root_dir={tmp_path}")
    assert names(tmp_path / "checkpoints") == [*OWN, "version_1"]


def test_what_an_earlier_version_left_goes_on(tmp_path, capfd):
    run(tmp_path)
    (tmp_path / "ck" / RUN_CONFIG).unlink()
    run(tmp_path, "--ckpt_path=last", "--data.total_frames=512")
    assert frames(tmp_path / "ck" / "last.ckpt") == 512
    assert names(tmp_path / "ck") == OWN  # from here on it is known


def test_a_run_that_failed_before_its_first_checkpoint_takes_no_place(tmp_path, capfd):
    assert "A2C is right for" in refused(
        capfd, tmp_path, "--model=A2C", "--data.passes=2", "--data.minibatch_size=null"
    )
    run(tmp_path)
    assert names(tmp_path / "ck") == OWN


def test_best_and_last_are_two_files(tmp_path, capfd):
    said = refused(capfd, tmp_path, "--checkpoint.filename=last")
    assert "checkpoint.filename: last is the name of the last epoch's file" in said
    assert not (tmp_path / "ck").exists()


def test_two_runs_at_the_same_time_get_two_folders(tmp_path):
    class Trainer:
        is_global_zero, fast_dev_run, logger, loggers = True, False, None, ()
        default_root_dir = tmp_path

        class strategy:  # noqa: N801
            broadcast = staticmethod(lambda x: x)

    class Saver:
        dirpath = str(tmp_path)

    trainer, agent, savers = Trainer(), None, [Saver(), Saver()]
    callbacks = [run_folder.RunFolder([saver], "{}", None) for saver in savers]
    for callback in callbacks:
        callback.setup(trainer, agent, "fit")
    assert [s.dirpath for s in savers] == [str(tmp_path), str(tmp_path / "version_1")]
    third = run_folder.RunFolder([Saver()], "{}", str(tmp_path / "last.ckpt"))
    with pytest.raises(ConfigurationError, match="another run is still writing"):
        third.setup(trainer, agent, "fit")
    for callback in callbacks:
        callback.teardown(trainer, agent, "fit")
    third.setup(trainer, agent, "fit")  # nothing of theirs is left
    third.teardown(trainer, agent, "fit")


def place(folder, config, age):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last.ckpt").touch()
    os.utime(folder / "last.ckpt", (age, age))
    if config is not None:
        (folder / RUN_CONFIG).write_text(yaml.safe_dump(config))


def test_the_newest_run_that_is_the_same_is_found(tmp_path):
    place(tmp_path, {"seed_everything": 1}, 5)
    place(tmp_path / "version_1", {"seed_everything": 2}, 30)
    place(tmp_path / "version_2", {"seed_everything": 1}, 20)
    place(tmp_path / "version_10", {"seed_everything": 1}, 10)
    place(tmp_path / "other", {"seed_everything": 1}, 40)
    assert len(runs_in(tmp_path)) == 4
    found = find_checkpoint("last", tmp_path, "best", {"seed_everything": 1}, True)
    assert found == tmp_path / "version_2" / "last.ckpt"
    found = find_checkpoint("last", tmp_path, "best", {"seed_everything": True}, True)  # any
    assert found == tmp_path / "version_1" / "last.ckpt"
    with pytest.raises(ConfigurationError, match=r"filename that does not change, not \{epoch\}"):
        find_checkpoint("best", tmp_path, "{epoch}", {}, True)


def test_only_checkpoints_without_any_configuration_are_taken_on_trust(tmp_path):
    place(tmp_path, None, 5)
    with pytest.warns(UserWarning, match="taken on trust"):
        assert find_checkpoint("last", tmp_path, "best", {}, True) == tmp_path / "last.ckpt"
    place(tmp_path / "version_1", {"seed_everything": 2}, 3)
    with pytest.raises(ConfigurationError, match="seed_everything: 2, not 1"):
        find_checkpoint("last", tmp_path, "best", {"seed_everything": 1}, True)


BUDGETS = ["data.init_args.total_frames", "data.init_args.total_updates", "trainer.max_epochs"]
BUDGETS += ["trainer.max_time.hours", "trainer.logger.init_args.save_dir", "checkpoint.dirpath"]
BUDGETS += ["data.init_args.save_replay", "ckpt_path"]
EVALUATION = ["data.init_args.val_episodes", "trainer.devices", "checkpoint.monitor"]
VALUES = ["seed_everything", "model.init_args.gamma", "data.init_args.num_envs"]
VALUES += ["data.init_args.env_kwargs.gravity", "model.class_path"]


def tree(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("key", BUDGETS + EVALUATION + VALUES)
def test_what_makes_another_run(key):
    for goes_on in (True, False):
        differ = differences(tree(key, 1), tree(key, 2), goes_on)
        if key in VALUES or (key in EVALUATION and goes_on):
            assert differ == [(key, 1, 2)]
        else:
            assert not differ
        assert bool(differences({}, tree(key, 2), goes_on)) == bool(differ)


def test_make_train_validates_the_run_it_has_just_trained():
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "--ckpt_path best" in text
    assert "best.ckpt" not in text
