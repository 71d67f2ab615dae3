"""The command line: it runs, it can be overridden, and it explains mistakes in one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lightning.cli.command import main
from rl_lightning.data.recordings.dataset import read_dataset

CARTPOLE = ["--config", "tests/cartpole.yaml"]
SHORT = [
    "--data.total_frames=4096",
    "--data.rollouts_per_epoch=4",
    "--data.passes=2",
    "--data.val_episodes=4",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]


def fit(tmp_path, *options):
    """Train briefly; returns the folder of checkpoints and the folder of logs."""
    folders = [f"--checkpoint.dirpath={tmp_path}/ckpt"]
    folders += [f"--trainer.logger.init_args.save_dir={tmp_path}/logs"]
    main(["fit", *CARTPOLE, *SHORT, *folders, *options])
    return tmp_path / "ckpt", next((tmp_path / "logs" / "ppo-cartpole").iterdir())


def error_of(arguments, capfd, status=2):
    """The one sentence that a command line ends with."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code in ((1, 2) if status is None else (status,))
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("rl-lightning: error")]
    assert len(lines) == 1
    assert len(lines[0]) < 700
    for jargon in ("Traceback", "Namespace(", "Union", "Subtypes", "jsonargparse"):
        assert jargon not in lines[0]
    return lines[0]


def test_fit_validate_predict_and_load_in_a_fresh_process(tmp_path, capsys):
    checkpoints, logs = fit(tmp_path)
    assert "trained 4,096 of 4,096 frames" in capsys.readouterr().out
    best, last = checkpoints / "best.ckpt", checkpoints / "last.ckpt"
    assert best.exists()
    assert last.exists()
    assert (logs / "config.yaml").exists()

    events = EventAccumulator(str(logs)).Reload()
    scalars = set(events.Tags()["scalars"])
    expected = {"train/return", "train/length", "val/return", "val/length", "loss/policy"}
    expected |= {"loss/value", "policy/entropy", "policy/kl", "time/fps", "time/frames"}
    assert expected <= scalars
    assert [e.step for e in events.Scalars("val/return")] == [2048, 4096]  # frames
    steps = [e.step for e in events.Scalars("loss/value")]
    assert steps[0] == 256
    assert steps[-1] == 4096
    assert [e.value for e in events.Scalars("time/frames")] == steps
    text = events.Tensors("val/episode/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| step | observation | probabilities | value | action | reward |" in text

    options = [f"--ckpt_path={last}", "--trainer.logger=false", f"--checkpoint.dirpath={tmp_path}"]
    main(["validate", *CARTPOLE, *SHORT, *options])
    shown = capsys.readouterr().out
    assert "val/return" in shown
    assert "4096" in shown  # the frame count came with the checkpoint
    main(["test", *CARTPOLE, *SHORT, *options])
    assert "test/return" in capsys.readouterr().out
    main(["predict", *CARTPOLE, *SHORT, *options, f"--trainer.default_root_dir={tmp_path}"])
    assert "4 episodes, mean return" in capsys.readouterr().out
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["return"] > 0 for line in lines] == [True] * 4

    code = (
        "import numpy as np; from rl_lightning import PPO; "
        f"agent = PPO.load_from_checkpoint({str(last)!r}, weights_only=True).eval(); "
        "x = agent.preprocess(np.array([[0.0, 0.1, 0.02, -0.1]])); "
        "print(agent.act(x, explore=False)['action'].tolist(), agent.policy.value(x).tolist())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.startswith(("[0]", "[1]"))


def test_checkpoint_of_the_best_validation(tmp_path):
    checkpoints, logs = fit(tmp_path, "--trainer.check_val_every_n_epoch=1")
    events = EventAccumulator(str(logs)).Reload()
    returns = {e.step: e.value for e in events.Scalars("val/return")}
    best = torch.load(checkpoints / "best.ckpt", weights_only=True)
    assert returns[best["frames"]] == max(returns.values())


def test_print_config_is_complete_and_resolves_interpolation(tmp_path, capsys):
    config = yaml.safe_load(Path("tests/cartpole.yaml").read_text())
    config["checkpoint"]["dirpath"] = "checkpoints/seed-${seed_everything}"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    arguments = ["--seed_everything=7", "--model.gamma=0.5", "--data.num_envs=16"]
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", str(path), *arguments, "--print_config"])
    assert not exit_info.value.code
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["checkpoint"]["dirpath"] == "checkpoints/seed-7"
    assert printed["model"]["init_args"]["gamma"] == 0.5
    assert printed["model"]["init_args"]["gae_lambda"] == 0.8
    assert printed["data"]["init_args"]["num_envs"] == 16
    assert printed["data"]["init_args"]["val_seed"] == 1_000_000  # defaults are written out


@pytest.mark.parametrize(
    "arguments", [["fit", "--help"], pytest.param(["--help"], marks=pytest.mark.slow)]
)
def test_help_loads_no_language_model_library(arguments):
    code = (
        "import sys\nfrom rl_lightning.cli.command import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        # Lightning's torchmetrics imports the empty shell of transformers.
        "heavy = {'transformers.modeling_utils', 'peft', 'minigrid', 'pygame', 'moviepy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: rl-lightning" in done.stdout or "usage:" in done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, rl_lightning; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


MISTAKES = {
    "--data.env=CartPoll-v1": "unknown environment 'CartPoll-v1'.*CartPole",
    "--data.env=no_such:Foo-v0": "No module named 'no_such'",
    "--data.env_kwargs.gravity=1": "CartPole-v1.*unexpected keyword argument 'gravity'",
    "--data.wrappers=[Foo]": "unknown wrapper 'Foo'",
    "--data.wrappers=[{class_path: gymnasium.wrappers.ClipReward}]": "{Name: {argument: value}}",
    "--trainer.limit_train_batches=2": "limit_train_batches: 2 would throw away",
    "--model.network.critic=false": "PPO needs a critic",
    "--model.gae_lambda=7": "gae_lambda must be between 0 and 1, not 7",
    "--ckpt_path=tests/cartpole.yaml": "tests/cartpole.yaml is no checkpoint",
    "--checkpoint.dirpath=null --ckpt_path=last": "ckpt_path: last needs checkpoint.dirpath",
    "--data.num_envs=x": "data.num_envs: expected int, not x",
    "--data.num_envs=0": "data.num_envs must be at least 1, not 0",
    "--data.nun_envs=8": "RolloutDataModule has no argument 'nun_envs'; did you mean 'num_envs'",
    "--data.minibatch_size=100": "minibatch_size: 100 does not divide.* 8 · 32 = 256.*e.g. 128",
    "--data.vectorization=threads": "expected sync or async or native, not threads",
    "--model.class_path=POP": "model.class_path: no class 'POP' can be imported",
    "--model=A2C": "A2C is right for one update per rollout.*passes: 1",
    "--model.gama=1": "PPO has no argument 'gama'; did you mean 'gamma'",
    "--model.gamma=abc": "model.gamma: expected float, not abc",
    "--model.gamma=2": "gamma must be between 0 and 1, not 2",
    "--model.encoder=NatureCNN": "NatureCNN cannot read Box.*MLPEncoder",
    "--model.encoder=LLMEncoder": "LLMEncoder reads text.*Describe",
    "--model.encoder=Foo": "model.encoder: no class 'Foo' can be imported",
    "--model.network.recurent=lstm": "ActorCritic has no argument 'recurent'.*'recurrent'",
    "--model.network.recurrent=rnn": "model.network.recurrent: expected lstm or gru, not rnn",
    "--model.network.squash=7": "model.network.squash: expected bool, not 7",
    "--model.optimizer.lr=abc": "model.optimizer.lr: expected float, not abc",
    "--model.lr_schedule=step": "model.lr_schedule: expected constant or linear or cosine",
    "--trainer.max_epochs=many": "trainer.max_epochs: expected int, not many",
    "--trainer.strategy=foo": "invalid strategy name.*'foo'",
    "--trainer.precision=bf16-true": "trainer.precision: bf16-true would round.*bf16-mixed",
    "--trainer.foo=1": "unrecognized arguments: --trainer.foo",
    "--config=no_such.yaml": "File does not exist: .*no_such.yaml",
    "--ckpt_path=no_such.ckpt": "no_such.ckpt",
}


@pytest.mark.parametrize("option", MISTAKES)
def test_a_mistake_ends_with_one_sentence(option, tmp_path, capfd):
    words = ["fit", *CARTPOLE, *SHORT, "--trainer.logger=false", *option.split(" ")]
    error = error_of(words, capfd)
    assert re.search(MISTAKES[option], error), error


def test_a_checkpoint_of_another_network_is_one_sentence_too(tmp_path, capfd):
    checkpoints, _ = fit(tmp_path)
    best = checkpoints / "best.ckpt"
    capfd.readouterr()
    where = [f"--checkpoint.dirpath={checkpoints}", "--trainer.logger=false"]
    with pytest.raises(SystemExit) as exit_info:
        main(["validate", *CARTPOLE, *where, f"--ckpt_path={best}", "--model.network.hidden=[8]"])
    assert exit_info.value.code == 2
    assert "does not fit this configuration" in capfd.readouterr().err
    other = torch.load(best, weights_only=True)
    other["optimizer_states"][0]["param_groups"] *= 2
    torch.save(other, checkpoints / "groups.ckpt")
    del other["optimizer_states"]
    torch.save(other, checkpoints / "weights.ckpt")
    for name, why in [("groups", "does not fit this conf"), ("weights", "holds weights only")]:
        with pytest.raises(SystemExit) as exit_info:
            main(["fit", *CARTPOLE, *where, f"--ckpt_path={checkpoints}/{name}.ckpt"])
        assert exit_info.value.code == 2
        assert why in capfd.readouterr().err
    main(["validate", *CARTPOLE, *SHORT, *where, "--ckpt_path=best", "--data.val_episodes=2"])
    with pytest.raises(SystemExit) as exit_info:
        main(["validate", *CARTPOLE, "--checkpoint.dirpath=nowhere", "--ckpt_path=last"])
    assert exit_info.value.code == 2
    assert "there is no file nowhere/last.ckpt" in capfd.readouterr().err


def test_a_configuration_of_defaults_can_be_read_back(tmp_path, capsys):
    given = ["--model=A2C", "--data=RolloutDataModule", "--data.env=CartPole-v1"]
    with pytest.raises(SystemExit):
        main(["fit", *given, "--print_config"])
    printed = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(printed)
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    assert not exit_info.value.code
    assert capsys.readouterr().out == printed
    small = ["--data.total_frames=80", "--trainer.accelerator=cpu", "--data.val_episodes=1"]
    logs = [f"--trainer.default_root_dir={tmp_path}", f"--checkpoint.dirpath={tmp_path}"]
    main(["fit", "--config", str(tmp_path / "config.yaml"), *small, *logs])
    saved = next(tmp_path.rglob("version_0/config.yaml"))
    main(["fit", "--config", str(saved)])


@pytest.mark.parametrize("wanted", [True, False])
def test_the_progress_bar_and_checkpoints_can_be_switched_off(wanted, tmp_path, capfd):
    flags = [f"--trainer.enable_{name}={wanted}" for name in ("progress_bar", "checkpointing")]
    checkpoints, _ = fit(tmp_path, *flags)
    assert ("frame/s" in capfd.readouterr().err) == wanted
    assert checkpoints.exists() == wanted


def test_a_progress_bar_of_ones_own_takes_the_place_of_ours(tmp_path, capfd):
    fit(tmp_path, "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar")
    assert "frame/s" not in capfd.readouterr().err


def test_metrics_of_a_kl_stop_are_logged(tmp_path):
    """Also where every step that would be logged is one that the stop skips."""
    _, logs = fit(tmp_path, "--model.target_kl=1e-9", "--trainer.log_every_n_steps=2")
    events = EventAccumulator(str(logs)).Reload()
    assert len(events.Scalars("policy/kl")) == 16  # rollouts of two updates, one of them skipped
    assert all(e.value > 0 for e in events.Scalars("policy/entropy"))


def test_predict_records(tmp_path, capfd):
    path = tmp_path / "episodes.hdf5"
    options = ["--data.val_episodes=2", f"--data.record={path}", "--trainer.logger=false"]
    options += [f"--trainer.default_root_dir={tmp_path}"]
    main(["predict", *CARTPOLE, *options])
    main(["predict", *CARTPOLE, *options])
    assert f"recorded in {path}, which holds 4 episodes" in capfd.readouterr().out
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    recorded = [len(episode) for episode in read_dataset(path).episodes()]
    assert recorded == [json.loads(line)["length"] for line in lines] * 2
    with pytest.raises(SystemExit) as exit_info:
        main(["predict", *CARTPOLE, *options, "--data.record=tests/cartpole.yaml"])
    assert exit_info.value.code == 2
    assert "tests/cartpole.yaml is no HDF5 file" in capfd.readouterr().err


def test_a_space_no_agent_can_act_in(capfd):
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *CARTPOLE, "--data.env=probes:TextAction-v0", "--trainer.logger=false"])
    assert exit_info.value.code == 2
    error = capfd.readouterr().err
    assert "cannot emit actions of Text" in error
    assert "Traceback" not in error
