"""Learns from replay on two ranks, stops and goes on: `ddp_replay_script.py FOLDER`."""

import json
import logging
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning import DQN, SAC, ContinuousNetwork, MLPEncoder, QNetwork, ReplayDataModule

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

CASES = {
    "dqn": (
        partial(
            DQN,
            encoder=partial(MLPEncoder, normalize=True),
            network=partial(QNetwork, hidden=(16,), noisy=True),
            exploration=None,
        ),
        {"env": "CartPole-v1", "prioritized": True, "n_step": 3, "vectorization": "native"},
    ),
    "sac": (
        partial(SAC, network=partial(ContinuousNetwork, hidden=(16,)), max_grad_norm=0.5),
        {"env": "Pendulum-v1"},
    ),
}


class Updates(L.Callback):
    """Counts them."""

    count = 0

    def on_before_optimizer_step(self, *args):
        self.count += 1


def train(case: str, folder: Path, epochs: int, ckpt_path: Path | None) -> None:
    make_agent, data_kwargs = CASES[case]
    L.seed_everything(1, verbose=False)
    data = ReplayDataModule(
        num_envs=2,
        buffer_frames=500,
        batch_size=16,
        warmup_frames=80,
        collect_frames=4,
        gradient_steps=2,
        frames_per_epoch=40,
        total_frames=80 + 2 * 40 * epochs,
        val_episodes=4,
        **data_kwargs,
    )
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    updates = Updates()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[updates, saver],
    )
    agent = make_agent(data.spec)
    trainer.fit(agent, data, ckpt_path=ckpt_path)
    assert data.buffer is not None
    state = {k: v for k, v in agent.state_dict().items() if isinstance(v, torch.Tensor)}
    rows = data.buffer.read(torch.arange(60), 0.9)
    own = folder / f"rank{trainer.global_rank}.pt"
    torch.save({"state": state, "obs": rows["obs"], "action": rows["action"]}, own)
    summary = {
        "frames": data.frames,
        "updates": updates.count,
        "val": float(trainer.callback_metrics["val/return"]),
        "rows": len(data.buffer),
    }
    own.with_suffix(".json").write_text(json.dumps(summary))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name in CASES:  # one after the other, because starting processes takes longest
        train(name, place / name / "first", 2, None)
        train(name, place / name / "rest", 3, place / name / "first" / "last.ckpt")
