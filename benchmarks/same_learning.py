"""PPO on CartPole at equal settings: does it learn the same as Stable-Baselines3's?

    python benchmarks/same_learning.py --seeds 40 --jobs 2      # an hour and a half
    python benchmarks/same_learning.py --settings zoo --seeds 40 --jobs 16

Two settings: rl-zoo3's hyper-parameters, judged early, where a wrong detail costs most; and those
of `onpolicy.py`, judged at the end. Per seed, the mean greedy return of 20 episodes that are the
same for everybody; over seeds, mean and standard error. "The same" is a difference of less than two
of its standard errors.
"""

import argparse
import json
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import prepare_process, quiet_trainer, run_apart
from onpolicy import CARTPOLE, SETTINGS, evaluate
from tqdm import tqdm

WAYS: dict[str, dict[str, Any]] = {
    # rl-zoo3, hyperparams/ppo.yml, CartPole-v1
    "zoo": {
        **CARTPOLE,
        "frames": 100_000,
        "marks": [5_120, 10_240],
        "num_envs": 8,
        "steps": 32,
        "minibatch": 256,
        "passes": 20,
        "lr": 1e-3,
        "linear": True,
        "entropy": 0.0,
        "gamma": 0.98,
        "gae_lambda": 0.8,
    },
    "8 x 128": {
        **SETTINGS["8 x 128"],
        "marks": [51_200, 102_400, 204_800],
        "linear": False,
        "gamma": 0.99,
        "gae_lambda": 0.95,
    },
}


def ours(way: dict[str, Any], seed: int) -> list[float]:
    from functools import partial

    import lightning as L
    import torch

    from rl_lightning import PPO, RolloutDataModule

    found: list[float] = []

    class Judge(L.Callback):
        takes_runs = True

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.datamodule.frames not in way["marks"]:
                return
            state = torch.get_rng_state()
            found.append(evaluate(way, lambda obs: pl_module.predict(obs)))
            torch.set_rng_state(state)
            trainer.should_stop = len(found) == len(way["marks"])

    L.seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        way["env"],
        num_envs=way["num_envs"],
        rollout_steps=way["steps"],
        minibatch_size=way["minibatch"],
        passes=way["passes"],
        total_frames=way["frames"],
    )
    schedule = "linear" if way["linear"] else "constant"
    agent = PPO(
        data.spec,
        optimizer=partial(torch.optim.Adam, lr=way["lr"], eps=1e-5, fused=True),
        lr_schedule=schedule,
        clip_schedule=schedule,
        gamma=way["gamma"],
        gae_lambda=way["gae_lambda"],
        entropy_coef=way["entropy"],
    )
    trainer = quiet_trainer(gradient_clip_val=0.5, callbacks=[Judge()])
    trainer.fit(agent, data)
    return found


def theirs(way: dict[str, Any], seed: int) -> list[float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    found: list[float] = []

    def judge() -> None:
        found.append(evaluate(way, lambda obs: int(model.predict(obs, deterministic=True)[0])))

    class Judge(BaseCallback):
        def _on_rollout_start(self) -> None:  # the updates of the rollout before are made
            if self.num_timesteps in way["marks"]:
                judge()

        def _on_step(self) -> bool:
            return len(found) < len(way["marks"])

    def falling(start: float) -> Any:
        return (lambda left: left * start) if way["linear"] else start

    model = PPO(
        "MlpPolicy",
        make_vec_env(way["env"], way["num_envs"], seed=seed),
        n_steps=way["steps"],
        batch_size=way["minibatch"],
        n_epochs=way["passes"],
        learning_rate=falling(way["lr"]),
        clip_range=falling(0.2),
        gamma=way["gamma"],
        gae_lambda=way["gae_lambda"],
        ent_coef=way["entropy"],
        seed=seed,
        device="cpu",
    )
    model.learn(way["frames"], callback=Judge())
    if len(found) < len(way["marks"]):  # the last mark is where training ends
        judge()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a core each")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        library, name, seed = args.run
        prepare_process()
        learn = ours if library == "rl_lightning" else theirs
        print(json.dumps({"returns": learn(WAYS[name], int(seed))}))
        return
    jobs = [
        (library, name, seed)
        for name in args.settings
        for seed in range(1, args.seeds + 1)
        for library in ("rl_lightning", "sb3")
    ]
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(jobs), unit="run") as bar:

        def play(job: tuple[str, str, int]) -> list[float]:
            found = run_apart(__file__, *job)["returns"]
            bar.update()
            return found

        returns = dict(zip(jobs, pool.map(play, jobs), strict=True))
    rows: dict[str, Any] = {}
    print("| setting | frames | rl_lightning | SB3 | difference / its standard error |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.settings:
        for index, frames in enumerate(WAYS[name]["marks"]):
            row: dict[str, Any] = {}
            for library in ("rl_lightning", "sb3"):
                seen = [v[index] for (k, n, _), v in returns.items() if (k, n) == (library, name)]
                error = statistics.stdev(seen) / math.sqrt(len(seen)) if len(seen) > 1 else 0.0
                row[library] = {"mean": statistics.mean(seen), "error": error, "returns": seen}
            one, other = row["rl_lightning"], row["sb3"]
            apart = one["mean"] - other["mean"]
            ratio = apart / (math.hypot(one["error"], other["error"]) or 1.0)
            rows.setdefault(name, {})[frames] = row
            print(
                f"| {name} | {frames:,} | {one['mean']:.0f} ± {one['error']:.0f} | "
                f"{other['mean']:.0f} ± {other['error']:.0f} | {apart:+.0f}, {ratio:+.1f} |"
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        seeds = dict.fromkeys(rows, args.seeds)
        args.out.write_text(json.dumps({"seeds": seeds, "settings": rows}, indent=1))


if __name__ == "__main__":
    main()
