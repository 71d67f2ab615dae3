"""Learns from replay on two ranks, stops and goes on: `ddp_replay_script.py FOLDER`."""

import json
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning import (
    DQN,
    IQL,
    SAC,
    ContinuousNetwork,
    MLPEncoder,
    OfflineDataModule,
    OfflineNetwork,
    QNetwork,
    ReplayDataModule,
)

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
    "iql": (
        partial(
            IQL,
            encoder=partial(MLPEncoder, normalize=True),
            network=partial(OfflineNetwork, hidden=(16,)),
        ),
        {"env": "probes:Probe-v0"},
    ),
}


class Updates(L.Callback):
    """Counts them, and remembers the buffer and which of its rows would be drawn next."""

    count = 0
    buffer: Any
    drawn: Any

    def on_before_optimizer_step(self, *args):
        self.count += 1

    def on_train_end(self, trainer, *args):
        self.buffer = trainer.datamodule.buffer
        self.drawn = self.buffer.draw(60)


def train(case: str, folder: Path, epochs: int, ckpt_path: Path | None) -> None:
    make_agent, data_kwargs = CASES[case]
    L.seed_everything(1, verbose=False)
    if case == "iql":
        data: Any = OfflineDataModule(
            str(folder.parents[1] / "recorded.hdf5"),
            batch_size=16,
            updates_per_epoch=20,
            total_updates=20 * epochs,
            val_episodes=4,
            **data_kwargs,
        )
    else:
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
    state = {k: v for k, v in agent.state_dict().items() if isinstance(v, torch.Tensor)}
    # Recorded rows are the same for all; which of them are drawn is not.
    index = updates.drawn if case == "iql" else torch.arange(60)
    rows = updates.buffer.read(index, 0.9)
    own = folder / f"rank{trainer.global_rank}.pt"
    torch.save({"state": state, "obs": rows["obs"], "action": rows["action"]}, own)
    summary = {
        "frames": data.frames,
        "updates": updates.count,
        "val": float(trainer.callback_metrics["val/return"]),
        "rows": len(updates.buffer),
    }
    own.with_suffix(".json").write_text(json.dumps(summary))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name in CASES:  # one after the other, because starting processes takes longest
        train(name, place / name / "first", 2, None)
        train(name, place / name / "rest", 3, place / name / "first" / "last.ckpt")
