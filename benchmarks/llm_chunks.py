"""A frozen language model reading texts of mixed lengths that it has never seen.

    python benchmarks/llm_chunks.py            # about four minutes
    python benchmarks/llm_chunks.py --texts 128 --rounds 3

Batches of texts of 8 to 128 tokens, as a rollout brings them, none of which is remembered. "Padded"
is the usual practice: each batch is padded to its longest text. "Ours" reads texts of like lengths
together, as `LLMEncoder` does. Both in turn, in one process, one thread; the features must agree.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import prepare_process

WORDS = ("the", "maze", "goes", "north", "and", "you", "see", "a", "wall", "to", "west", "while")


def texts_of(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Different texts whose numbers of words are spread evenly."""
    rng = random.Random(seed)
    return [
        f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest)))
        for i in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="texts at a time: environments")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    args = parser.parse_args()
    prepare_process()
    import gymnasium as gym

    from rl_lightning import EnvSpec, LLMEncoder
    from rl_lightning.llm import pool

    spec = EnvSpec(gym.spaces.Text(10_000), gym.spaces.Discrete(2), "Texts-v0")
    encoder = LLMEncoder(spec, layers=args.layers, max_length=128, cache_size=0)
    backbone: Any = encoder.backbone

    @torch.no_grad()
    def padded(texts: list[str]) -> torch.Tensor:
        ids, mask = backbone.tokens.pad(backbone.tokens(texts), 128)
        mask = mask.bool()
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        return pool(backbone(ids, mask), mask, encoder.pooling)

    rows: dict[str, Any] = {}
    for name, lengths in {"8 … 128": (5, 125)}.items():
        ratios = []
        for round_ in range(args.rounds + 1):
            texts = texts_of(args.texts, *lengths, round_)
            batches = [texts[i : i + args.batch] for i in range(0, len(texts), args.batch)]
            took, seen = {}, {}
            ways = {"padded": padded, "ours": encoder.preprocess_raw}
            for way in sorted(ways, reverse=bool(round_ % 2)):
                began = time.perf_counter()
                seen[way] = torch.cat([ways[way](batch) for batch in batches])
                took[way] = time.perf_counter() - began
            torch.testing.assert_close(seen["ours"], seen["padded"], rtol=1e-4, atol=1e-5)
            if round_:  # the first warms up
                ratios.append(took["padded"] / took["ours"])
        rows[name] = {"ratio": statistics.median(ratios), "ratios": ratios}
        print(f"{name} tokens: {rows[name]['ratio']:.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
