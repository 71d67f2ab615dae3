"""Groups of completions: a prompt read once for its group, against once for each completion.

    python benchmarks/completions.py            # some minutes
    python benchmarks/completions.py --hidden 576 --new 32

Tokens per CPU second of writing: by our own loop with the group's prompt read once, by the same
with a prompt for each completion, and by transformers' `generate` with as many completions of a
prompt. Then an update, forward and backward: each way of `read_completions` against the one that
`auto` takes, and all logits of rows of prompt and completion, as one writes it by hand. Ours and
theirs in turn, in one process, one thread, CPU seconds; the numbers must agree.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from action_scoring import make_backbone
from common import prepare_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: a Llama of random weights")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8_000)
    parser.add_argument("--prompt", type=int, nargs="+", default=[10, 200], help="tokens")
    parser.add_argument("--new", type=int, nargs="+", default=[32, 256], help="tokens")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    args = parser.parse_args()
    prepare_process()
    backbone = make_backbone(args).eval()
    found: dict[str, Any] = {}
    for prompt in args.prompt:
        for new in args.new:
            name = f"prompt {prompt}, {args.group} × {new} new"
            found[name] = {
                "writing": write(backbone, args, prompt, new),
                "update": update(backbone, args, prompt, new),
            }
            print(f"{name}: {json.dumps(found[name])}", flush=True)
            if args.out:
                kept = {k: v for k, v in vars(args).items() if k != "out"}
                numbers = {"arguments": kept, "shapes": found}
                args.out.write_text(json.dumps(numbers, indent=1) + "\n")


def tokens(backbone: Any, *shape: int) -> torch.Tensor:
    vocabulary = min(int(backbone.model.config.vocab_size), 8_000)
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(sum(shape)))


def write(backbone: Any, args: argparse.Namespace, prompt: int, new: int) -> dict[str, Any]:
    from rl_lightning.llm import generation
    from rl_lightning.llm.generators import TransformersGenerator
    from rl_lightning.llm.sampling import Sampling

    # All completions of the same length: nobody ends early.
    backbone.model.generation_config.eos_token_id = None
    generation.end_tokens = lambda backbone: []
    ids = tokens(backbone, args.groups, prompt)
    sampling, count = Sampling(new), args.groups * args.group
    ours = TransformersGenerator()

    def shared() -> None:
        ours(backbone, ids.tolist(), args.group, sampling, 0)

    def apart() -> None:
        ours(backbone, ids.repeat_interleave(args.group, 0).tolist(), 1, sampling, 0)

    def theirs() -> None:
        with torch.no_grad():
            backbone.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                num_return_sequences=args.group,
                pad_token_id=0,
            )

    times = in_turn({"shared": shared, "apart": apart, "generate": theirs}, args.rounds)
    return {
        "tokens per CPU second": round(count * new / statistics.median(times["shared"])),
        **ratios(times, "shared"),
    }


def update(backbone: Any, args: argparse.Namespace, prompt: int, new: int) -> dict[str, Any]:
    from rl_lightning.llm.reading import Method, _choose, read_completions

    first = tokens(backbone, args.groups, prompt)
    ids = tokens(backbone, args.groups, args.group, new)
    length, size = torch.full((args.groups,), prompt), torch.full(ids.shape[:2], new)
    own, heat = torch.ones_like(ids, dtype=torch.bool), torch.ones(args.groups)

    def ours(method: Method) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            read = read_completions(backbone, first, length, ids, size, own, heat, method=method)
            return read.log_prob

        return run

    def by_hand() -> torch.Tensor:
        rows = torch.cat([first.repeat_interleave(args.group, 0), ids.flatten(0, 1)], 1)
        logits = backbone.model(input_ids=rows, use_cache=False).logits[:, prompt - 1 : -1]
        said = logits.float().log_softmax(-1).gather(2, rows[:, prompt:, None])
        return said.view(ids.shape)

    calls = {name: ours(name) for name in ("rows", "packed", "cached", "auto")}
    calls["all logits"] = by_hand
    with torch.no_grad():
        expected = by_hand()
        for name in ("rows", "packed", "cached"):
            torch.testing.assert_close(calls[name](), expected, rtol=1e-5, atol=1e-4)

    def learns(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            backbone.zero_grad(set_to_none=True)
            call().sum().backward()

        return run

    times = in_turn({name: learns(call) for name, call in calls.items()}, args.rounds)
    chosen = _choose(backbone, length, size, "auto")
    return {
        "seconds": round(statistics.median(times["auto"]), 3),
        "auto takes": chosen,
        **ratios(times, "auto"),
    }


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if round_:
                times[name].append(time.process_time() - began)
    return times


def ratios(times: dict[str, list[float]], ours: str) -> dict[str, list[float]]:
    """The others' seconds by ours: least, median and most."""
    out = {}
    for name, theirs in times.items():
        if name != ours:
            own = sorted(t / o for t, o in zip(theirs, times[ours], strict=True))
            out[f"{name} / {ours}"] = [
                round(v, 2) for v in (own[0], statistics.median(own), own[-1])
            ]
    return out


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    main()
