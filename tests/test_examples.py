"""Examples run, and make what they say."""

import runpy
import sys
from pathlib import Path

import gymnasium as gym
import torch

from rl_lightning import EnvSpec, TextActionEncoder
from rl_lightning.llm.generation import write

ROOT = Path(__file__).parents[1]


def test_a_small_language_model_of_an_environments_words(tmp_path, monkeypatch, capsys):
    command = ["small_language_model.py", str(ROOT / "configs/ppo/textmaze.yaml")]
    more = ["--out", str(tmp_path), "--frames", "300", "--steps", "120", "--hidden", "32"]
    monkeypatch.setattr(sys, "argv", [*command, *more, "--layers", "1", "--lr", "1e-2"])
    runpy.run_path(str(ROOT / "examples/small_language_model.py"), run_name="__main__")
    assert "nats a token" in capsys.readouterr().out
    spec = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(4), "TextMaze-v0")
    encoder = TextActionEncoder(
        spec, str(tmp_path), "lora", ["north", "east", "south", "west"], max_length=64
    )
    x = encoder.preprocess(["Wall north, new east, new south, wall west. The exit is far south."])
    with torch.no_grad():
        said = encoder.score(x).log_prob.exp()
    assert float(said.sum()) > 0.5  # behind a prompt it expects an action, and no other word
    written = write(encoder.backbone, *encoder.prompts(x), 1, 0.0)
    assert encoder.backbone.tokens.tokenizer.decode(written.ids[0]).strip() in (
        encoder.choices.names or ()
    )
