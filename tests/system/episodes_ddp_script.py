"""Plays and trains on two ranks; each writes down what it ended with: `... MODEL FOLDER`.

With `seldom` behind it: in an environment that says something of success on one rank alone.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch

from rl_lightning import GRPO, EpisodeDataModule

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    L.seed_everything(1, verbose=False)
    seldom = "seldom" in sys.argv[3:]
    data = EpisodeDataModule(
        "talking:seldom" if seldom else "talking:copying",
        {} if seldom else {"ragged": True},
        actions=None if seldom else ["a", "b"],
        template="{observation}:",
        turn_template="\n{observation}:",
        max_new_tokens=1,
        prompts_per_step=4,
        group_size=4,
        steps_per_epoch=2,
        total_prompts=16,
        val_episodes=5,
    )
    agent = GRPO(data.spec, model, tune="full", credit="turn", scale="batch")
    seeds, own = [], data.answer

    def answer(stage, rows, *args):
        seeds.append([stage, *rows])
        return own(stage, rows, *args)

    data.answer = answer  # type: ignore[method-assign]
    heard: list[bool] = []

    class Ask(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            heard.append(data.state_dict()["hears_success"])

    trainer = L.Trainer(
        callbacks=[Ask()],
        log_every_n_steps=1 if seldom else 50,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(agent, data)
    own_file = folder / f"rank{trainer.global_rank}.pt"
    torch.save(
        {k: v for k, v in agent.state_dict().items() if isinstance(v, torch.Tensor)}, own_file
    )
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    told = {"seeds": seeds, "metrics": metrics, "frames": data.frames, "heard": heard[-1]}
    own_file.with_suffix(".json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
