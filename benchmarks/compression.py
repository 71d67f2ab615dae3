"""What is left of a policy that is made smaller: return, bytes, latency, memory, parameters.

    python benchmarks/compression.py configs/ppo/cartpole.yaml --tune 32768 \\
        --tune_with="--model.lr_schedule constant --model.clip_schedule constant" \\
        --student configs/distill/cartpole.yaml --keep checkpoints/smaller/cartpole \\
        --out benchmarks/results/compression/cartpole.json
    python benchmarks/compression.py configs/dqn/lunarlander.yaml --tune 50_000 \\
        --tune_with="--model.lr_schedule constant --model.optimizer.init_args.lr 1e-4" \\
        --student configs/distill/lunarlander.yaml --keep checkpoints/smaller/lunarlander \\
        --out benchmarks/results/compression/lunarlander.json
    python benchmarks/compression.py configs/sac/lunarlander.yaml \\
        --train_with="--model.network.init_args.hidden [256,256]" \\
        --arms full "nodes 50 %" "nodes 80 %" int8 int4 ternary \\
        --keep checkpoints/smaller/lunarlander-sac \\
        --out benchmarks/results/compression/lunarlander-sac.json
    python benchmarks/compression.py configs/ppo/textmaze.yaml --tune 102_400 \\
        --student configs/distill/textmaze.yaml --keep checkpoints/smaller/textmaze \\
        --out benchmarks/results/compression/textmaze.json

Each seed trains the configuration, then makes its policy smaller in every way of its arms by the
commands of a user (`compress`, `fit`, `fit` of a student); what is in `--keep` already is not made
again. Then each policy is judged in a process of its own, one after the other, on one thread. All
of these processes are forks of one that has imported the libraries, which takes longer than most
of what they do.

- the return of the greedy policy in `--episodes` episodes;
- the bytes of a file of all of its weights and nothing else, those of a frozen language model
  included, which checkpoints leave out; and those of a file without its critics, of what acts;
- the time from a raw observation, or 64 of them, to actions, all caches of texts empty; weights
  in few bits are computed in float32;
- the peak memory that loading it, making the environments and deciding took on top of what the
  imported libraries take, read from the kernel's count of this process alone.

Agreement is what `compress` prints, with the policy before that step, without any training after
it; the least of several steps. Of a student without a further step nothing is said.
"""

import argparse
import io
import json
import os
import re
import shlex
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import prepare_process
from compression_arms import ARMS, STUDENT, TEXT_ARMS, TUNE, VALUE_ARMS, arms_of
from tqdm import tqdm


def make(seed: int, names: list[str], arguments: Any, bar: Any) -> None:
    """Train one seed, and make its policy smaller in these ways, where that was not done yet."""
    home = arguments.keep / str(seed)
    whole = home / "trained"
    train(whole, arguments.config, seed, *shlex.split(arguments.train_with))
    for name in names:
        folder = home / slug(name)
        if not (folder / "last.ckpt").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            smaller(arguments.arms_of[name], whole / "last.ckpt", seed, arguments, making)
            making.rename(folder)
        bar.update()


def train(folder: Path, config: str, seed: int, *more: str) -> None:
    """Train a configuration, unless that was done to its end."""
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        where = ("--checkpoint.dirpath", str(folder), "--trainer.logger", "false")
        cli("fit", "--config", config, "--seed_everything", str(seed), *where, *more)
        (folder / "done").touch()


def smaller(steps: tuple[str, ...], full: Path, seed: int, arguments: Any, folder: Path) -> None:
    """Make a policy smaller, step by step; `last.ckpt`, and `agreement.json` if `compress` said."""
    path, agreed = full, None
    for number, step in enumerate(steps):
        if step == STUDENT:
            taught = full.parent.parent / STUDENT
            train(taught, arguments.student, seed, "--model.init_args.teacher", str(full))
            path = taught / "last.ckpt"
        elif step == TUNE:
            frames = _frames(path) + arguments.tune
            own = folder / "0-model"  # of a language model whose vocabulary was cut
            encoder = "--model.init_args.encoder.init_args"
            named = (f"{encoder}.model", str(own), f"{encoder}.pretrained", "false")
            cli(
                *("fit", "--config", arguments.config, "--ckpt_path", str(path)),
                *("--data.total_frames", str(frames), "--trainer.logger", "false"),
                *("--checkpoint.dirpath", str(folder / str(number))),
                *(named if own.is_dir() else ()),
                *shlex.split(arguments.train_with),
                *shlex.split(arguments.tune_with),
            )
            path = folder / str(number) / "last.ckpt"
        else:
            out = folder / f"{number}.ckpt"
            method = ("--method", *step.split())
            said = cli("compress", "--ckpt_path", str(path), "--out", str(out), *method)
            told = re.search(r"([\d.]+)% of [\d,]+ actions agree", said)
            assert told is not None, said
            share = float(told[1]) / 100
            path, agreed = out, share if agreed is None else min(agreed, share)
    shutil.copy(path, folder / "last.ckpt")
    (folder / "agreement.json").write_text(json.dumps(agreed))


def _frames(path: Path) -> int:
    from rl_lightning.core.checkpoints import read_checkpoint

    return read_checkpoint(path)["frames"]


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")


def forked(call: Callable[[], None]) -> str:
    """Run something in a fork of this process; returns what it printed.

    Raises:
        SystemExit: If it failed, with what it wrote to stderr.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            status = 1
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            try:
                call()
                status = 0
            except SystemExit as stop:
                status = int(bool(stop.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        for file in (out, errors):
            file.seek(0)
        if ended:
            raise SystemExit(errors.read().decode()[-3000:])
        return out.read().decode()


def cli(*arguments: str) -> str:
    """Run `rl-lightning`; returns what it printed."""
    from rl_lightning.cli.command import main as command

    return forked(lambda: command(list(arguments)))


def peak_kilobytes() -> int:
    """Most memory that this process has used, and its parent before the fork."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1])


def measure(checkpoint: Path, episodes: int) -> None:
    """One policy, in this process; prints one line of JSON."""
    import lightning as L
    import torch

    from rl_lightning import Agent
    from rl_lightning.agents.compressed import PolicyCall
    from rl_lightning.compress import count
    from rl_lightning.data import RLDataModule

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is used now
    before = peak_kilobytes()
    agent: Any = Agent.load_from_checkpoint(checkpoint).eval()
    few = min(50, episodes)
    data: Any = RLDataModule.load_from_checkpoint(
        checkpoint, val_episodes=episodes, val_num_envs=few
    )
    with torch.no_grad():
        times = {n: decision_seconds(agent, data, n) for n in (1, 64)}
        peak = peak_kilobytes()
        cost = count(PolicyCall(agent), agent.preprocess(observations(data, 1)))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    (found,) = trainer.validate(agent, data, verbose=False)
    result = {
        "return": found["val/return"],
        "success": found.get("val/success"),
        "bytes": file_bytes(agent.policy),
        "acting_bytes": file_bytes(agent.policy, acting=True),
        "parameters": cost.parameters,
        "nonzero": cost.nonzero,
        "milliseconds": 1e3 * times[1],
        "milliseconds_64": 1e3 * times[64],
        "peak_megabytes": (peak - before) / 1024,
    }
    print(json.dumps(result))


def import_libraries() -> None:
    """Whatever the forks will need, and one thread."""
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    prepare_process()
    import peft  # noqa: F401
    import torch_pruning  # noqa: F401
    import transformers  # noqa: F401

    import rl_lightning.cli.command  # noqa: F401


def observations(data: Any, count: int) -> Any:
    """First observations of so many environments, as they are."""
    env = data.make_eval_env(count)
    try:
        return env.reset(seed=1)[0]
    finally:
        env.close()


def decision_seconds(agent: Any, data: Any, count: int) -> float:
    """The median time from so many raw observations to their actions."""
    obs, state = observations(data, count), agent.initial_state(count)
    times, began = [], time.perf_counter()
    while len(times) < 20 or (len(times) < 200 and time.perf_counter() - began < 4):
        forget_texts(agent)
        start = time.perf_counter()
        agent.act(agent.preprocess(obs), explore=False, state=state)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def forget_texts(agent: Any) -> None:
    """Empty what language models have read of texts."""
    from rl_lightning.encoders.reading import ReadingEncoder

    for part in agent.policy.modules():
        if isinstance(part, ReadingEncoder):
            part.cache.clear()


def file_bytes(policy: Any, acting: bool = False) -> int:
    """Of all weights of a policy, with those that its checkpoints leave out; or of what acts alone,
    without critics."""
    import torch

    from rl_lightning.llm.backbone import Backbone

    for part in policy.modules():
        if isinstance(part, Backbone):
            part.reloadable = False
    state = {k: v for k, v in policy.state_dict().items() if not (acting and "critic" in k)}
    contents = io.BytesIO()
    torch.save(state, contents)
    return contents.tell()


def run(arguments: Any) -> dict[str, Any] | None:
    """All arms of all seeds, each run one row."""
    arguments.arms_of = arms_of(arguments.config, arguments.student)
    names = [name for name in arguments.arms_of if not arguments.arms or name in arguments.arms]
    total = len(arguments.seeds) * len(names)
    import_libraries()
    with tqdm(total=total, desc="making") as bar:
        for seed in arguments.seeds:
            make(seed, names, arguments, bar)
    if arguments.only_make:
        return None
    result: dict[str, Any] = {
        "config": arguments.config,
        "train_with": arguments.train_with,
        "tune": arguments.tune,
        "tune_with": arguments.tune_with,
        "runs": [],
    }
    with tqdm(total=total, desc="judging") as bar:
        for seed in arguments.seeds:
            for name in names:
                bar.set_postfix_str(f"seed {seed}: {name}")
                folder = arguments.keep / str(seed) / slug(name)
                agreed = json.loads((folder / "agreement.json").read_text())
                told = forked(partial(measure, folder / "last.ckpt", arguments.episodes))
                row = json.loads(told.splitlines()[-1])
                result["runs"].append({"seed": seed, "arm": name, "agreement": agreed, **row})
                bar.update()
                if arguments.out:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """Means over seeds, in Markdown; medians of times and memory."""
    success = result["runs"][0]["success"] is not None
    lines = [
        f"| policy | {'success' if success else 'return'} | worst | agrees | bytes | × | acts, × "
        "| parameters, not 0 | ms, 1 | ms, 64 | peak MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    names = list(dict.fromkeys(row["arm"] for row in result["runs"]))
    full = [row for row in result["runs"] if row["arm"] == "full"]
    whole, acting = (statistics.mean(r[key] for r in full) for key in ("bytes", "acting_bytes"))
    for name in names:
        rows = [row for row in result["runs"] if row["arm"] == name]
        worth = [row["success" if success else "return"] for row in rows]
        spread = statistics.stdev(worth) if len(worth) > 1 else 0.0
        digits = 3 if success else 1
        agreed = [row["agreement"] for row in rows if row["agreement"] is not None]
        told = f"{statistics.mean(agreed):.1%}" if agreed else ""
        size, acts = (statistics.mean(r[key] for r in rows) for key in ("bytes", "acting_bytes"))
        lines.append(
            f"| {name} | {statistics.mean(worth):.{digits}f} ± {spread:.{digits}f} "
            f"| {min(worth):.{digits}f} | {told} | {size:,.0f} | {size / whole:.3f} "
            f"| {acts / acting:.3f} "
            f"| {statistics.mean(row['nonzero'] for row in rows):,.0f} "
            f"| {statistics.median(row['milliseconds'] for row in rows):.2f} "
            f"| {statistics.median(row['milliseconds_64'] for row in rows):.2f} "
            f"| {statistics.median(row['peak_megabytes'] for row in rows):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="configuration to train and make smaller")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--train_with", default="", help="more arguments of its `fit`")
    parser.add_argument("--tune", type=int, default=32_768, help="frames of training afterwards")
    parser.add_argument("--tune_with", default="", help="more arguments of that `fit`")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--student", help="configuration of Distill, to be taught by each seed")
    parser.add_argument(
        "--arms", nargs="+", choices={**ARMS, **VALUE_ARMS, **TEXT_ARMS}, help="only these"
    )
    parser.add_argument("--only_make", action="store_true", help="make them, to be judged later")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoints")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="print what --out holds, and stop")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return
    if arguments.config is None or arguments.keep is None:
        parser.error("name a configuration, and a folder to --keep the checkpoints in")
    found = run(arguments)
    if found is not None:
        print(table(found))


if __name__ == "__main__":
    main()
