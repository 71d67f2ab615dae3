"""Tunes on two ranks; each writes down what it ended with: `... MODEL FOLDER KIND`."""

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from token_tools import make, prompts, recorded

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)


def main() -> None:
    model, folder, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    known = {"val_share": 0.3, "val_batch": 1}
    data = (
        prompts(prompts_per_step=2, minibatch_prompts=1, passes=2, total_prompts=14, **known)
        if kind == "GRPO"
        else recorded(batch_size=2, total_updates=4, **known)
    )
    agent = make(kind, model)
    L.seed_everything(1, verbose=False)
    asked, written, own = [], [], agent.prepare_completions

    def keep(batch, *args, **kwargs):
        tokenizer = agent.backbone.tokens.tokenizer
        asked.append([tokenizer.decode(row[1:]) for row in batch["prompt"].tolist()])
        written.append(batch["ids"].flatten(1).tolist())
        return own(batch, *args, **kwargs)

    agent.__dict__["prepare_completions"] = keep
    trainer = L.Trainer(
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
    metrics = {
        k: float(v)
        for k, v in trainer.callback_metrics.items()
        if k.startswith(("val/", "train/r"))
    }
    told = {"asked": asked, "written": written, "metrics": metrics, "frames": data.frames}
    own_file.with_suffix(".json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
