"""A language model as guide, as a configuration says it, and as its checkpoint remembers it."""

import warnings

import pytest
import torch
from llm_tiny import tiny_model

from rl_lightning import Agent, DictEncoder, GuidedEncoder
from rl_lightning.cli.command import main

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")

CONFIG = """
seed_everything: 1
model:
  class_path: rl_lightning.PPO
  init_args:
    encoder:
      class_path: rl_lightning.GuidedEncoder
      init_args:
        encoder:
          class_path: rl_lightning.DictEncoder
          init_args: {{ignore: [text]}} # the network reads the vector, the model its description
        prior:
          class_path: rl_lightning.TextActionEncoder
          init_args: {{model: "{model}", actions: [left, right], max_length: 100}}
        weight: 0.5
        kl_coef: 0.01
        fraction: 0.75
data:
  class_path: rl_lightning.RolloutDataModule
  init_args:
    env: CartPole-v1
    wrappers: [{{Describe: {{keep: true}}}}]
    num_envs: 2
    rollout_steps: 8
    total_frames: 32
    val_episodes: 2
trainer: {{logger: false, default_root_dir: "{folder}"}}
"""


def run(*words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(list(words))


def test_a_guide_is_configured_stored_and_built_again(tmp_path, capfd):
    model = tiny_model("llama", tmp_path / "llama", layers=1)
    file = tmp_path / "guided.yaml"
    file.write_text(CONFIG.format(model=model, folder=tmp_path))
    run("fit", "--config", str(file), f"--checkpoint.dirpath={tmp_path}")
    path = tmp_path / "last.ckpt"
    told = torch.load(path, weights_only=True)["hyper_parameters"]["encoder"]
    assert told["class_path"] == "rl_lightning.GuidedEncoder"
    init = told["init_args"]
    assert init["prior"]["class_path"] == "rl_lightning.TextActionEncoder"
    assert init["prior"]["init_args"]["model"] == model
    assert (init["weight"], init["kl_coef"], init["fraction"]) == (0.5, 0.01, 0.75)
    encoder = Agent.load_from_checkpoint(path).encoder
    assert isinstance(encoder, GuidedEncoder)
    assert isinstance(encoder.own, DictEncoder)
    assert (encoder.begin, encoder.end, encoder.fraction) == ((0.5, 0.01), (0.0, 0.0), 0.75)
    assert encoder.weight_now.item() == 0.5  # two rollouts, both before anything was told
    capfd.readouterr()
    run("validate", "--ckpt_path", str(path), "--trainer.logger=false")
    assert "val/return" in capfd.readouterr().out
