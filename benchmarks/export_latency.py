"""Exported policies against the agents they came of: one decision, and 64 at once.

    python benchmarks/export_latency.py            # eight minutes, most of them for minilm
    python benchmarks/export_latency.py --kinds mlp cnn --repeats 50

Each kind of policy, with random weights, is exported to both formats. Then `Agent.predict`, its
`act` without checks of what it is given, onnxruntime and `torch.export` decide in turn on the same
observations, in one process, on one thread: medians, and their ratios. Only ratios mean something
elsewhere.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import prepare_process, run_apart

ROWS = (1, 64)


def policies() -> dict[str, Callable[[], Any]]:
    """Agents as they begin, by the kind of their network."""
    import gymnasium as gym
    import numpy as np

    from rl_lightning import (
        DQN,
        PPO,
        ActorCritic,
        BagOfWordsEncoder,
        EnvSpec,
        LLMEncoder,
        MLPEncoder,
        NatureCNN,
    )

    vector = EnvSpec(gym.spaces.Box(-1.0, 1.0, (8,), np.float32), gym.spaces.Discrete(4))
    image = EnvSpec(gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), gym.spaces.Discrete(6))
    text = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(4))
    normal = partial(MLPEncoder, normalize=True)
    return {
        "mlp": lambda: PPO(vector, normal),
        "lstm": lambda: PPO(vector, normal, partial(ActorCritic, recurrent="lstm")),
        "cnn": lambda: DQN(image, NatureCNN),
        "words": lambda: PPO(text, BagOfWordsEncoder),
        "minilm": lambda: PPO(text, partial(LLMEncoder, max_length=64, cache_size=0)),
    }


def run_here(kind: str, repeats: int) -> None:
    """One kind in this process; prints one line of JSON."""
    prepare_process()
    import numpy as np
    import torch

    from rl_lightning.export import export_policy
    from rl_lightning.export.inputs import parts_of
    from rl_lightning.export.run_exported import ExportedPolicy
    from rl_lightning.export.samples import sample_part

    agent = policies()[kind]().eval()
    (part,) = parts_of(agent.encoder, agent.spec.observation_space)
    rows = sample_part(part, agent.encoder, max(ROWS), np.random.default_rng(1))
    with tempfile.TemporaryDirectory() as folder:
        exported = {}
        for form in ("onnx", "torch"):
            export_policy(agent, Path(folder) / form, form)
            exported[form] = ExportedPolicy(Path(folder) / form)
        result: dict[str, Any] = {}
        for count in ROWS:
            some = rows[:count]
            batch = tuple(some) if isinstance(some[0], str) else np.stack(some)
            ways = decisions(agent, exported, some, batch)
            times: dict[str, list[float]] = {name: [] for name in ways}
            with torch.no_grad():
                for _ in range(repeats):
                    for name, decide in ways.items():  # in turn: what slows one, slows all
                        began = time.perf_counter()
                        decide()
                        times[name].append(time.perf_counter() - began)
            result[str(count)] = {k: 1e3 * statistics.median(v) for k, v in times.items()}
    print(json.dumps(result))


def decisions(agent: Any, exported: Any, some: list, batch: Any) -> dict[str, Callable[[], Any]]:
    """The ways of deciding on the same observations, from the raw ones on."""
    state = agent.initial_state(len(some))

    def act() -> Any:
        return agent.act(agent.preprocess(batch), explore=False, state=state)

    def run(form: str) -> Any:
        exported[form].reset()
        return exported[form].run(some)

    return {
        "predict": lambda: agent.predict(batch, state=None),
        "act": act,
        "onnx": partial(run, "onnx"),
        "torch.export": partial(run, "torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = ("mlp", "lstm", "cnn", "words", "minilm")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run_here(args.run[0], int(args.run[1]))
    print("milliseconds (median), one thread, raw observations to actions; × is against act")
    numbers = {}
    for kind in args.kinds:
        numbers[kind] = run_apart(__file__, kind, args.repeats)
        for count, times in numbers[kind].items():
            told = "  ".join(
                f"{name} {ms:.3f} ({times['act'] / ms:.2f}×)" for name, ms in times.items()
            )
            print(f"  {kind:7} {count:>3}: {told}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"repeats": args.repeats, "kinds": numbers}) + "\n")
    return None


if __name__ == "__main__":
    main()
