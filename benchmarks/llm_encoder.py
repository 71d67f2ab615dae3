"""A frozen language model in PPO: preprocess once and cache, against the usual practice.

    python benchmarks/llm_encoder.py              # about five minutes
    python benchmarks/llm_encoder.py --frames 32768 --layers 6

The usual practice treats a frozen encoder like any other network: it is run at every environment
step and again in every pass of every update. Ours runs it once for each different text. Both train
the same policy on TextMaze from the same seed, one thread, so the training returns must agree,
rollout by rollout; the benchmark fails if they do not.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import prepare_process, quiet_trainer, run_apart

from rl_lightning.encoders import LLMEncoder
from rl_lightning.llm import pool


class UsualPractice(LLMEncoder):
    """The same frozen model, run whenever features are needed."""

    def preprocess(self, obs: Sequence[str]) -> Any:
        ids, mask = self.backbone.tokens.pad(self.backbone.tokens(list(obs)), self.max_length)
        return {"input_ids": ids, "attention_mask": mask}

    @torch.no_grad()
    def forward(self, x: Any) -> torch.Tensor:
        mask = x["attention_mask"].bool()
        longest = int(mask.sum(1).max())
        ids, mask = x["input_ids"][:, :longest], mask[:, :longest]
        return pool(self.backbone(ids, mask), mask, self.pooling)


def run_here(practice: str, frames: int, layers: int) -> None:
    """One run in this process; prints one line of JSON."""
    from functools import partial

    import lightning as L

    from rl_lightning import PPO, ActorCritic, RolloutDataModule

    prepare_process()
    L.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "TextMaze-v0",
        num_envs=32,
        rollout_steps=64,
        minibatch_size=512,
        passes=4,
        total_frames=frames,
    )
    encoder = LLMEncoder if practice == "ours" else UsualPractice
    # Running statistics would be those of collection time in one run and of update time in the
    # other, so both go without.
    make = partial(encoder, layers=layers, max_length=64, standardize=False)
    agent = PPO(data.spec, make, partial(ActorCritic, hidden=[256], activation="relu"), gamma=0.95)
    if practice == "usual":  # which notes values and log-probabilities while acting
        agent.policy.evaluates_while_acting = True

    class Curve(L.Callback):
        returns: list[float] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.returns.append(module.clock_metrics.get("train/return", 0.0))

    trainer = quiet_trainer(gradient_clip_val=0.5, callbacks=[Curve()])
    agent.preprocess(["Warm up."])
    began = time.perf_counter()
    trainer.fit(agent, data)
    seconds = time.perf_counter() - began
    result = {"fps": frames / seconds, "returns": Curve.returns, "texts": len(agent.encoder.cache)}
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=16_384)
    parser.add_argument("--layers", type=int, default=2, help="transformer layers of MiniLM")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run_here(args.run[0], int(args.run[1]), int(args.run[2]))
    ours = run_apart(__file__, "ours", args.frames, args.layers)
    usual = run_apart(__file__, "usual", args.frames, args.layers)
    apart = max(abs(a - b) for a, b in zip(ours["returns"], usual["returns"], strict=True))
    print(f"PPO on TextMaze, {args.frames:,} frames, MiniLM with {args.layers} layers, one thread")
    print(f"  preprocess once, cache   {ours['fps']:8,.0f} frames/s, {ours['texts']} texts encoded")
    print(f"  the usual practice       {usual['fps']:8,.0f} frames/s")
    print(f"  ratio                    {ours['fps'] / usual['fps']:8.1f}")
    print(f"  largest difference of the training returns: {apart:.2g}")
    if args.out:
        numbers = {"frames": args.frames, "layers": args.layers, "ours": ours, "usual": usual}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(numbers) + "\n")
    if apart > 0.5:
        raise SystemExit("the two runs did not learn the same: the ratio means nothing")
    return None


if __name__ == "__main__":
    main()
