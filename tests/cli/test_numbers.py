"""Numbers on the command line: whole floats where integers are meant, and negative ones."""

from typing import Union

import pytest
import yaml
from test_cli import CARTPOLE, error_of

from rl_lightning.cli.command import main
from rl_lightning.cli.parser import Parser, join_negative_numbers


def printed(options, capfd):
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *CARTPOLE, *options, "--print_config"])
    assert not exit_info.value.code
    return yaml.safe_load(capfd.readouterr().out)


def test_whole_floats_are_integers_wherever_an_integer_is_expected(tmp_path, capfd):
    path = tmp_path / "config.yaml"
    path.write_text(
        "seed_everything: 1e1\n"
        "data: {init_args: {total_frames: 1e5, val_episodes: 5.0e1, minibatch_size: 256.0}}\n"
        "trainer: {check_val_every_n_epoch: 2.0}\n"
    )
    options = [f"--config={path}", "--data.num_envs=8e0", "--data.passes", "2.0"]
    options += ["--data.rollout_steps", "3.2e1", "--model.network.hidden=[3.2e1, 64.0]"]
    options += ["--trainer.max_epochs=1e1", "--checkpoint.save_top_k=-1e0"]
    config = printed(options, capfd)
    data, trainer = config["data"]["init_args"], config["trainer"]
    found = [config["seed_everything"], trainer["check_val_every_n_epoch"], trainer["max_epochs"]]
    names = ("total_frames", "val_episodes", "minibatch_size", "num_envs", "passes")
    found += [data[name] for name in (*names, "rollout_steps")]
    found += [config["checkpoint"]["save_top_k"]]
    found += config["model"]["init_args"]["network"]["init_args"]["hidden"]
    assert found == [10, 2, 10, 100_000, 50, 256, 8, 2, 32, -1, 32, 64]
    assert {type(value) for value in found} == {int}


def test_where_a_float_means_something_else_it_stays_one(capfd):
    options = ["--trainer.limit_val_batches=1.0", "--trainer.limit_test_batches=1"]
    config = printed([*options, "--data.env_kwargs.x=1e1", "--model.gamma=1"], capfd)
    shares = config["trainer"]["limit_val_batches"], config["trainer"]["limit_test_batches"]
    assert list(map(type, shares)) == [float, int]
    assert type(config["data"]["init_args"]["env_kwargs"]["x"]) is float
    assert type(config["model"]["init_args"]["gamma"]) is float


@pytest.mark.parametrize("order", [(float, int), (int, float), (float, int, None)])
def test_whichever_of_int_and_float_is_named_first_one_batch_is_one_batch(order):
    parser = Parser()
    parser.add_argument("--batches", type=Union[order], default=None)  # noqa: UP007
    for text, value in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("-3", -3), ("1e2", 100.0)):
        found = parser.parse_args([f"--batches={text}"])
        assert (found.batches, type(found.batches)) == (value, type(value))
        again = yaml.safe_load(parser.dump(found))["batches"]
        assert (again, type(again)) == (value, type(value))


@pytest.mark.parametrize("value", ["1.5", ".inf", "1e"])
def test_what_is_no_whole_number_is_refused(value, capfd):
    error = error_of(["fit", *CARTPOLE, f"--data.total_frames={value}"], capfd)
    assert "data.total_frames: expected int, not " in error


@pytest.mark.parametrize(
    "number", ["-1", "-1e2", "-.5", "-1_000", "-1.5E-3", "-inf", "-.inf", "-nan"]
)
def test_a_negative_number_is_the_value_of_the_option_before_it(number):
    assert join_negative_numbers(["fit", "--data.x", number, "--y"]) == [
        "fit", f"--data.x={number}", "--y",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["-c", "--data", "-x1", "-e2", "x"])
def test_everything_else_is_left_as_it_is(word):
    assert join_negative_numbers(["fit", "--data.x", word]) == ["fit", "--data.x", word]
    assert join_negative_numbers(["fit", "--data.x=3", "-1e2"]) == ["fit", "--data.x=3", "-1e2"]


def test_the_message_names_the_number_and_its_argument(capfd):
    error = error_of(["fit", *CARTPOLE, "--data.num_envs", "-1e2"], capfd)
    assert "data.num_envs must be at least 1, not -100" in error
