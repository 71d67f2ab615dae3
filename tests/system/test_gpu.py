"""The same code on a CUDA device."""

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from llm_tiny import tiny_model
from training import make_trainer

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic, ImpalaCNN, LLMEncoder, MLPEncoder
from rl_lightning.data import RolloutDataModule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BATCHES = {"minibatch_size": 64, "passes": 2}
DATA = {"num_envs": 4, "rollout_steps": 32, "val_episodes": 4, "seed": 3}


class Ratios(PPO):
    """Remembers |log ratio| of each rollout's first minibatch."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 4 == 0:
            with torch.no_grad():
                difference = self.policy.evaluate(batch).log_prob - batch["log_prob"]
            self.first = max(getattr(self, "first", 0.0), float(difference.abs().max()))
        return super().training_step(batch, batch_idx)


def train(make_agent, data_kwargs, epochs=3, ckpt_path=None, folder=None, **trainer_kwargs):
    torch.manual_seed(1)
    data = RolloutDataModule(total_frames=10**6, **{**DATA, **data_kwargs})
    agent = make_agent(data.spec)
    callbacks = []
    if folder:
        saver = ModelCheckpoint(
            folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        callbacks.append(saver)
    trainer = make_trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=epochs,
        callbacks=callbacks,
        enable_checkpointing=bool(folder),
        limit_val_batches=1.0,
        **trainer_kwargs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(agent, data, ckpt_path=ckpt_path)
    assert agent.device.type == "cpu" or next(agent.parameters()).is_cuda
    assert trainer.callback_metrics["val/return"].isfinite()
    return agent


def llm(tmp_path, **kwargs):
    return partial(LLMEncoder, model=tiny_model("bert", tmp_path / "tiny"), **kwargs)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("kind", ["mlp", "recurrent", "frozen", "lora", "full", "impala"])
def test_trains_and_the_first_ratio_is_one(kind, precision, tmp_path):
    maze = {"env": "TextMaze-v0", **BATCHES}
    agent, data = {
        "mlp": (
            partial(Ratios, encoder=partial(MLPEncoder, normalize=True)),
            {"env": "CartPole-v1"},
        ),
        "recurrent": (
            partial(Ratios, network=partial(ActorCritic, recurrent="lstm"), sequence_length=8),
            {"env": "CartPole-v1"},
        ),
        "frozen": (partial(Ratios, encoder=llm(tmp_path)), maze),
        "lora": (partial(Ratios, encoder=llm(tmp_path, tune="lora")), maze),
        "full": (partial(Ratios, encoder=llm(tmp_path, tune="full")), maze),
        "impala": (
            partial(Ratios, encoder=ImpalaCNN),
            {"env": "Probe-v0", "env_kwargs": {"observation": "small_image"}},
        ),
    }[kind]
    trained = train(agent, {**BATCHES, **data}, precision=precision)
    assert trained.first < (1e-4 if precision == "32-true" else 0.05)


@pytest.mark.parametrize("agent", [A2C, REINFORCE, partial(REINFORCE, baseline=False)])
def test_other_agents_train(agent):
    train(agent, {"env": "CartPole-v1", "normalize_reward": True})
    train(agent, {"env": "CartPole-v1", "vectorization": "native"})


def test_resumes_with_its_random_numbers(tmp_path):
    data = {"env": "CartPole-v1", **BATCHES}
    whole = train(PPO, data, epochs=4, folder=tmp_path / "whole")
    train(PPO, data, epochs=2, folder=tmp_path / "half")
    rest = train(PPO, data, 4, tmp_path / "half" / "last.ckpt", tmp_path / "rest")
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(value, rest.state_dict()[key])
    loaded = PPO.load_from_checkpoint(tmp_path / "rest" / "last.ckpt", map_location="cpu")
    assert loaded.device.type == "cpu"


def test_async_environments_beside_cuda():
    train(PPO, {"env": "CartPole-v1", **BATCHES, "vectorization": "async"})
