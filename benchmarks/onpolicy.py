"""PPO on CartPole: frames per second against Stable-Baselines3, in turn, in one run.

    python benchmarks/onpolicy.py                 # five pairs of each setting, about ten minutes
    python benchmarks/onpolicy.py --pairs 1 --frames 50000

Both libraries get the same environments, network, optimizer settings and number of frames, one
thread, and a process of their own for every run; what is timed is the whole call that trains.
Machines are noisy, so the figure to look at is the median of the ratios of neighbouring runs. The
greedy return of the trained policies shows that the same thing was learned.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import compare, prepare_process

SETTINGS: dict[str, dict[str, Any]] = {
    "8 x 128": {"num_envs": 8, "steps": 128, "minibatch": 256},
    "64 x 32": {"num_envs": 64, "steps": 32, "minibatch": 512},
    "64 x 32 native": {"num_envs": 64, "steps": 32, "minibatch": 512, "native": True},
}
LR, GAMMA, LAMBDA, ENTROPY, CLIP, PASSES = 2.5e-4, 0.99, 0.95, 0.01, 0.2, 4
ENV = "CartPole-v1"


def train_rl_lightning(setting: dict[str, Any], frames: int, seed: int) -> tuple[float, Any]:
    from functools import partial

    import lightning as L
    import torch

    from rl_lightning import PPO, RolloutDataModule

    L.seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        ENV,
        num_envs=setting["num_envs"],
        rollout_steps=setting["steps"],
        minibatch_size=setting["minibatch"],
        passes=PASSES,
        total_frames=frames,
        rollouts_per_epoch=10,
        vectorization="native" if setting.get("native") else "sync",
    )
    agent = PPO(
        data.spec,
        optimizer=partial(torch.optim.Adam, lr=LR, eps=1e-5, fused=True),
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        entropy_coef=ENTROPY,
    )
    trainer = L.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=0.5,
    )
    began = time.perf_counter()
    trainer.fit(agent, data)
    seconds = time.perf_counter() - began
    agent.eval()
    return seconds, lambda obs: int(agent.act(agent.preprocess(obs[None]), False)["action"])


def train_sb3(setting: dict[str, Any], frames: int, seed: int) -> tuple[float, Any]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy",
        make_vec_env(ENV, setting["num_envs"], seed=seed),
        n_steps=setting["steps"],
        batch_size=setting["minibatch"],
        n_epochs=PASSES,
        learning_rate=LR,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        ent_coef=ENTROPY,
        seed=seed,
        device="cpu",
    )
    began = time.perf_counter()
    model.learn(frames)
    seconds = time.perf_counter() - began
    return seconds, lambda obs: int(model.predict(obs, deterministic=True)[0])


def evaluate(policy: Any, episodes: int = 20) -> float:
    """Mean greedy return."""
    import gymnasium as gym
    import torch

    env, total = gym.make(ENV), 0.0
    with torch.no_grad():
        for episode in range(episodes):
            obs, _ = env.reset(seed=10_000 + episode)
            over = False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(policy(obs))
                total += float(reward)
                over = terminated or truncated
    return total / episodes


def run_here(library: str, name: str, frames: int, seed: int) -> None:
    """One run in this process; prints one line of JSON."""
    prepare_process()
    train = train_rl_lightning if library == "rl_lightning" else train_sb3
    began = time.process_time()
    seconds, policy = train(SETTINGS[name], frames, seed)
    cpu = time.process_time() - began
    print(json.dumps({"fps": frames / seconds, "cpu": cpu, "return": evaluate(policy)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=204_800)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        library, name, frames, seed = args.run
        return run_here(library, name, int(frames), int(seed))

    rows = compare(__file__, {name: (name, args.frames) for name in args.settings}, args.pairs)
    print(f"PPO {ENV}, {args.frames:,} frames, {args.pairs} pairs of runs, one thread")
    print("| envs x steps | rl_lightning | SB3 | ratio (min .. max) | returns |")
    print("| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['ours']:,.0f} | {row['theirs']:,.0f} | **{row['ratio']:.2f}** "
            f"({row['ratio_min']:.2f} .. {row['ratio_max']:.2f}) | "
            f"{row['return']:.0f} / {row['their_return']:.0f} |"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"frames": args.frames, "settings": rows}, indent=1))
    return None


if __name__ == "__main__":
    main()
