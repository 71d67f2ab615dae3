"""Trains on two ranks with small gradients: `compressed_ddp_script.py PART FOLDER`.

Each rank writes down what it saw of each case: `rankR.json`, and its weights: `rankR.pt`.
"""

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
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from rl_lightning import (
    PPO,
    SAC,
    TD3,
    CompressGradients,
    MLPEncoder,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.compress import gradients
from rl_lightning.compress.gradients import METHODS, WITH_RESIDUALS

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

FULL = [1.0 + 2**-12, 70_000.0, 1e-9, -3.25]  # what halves round, and cannot hold


class Spy:
    """torch.distributed as the hook sees it, which counts what is handed to it."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {"all_reduce": 0, "all_gather": 0}
        self.bytes = 0

    def all_reduce(self, tensor):
        self._count("all_reduce", tensor)
        return dist.all_reduce(tensor)

    def all_gather(self, tensors, tensor):
        self._count("all_gather", tensor)
        return dist.all_gather(tensors, tensor)

    def _count(self, name, tensor):
        self.calls[name] += 1
        self.bytes += tensor.numel() * tensor.element_size()


class Notes(DummyLogger):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))


class OneWeight(L.LightningModule):
    """Whose gradient is its batch, in rank 1 with the other sign and halved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.seen = []

    def training_step(self, batch, batch_idx):
        return (self.weight * batch[0]).sum() * (-0.5 if self.global_rank else 1.0)

    def on_before_optimizer_step(self, optimizer):
        self.seen.append(self.weight.grad.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def make_trainer(callbacks, strategy="ddp", **arguments):
    return L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=callbacks,
        **{"max_epochs": -1, "logger": False, **arguments},
    )


def train(method, rollouts=3, saver=None, ckpt_path=None, kind=CompressGradients, **arguments):
    """PPO on CartPole; what was seen, and the weights."""
    spy, notes = Spy(), Notes()
    gradients.dist = spy  # type: ignore[assignment]
    L.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1",
        num_envs=2,
        rollout_steps=16,
        minibatch_size=16,
        passes=2,
        total_frames=2 * 16 * 2 * rollouts,
    )
    agent = PPO(data.spec, encoder=partial(MLPEncoder, hidden=[16, 16]))
    compress = None
    if method is not None:
        compress = kind(method, rank=1, share=0.1, start=1)
    callbacks = [c for c in (compress, saver) if c is not None]
    trainer = make_trainer(
        callbacks, logger=notes, log_every_n_steps=3, gradient_clip_val=0.5, **arguments
    )
    trainer.fit(agent, data, ckpt_path=ckpt_path)
    summary = {
        "agent": agent.updates,
        "steps": trainer.global_step,
        "bytes": spy.bytes,
        **spy.calls,
        "size": sum(p.numel() for p in agent.parameters() if p.requires_grad),
        "parameters": sum(1 for p in agent.parameters() if p.requires_grad),
        "logged": [row for row in notes.rows if "comm/bytes_per_update" in row],
        "losses": sum("loss/policy" in row for row in notes.rows),
    }
    if compress is not None:
        summary["updates"] = compress.compressor.updates
        summary["last"] = compress.compressor.bytes_per_update
    return summary, agent.state_dict(), compress


def methods(folder):
    """All methods, and none at all."""
    for method in (None, *METHODS):
        yield str(method), *train(method)[:2]


def halves(folder):
    """Gradients by hand, of one update and of two that are accumulated."""
    for every in (1, 2):
        compress, model = CompressGradients("fp16"), OneWeight()
        batches = DataLoader(torch.tensor([FULL, FULL, FULL, FULL]))
        trainer = make_trainer(
            [compress], max_epochs=1, accumulate_grad_batches=every, use_distributed_sampler=False
        )
        trainer.fit(model, batches)
        yield f"halves{every}", {"seen": model.seen, "updates": compress.compressor.updates}, {}


def lost(folder):
    """NaN on one rank only."""
    for method in METHODS:
        model = OneWeight()
        own = torch.ones(1, 4)
        if os.environ.get("LOCAL_RANK") == "1":
            own[0, 2] = torch.nan
        trainer = make_trainer(
            [CompressGradients(method, share=0.25)], max_epochs=1, use_distributed_sampler=False
        )
        trainer.fit(model, DataLoader(own))
        yield f"{method} lost", {"seen": model.seen}, {}


class Forgets(CompressGradients):
    """Loses what was not sent."""

    def load_state_dict(self, state_dict):
        ranks = [{**rank, "residuals": {}} for rank in state_dict["ranks"]]
        super().load_state_dict({**state_dict, "ranks": ranks})


def resume(folder):
    """One method; the others take their time, see `resume_all`."""
    yield from resume_of(folder, "onebit")


def resume_all(folder):
    """The others."""
    for method in WITH_RESIDUALS:
        if method != "onebit":
            yield from resume_of(folder, method)


def resume_of(folder, method):
    """Three rollouts and three more, and six at once."""
    yield f"{method} whole", *train(method, rollouts=6)[:2]
    own = folder / method
    saver = ModelCheckpoint(own, "last", save_on_train_epoch_end=True, save_top_k=-1)
    train(method, rollouts=3, saver=saver)
    summary, state, compress = train(method, rollouts=6, ckpt_path=own / "last.ckpt")
    yield f"{method} resumed", summary, state
    again = train(method, rollouts=6, ckpt_path=own / "last.ckpt", kind=Forgets)
    yield f"{method} forgotten", *again[:2]
    yield f"{method} strange", strange(compress), {}


def strange(compress):
    """What it says of states that do not fit, and what is left then."""
    state, told = compress.state_dict(), {}
    cases = {
        "ranks": {"ranks": [*state["ranks"], state["ranks"][0]]},
        "shapes": {"shapes": {"w": [1]}},
        "method": {"method": "topk" if state["method"] == "onebit" else "onebit"},
        "rank": {"rank": 3},
        "same": {},
    }
    for name, changed in cases.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compress.compressor.load_state_dict({"updates": 0, "residuals": {}, "bases": {}})
            compress.load_state_dict({**state, **changed})
        left = compress.compressor.state_dict()
        told[name] = {
            "warnings": [str(warning.message) for warning in caught],
            "updates": left["updates"],
            "residuals": len(left["residuals"]),
        }
    return told


def agents(folder):
    """Agents with several losses, and single updates."""
    yield "accumulated", *train("onebit", accumulate_grad_batches=2)[:2]
    for name, kind, strategy in (
        ("sac", SAC, "ddp"),
        ("td3", TD3, "ddp_find_unused_parameters_true"),
    ):
        for method in ("onebit", "powersgd"):
            L.seed_everything(1, verbose=False)
            data = ReplayDataModule(
                "Pendulum-v1",
                num_envs=1,
                buffer_frames=1000,
                batch_size=16,
                warmup_frames=32,
                frames_per_epoch=32,
                total_frames=2 * 96,
            )
            agent = kind(data.spec, encoder=partial(MLPEncoder, hidden=[16, 16]))
            compress = CompressGradients(method, rank=1)
            trainer = make_trainer([compress], strategy)
            trainer.fit(agent, data)
            told = {"agent": agent.updates, "updates": compress.compressor.updates}
            yield f"{name} {method}", told, agent.state_dict()


PARTS = {
    "methods": methods,
    "halves": halves,
    "lost": lost,
    "resume": resume,
    "resume_all": resume_all,
    "agents": agents,
}


def main() -> None:
    folder = Path(sys.argv[2])
    summaries, states = {}, {}
    for part in sys.argv[1].split(","):
        for name, summary, state in PARTS[part](folder):
            summaries[name] = summary
            states[name] = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    own = folder / f"rank{dist.get_rank()}"
    own.with_suffix(".json").write_text(json.dumps(summaries))
    torch.save(states, own.with_suffix(".pt"))


if __name__ == "__main__":
    main()
