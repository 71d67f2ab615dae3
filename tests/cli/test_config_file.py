"""Configuration files: what is no configuration is named, with its file and line."""

from pathlib import Path

import pytest
from test_cli import CARTPOLE, SHORT, error_of

from rl_lightning.cli.config_file import check_config_file
from rl_lightning.core.errors import ConfigurationError

TWICE = {
    "trainer: {max_epochs: 1}\ntrainer: {devices: 1}\n": r"trainer .* \(lines 1, 2\)",
    "trainer:\n  max_epochs: 1\n  max_epochs: 2\n": r"trainer\.max_epochs .* \(lines 2, 3\)",
    "data: {init_args: {env_kwargs: {a: 1, a: 2}}}\n": r"init_args\.env_kwargs\.a .* \(line 1\)",
    "trainer.max_epochs: 1\ntrainer:\n  max_epochs: 2\n": r"trainer\.max_epochs .* \(lines 1, 3\)",
    "data: {init_args: {wrappers: [{A: {x: 1, x: 2}}]}}\n": r"wrappers\.0\.A\.x stands there twice",
}
WRONG = {
    b"": "the configuration is empty",
    b"# only a comment\n": "the configuration is empty",
    b"- trainer\n- model\n": "not a list",
    b"just words\n": "not the text 'just words'",
    b"trainer:\n": r"trainer \(line 1\) is empty",
    b"trainer:\n\tmax_epochs: 1\n": "line 2, column 1: .*spaces, not with tabs",
    b"trainer: {max_epochs: 1\n": "line 2, column 1: ",
    b"data: *nothing\n": "line 1, column 7: found undefined alias",
    b"a: 1\n---\nb: 1\n": "line 2, column 1: .*another document",
    b"trainer: !!python/name:os.system x\n": "line 1, column 10: could not determine",
    b"1: 2\n": r"1 \(line 1\) names no argument",
    b"# caf\xe9\n": r"no text in UTF-8 \(byte 5 is 0xe9\)",
    "trainer: {}\n".encode("utf-16"): "no text in UTF-8 .byte 0",
}


def write(folder, content):
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", TWICE, ids=range(len(TWICE)))
def test_what_stands_there_twice_is_refused(content, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ConfigurationError, match=f"{path}: .*{TWICE[content]}"):
        check_config_file(path)


@pytest.mark.parametrize("argument", ["--config", "--model", "--data", "--data.env_kwargs"])
def test_also_in_files_and_texts_that_other_arguments_include(argument, tmp_path, capfd):
    content = {
        "--config": "trainer:\n  max_epochs: 1\n  max_epochs: 2\n",
        "--model": "class_path: PPO\ninit_args:\n  gamma: 0.9\n  gamma: 0.5\n",
        "--data": "class_path: RolloutDataModule\ninit_args: {num_envs: 4, num_envs: 8}\n",
    }
    value = "{gravity: 1, gravity: 2}"
    if argument in content:
        value = str(write(tmp_path, content[argument]))
    error = error_of(["fit", *CARTPOLE, *SHORT, argument, value], capfd)
    assert "stands there twice" in error


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_what_is_no_configuration_is_refused(content, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ConfigurationError, match=f"(?s){path}.*{WRONG[content]}"):
        check_config_file(path)


@pytest.mark.parametrize("argument", ["--config", "--data"])
def test_text_in_another_encoding_is_refused_wherever_it_is_included(argument, tmp_path, capfd):
    path = write(tmp_path, b"class_path: PPO  # caf\xe9\n")
    assert "no text in UTF-8" in error_of(["fit", *CARTPOLE, argument, str(path)], capfd)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftrainer:\n  max_epochs: 1\n",  # a byte order mark
        b"trainer:\r\n  max_epochs: 1\r\n",
        b"data: &a {num_envs: 4}\nmodel:\n  <<: *a\n  num_envs: 8\n",
        b"model: {encoder: &e {hidden: [4]}, other: *e}\n",
        b"trainer.max_epochs: 1\ntrainer: {devices: 1}\n",
    ],
)
def test_what_says_everything_once_is_accepted(content, tmp_path):
    check_config_file(write(tmp_path, content))


def test_every_configuration_that_we_ship_is_one():
    files = sorted(Path("configs").rglob("*.yaml"))
    assert files
    for path in files:
        check_config_file(path)
