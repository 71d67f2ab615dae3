"""Examples run, and make what they say."""

import random
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml

from rl_lightning import EnvSpec, TextActionEncoder
from rl_lightning.llm.generation import write
from rl_lightning.llm.sampling import Sampling

ROOT = Path(__file__).parents[1]
ONE_ACTION = {"SelectActions": {"actions": [0]}}
SCRIPT = ROOT / "examples" / "small_language_model.py"


@pytest.fixture
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def refused(monkeypatch, capsys):
    def run(command, fails=True):
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) if fails else nullcontext():
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().err

    return run


def play(script, **kwargs):
    random.seed(0)
    config = yaml.safe_load((ROOT / "configs/ppo/textmaze.yaml").read_text())
    return script["play"](config, **{"frames": 60, "window": 1, "seed": 0, **kwargs})


def test_a_small_language_model_of_an_environments_words(tmp_path, monkeypatch, capsys):
    command = ["small_language_model.py", str(ROOT / "configs/ppo/textmaze.yaml")]
    more = ["--out", str(tmp_path / "model"), "--frames", "300", "--steps", "120", "--hidden", "32"]
    monkeypatch.setattr(sys, "argv", [*command, *more, "--layers", "1", "--lr", "1e-2"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "nats a token" in capsys.readouterr().out
    spec = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(4), "TextMaze-v0")
    encoder = TextActionEncoder(
        spec, str(tmp_path / "model"), "lora", ["north", "east", "south", "west"], max_length=64
    )
    x = encoder.preprocess(["Wall north, new east, new south, wall west. The exit is far south."])
    with torch.no_grad():
        said = encoder.score(x).log_prob.exp()
    assert float(said.sum()) > 0.5  # behind a prompt it expects an action, and no other word
    written = write(encoder.backbone, *encoder.prompts(x), Sampling(1, 0.0))
    assert encoder.backbone.tokens.tokenizer.decode(written.ids[0]).strip() in (
        encoder.choices.names or ()
    )


def test_texts_are_of_several_steps_and_with_or_without_actions(script):
    one, three = play(script), play(script, window=3)
    assert all(text.count("The exit is") == 1 for text in one)
    assert all(text.split()[-1] in ("north", "east", "south", "west") for text in one)
    assert {text.count("The exit is") for text in three} >= {3}
    assert "\n".join(one).startswith("\n".join(three)[:500])
    assert all(text.endswith("\nAction:") for text in play(script, with_actions=False))


def test_what_is_asked_is_answered_by_what_was_told(script):
    random.seed(0)
    text = "wall: left 2, red ball: forward 3, blue key: right 2, mission: go to the red ball:"
    things = script["things_told"]([text, "grey box: left 1, mission: go to the grey box:"])
    assert things == ["blue key", "grey box", "red ball", "wall"]
    framed = 0
    for _ in range(50):
        given, asked = script["retold"](text, things).split("\n")
        assert given == text
        for part in asked.split(", "):
            name, answer = part.removeprefix("mission: go to the ").split(": ")
            framed += part.startswith("mission: ")
            told = {"wall": "left 2", "red ball": "forward 3", "blue key": "right 2"}
            assert answer == told.get(name, "unseen")
    assert 60 < framed < 120  # of 300


def test_texts_that_name_nothing_cannot_be_asked(refused, tmp_path):
    command = [SCRIPT.name, str(ROOT / "configs/ppo/textmaze.yaml"), "--frames", "20", "--retold"]
    assert "texts name nothing" in refused([*command, "--out", str(tmp_path / "model")])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "no such file"),
        ({"env": "TextMaze-v0", "wrappers": ["Nothing"]}, "unknown wrapper"),
        (
            {"env": "FrozenLake-v1", "wrappers": ["Describe", {"SelectActions": {"actions": [0]}}]},
            "",
        ),
        ({"env": "Pendulum-v1", "wrappers": ["Describe"]}, "have no numbers"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(config, expected, refused, tmp_path):
    path = tmp_path / "config.yaml"
    agent = {"init_args": {"encoder": "rl_lightning.BagOfWordsEncoder"}}
    if config is not None:
        path.write_text(yaml.safe_dump({"data": {"init_args": config}, "model": agent}))
    command = [SCRIPT.name, str(path), "--frames", "9", "--steps", "0", "--hidden", "8"]
    command += ["--out", str(tmp_path / "model")]
    assert expected in refused(command, bool(expected))
    if not expected:
        assert "is there already" in refused(command)
