"""Trains on two ranks and lets each write down what its rewards have learned: `… FOLDER`."""

import logging
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch

from rl_lightning import PPO, CountBonus, DictEncoder, RNDBonus, RolloutDataModule

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1]))  # where probes are


class Look(L.Callback):
    """Keeps what rewards have learned, before their environments are closed."""

    def on_train_end(self, trainer, module):
        self.stage = trainer.datamodule.collector.stage
        self.learned = self.stage.learned_state()
        self.places = sorted(self.stage.rewards["count_bonus"]._common.items())


def main() -> None:
    L.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "probes:Probe-v0",
        env_kwargs={"task": "policy", "observation": "mixed"},
        vectorization="native",
        num_envs=3,
        rollout_steps=16,
        total_frames=200,
        rewards=[
            partial(CountBonus, entry="text"),
            partial(RNDBonus, entry="vector", update_frames=20, batch_size=8, hidden=(8,)),
        ],
        seed=1,
    )
    look = Look()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        callbacks=[look],
    )
    trainer.fit(PPO(data.spec, encoder=partial(DictEncoder, ignore=["text"])), data)
    state = {"learned": look.learned, "places": [[p.hex(), n] for p, n in look.places]}
    state["frames"] = data.frames
    torch.save(state, Path(sys.argv[1]) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
