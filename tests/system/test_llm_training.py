"""Training around and inside a language model: what changes, what is saved, what is run."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from training import fit

from rl_lightning import PPO, ActorCritic, LLMEncoder
from rl_lightning.data import RolloutDataModule

DATA = {
    "env": "TextMaze-v0",
    "num_envs": 4,
    "rollout_steps": 16,
    "minibatch_size": 32,
    "passes": 2,
    "total_frames": 128,
    "val_episodes": 2,
}


def train(tmp_path, **encoder):
    """Two short rollouts; returns the agent, its parameters before, and the checkpoint's path."""
    data = RolloutDataModule(**DATA)
    agent = PPO(data.spec, partial(LLMEncoder, max_length=48, **encoder))
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    saver = ModelCheckpoint(tmp_path / "ckpt", "last", save_on_train_epoch_end=True)
    fit(agent, data, callbacks=[saver], enable_checkpointing=True)
    return agent, before, tmp_path / "ckpt" / "last.ckpt"


def changed(agent, before):
    return {n for n, p in agent.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_what_training_changes(tune, tmp_path):
    model = tiny_model("bert", tmp_path / "model")
    agent, before, _ = train(tmp_path, model=model, tune=tune)
    touched = changed(agent, before)
    backbone = {n for n in before if ".backbone." in n}
    adapters = {n for n in backbone if "lora_" in n}
    assert touched & {n for n in before if n.startswith("policy.actor")}
    match tune:
        case "frozen":
            assert not touched & backbone
        case "lora":
            assert touched & adapters
            assert not touched & (backbone - adapters)
        case "full":
            assert len(touched & backbone) > 0.5 * len(backbone)


@pytest.mark.pretrained
@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_a_checkpoint_holds_adapters_and_heads_but_not_the_backbone(tune, tmp_path):
    agent, _, path = train(tmp_path, tune=tune, layers=2, cache_size=0)
    backbone = sum(p.numel() * 4 for p in agent.encoder.backbone.parameters())
    trained = sum(p.numel() * 4 for p in agent.parameters() if p.requires_grad)
    # Weights and two moments of Adam, and little else.
    assert path.stat().st_size < 3 * trained + 300_000 < 0.2 * backbone
    keys = torch.load(path, weights_only=True)["state_dict"]
    assert any("lora_" in key for key in keys) == (tune == "lora")
    assert not any("word_embeddings" in key for key in keys)

    loaded = PPO.load_from_checkpoint(path).eval()
    agent.eval()
    texts = ("Wall north, new east, wall south, once west. The exit is far south.",) * 2
    with torch.no_grad():
        ours, theirs = (a.inspect(a.preprocess(texts)) for a in (agent, loaded))
    torch.testing.assert_close(ours["probabilities"], theirs["probabilities"])
    torch.testing.assert_close(ours["value"], theirs["value"])


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_each_encoder_is_standardised_by_the_first_of_several_rollouts(tune, tmp_path):
    model = tiny_model("bert", tmp_path / "model")
    data = RolloutDataModule(**{**DATA, "total_frames": 3 * 64})
    make = partial(LLMEncoder, model=model, max_length=48, tune=tune)
    agent = fit(PPO(data.spec, make, partial(ActorCritic, share_encoder=False)), data)
    for encoder in agent.encoders:
        assert encoder.norm.running.count == 64 + 4  # a rollout, and what it started from
    assert len(agent.encoders) == 2


def test_the_hit_rate_is_of_training_alone(tmp_path):
    model = tiny_model("bert", tmp_path / "model")

    def rates(validations):
        seen = []

        class Watched(PPO):
            def tick(self, frames, progress, measure):
                seen.append(measure()["llm/cache_hit_rate"])
                super().tick(frames, progress, measure)

        torch.manual_seed(0)
        data = RolloutDataModule(**DATA, seed=1)
        encoder = partial(LLMEncoder, model=model, max_length=48, cache_size=0)
        fit(Watched(data.spec, encoder), data, limit_val_batches=validations)
        return seen

    assert rates(0.0) == rates(1.0)
    assert all(0 <= rate < 1 for rate in rates(0.0))


def test_a_frozen_model_is_never_run_in_an_update(tmp_path, monkeypatch):
    model = tiny_model("bert", tmp_path / "model")
    data = RolloutDataModule(**DATA)
    agent = PPO(data.spec, partial(LLMEncoder, model=model, max_length=48))
    runs: list[bool] = []
    updating = [False]
    forward = type(agent.encoder.backbone).forward
    step = PPO.training_step

    def counted(self, *args):
        runs.append(updating[0])
        return forward(self, *args)

    def marked(self, *args):
        updating[0] = True
        loss = step(self, *args)
        updating[0] = False
        return loss

    monkeypatch.setattr(type(agent.encoder.backbone), "forward", counted)
    monkeypatch.setattr(PPO, "training_step", marked)
    fit(agent, data)
    assert runs
    assert not any(runs)
    texts = len(agent.encoder.cache)
    assert texts < DATA["total_frames"]
    assert len(runs) <= texts  # batches of texts, each text once
