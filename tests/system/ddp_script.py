"""Trains on two ranks and lets each write down what it ended with: `ddp_script.py CASE FOLDER`."""

import atexit
import json
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning import (
    PPO,
    LLMEncoder,
    MLPEncoder,
    RolloutDataModule,
    ScoringPolicy,
    TextActionEncoder,
)

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

CASES = {
    "cartpole": (
        partial(PPO, encoder=partial(MLPEncoder, normalize=True), target_kl=1e-5),
        {"env": "CartPole-v1", "normalize_reward": True},
        {},
    ),
    "bf16": (PPO, {"env": "CartPole-v1"}, {"precision": "bf16-mixed"}),
    "llm": (partial(PPO, encoder=partial(LLMEncoder, layers=1)), {"env": "TextMaze-v0"}, {}),
    "lora": (
        lambda spec: PPO(
            spec,
            partial(TextActionEncoder, model=os.environ["TINY_MODEL"], tune="lora"),
            ScoringPolicy,
        ),
        {"env": "TextMaze-v0"},
        {},
    ),
}


class Observer(L.Callback):
    """Counts updates, and keeps what was collected."""

    def __init__(self) -> None:
        self.updates = self.batches = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += 1
        self.updates += batch is not None


def note_group(folder: Path) -> None:
    """Whether the ranks' group is still open when Python ends."""
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"open{rank}.json").write_text(json.dumps(dist.is_initialized()))


def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[2])
    atexit.register(note_group, folder)  # the first of all: the last that is asked
    make_agent, data_kwargs, trainer_kwargs = CASES[case]
    ckpt_path = sys.argv[3] if len(sys.argv) > 3 else None
    L.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        num_envs=4,
        rollout_steps=32,
        minibatch_size=64,
        passes=3,
        total_frames=4 * 32 * 2 * (6 if ckpt_path else 4),
        val_episodes=4,
        **data_kwargs,
    )
    observer = Observer()
    saver = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=0.5,
        callbacks=[observer, saver],
        **trainer_kwargs,
    )
    agent = make_agent(data.spec)
    first = {}
    original = data.next_batch

    def remember():
        batch = original()
        first.setdefault("action", batch[0]["action"].clone())
        return batch

    data.next_batch = remember  # type: ignore[method-assign]
    trainer.fit(agent, data, ckpt_path=ckpt_path)
    state = {k: v for k, v in agent.state_dict().items() if isinstance(v, torch.Tensor)}
    own = folder / f"rank{trainer.global_rank}.pt"
    torch.save({"state": state, "action": first["action"]}, own)
    summary = {
        "frames": data.frames,
        "updates": observer.updates,
        "batches": observer.batches,
        "val": float(trainer.callback_metrics["val/return"]),
    }
    own.with_suffix(".json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
