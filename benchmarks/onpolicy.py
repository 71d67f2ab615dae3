"""PPO: frames per second against Stable-Baselines3 or CleanRL, in turn, in one run.

    python benchmarks/onpolicy.py                 # five pairs of each setting, half an hour
    python benchmarks/onpolicy.py --pairs 1 --frames 50000 --settings "8 x 128"
    python benchmarks/onpolicy.py --against cleanrl --cleanrl ../cleanrl    # see cleanrl.py

Both libraries get the same environments, network, optimizer settings and number of frames, one
thread, and a process of their own for every run; what is timed is making environments and training.
Machines are noisy, so the figure to look at is the median of the ratios of neighbouring runs. The
greedy return of the trained policies shows that the same thing was learned.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import compare, prepare_process, quiet_trainer, timed

CARTPOLE = {
    "env": "CartPole-v1",
    "frames": 204_800,
    "passes": 4,
    "lr": 2.5e-4,
    "entropy": 0.01,
    "episodes": 20,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "8 x 128": {**CARTPOLE, "num_envs": 8, "steps": 128, "minibatch": 256},
    "64 x 32": {**CARTPOLE, "num_envs": 64, "steps": 32, "minibatch": 512},
    "64 x 32 native": {
        **CARTPOLE,
        "num_envs": 64,
        "steps": 32,
        "minibatch": 512,
        "native": True,
    },
    "HalfCheetah 1 x 2048": {
        "env": "HalfCheetah-v5",
        "frames": 20_480,
        "num_envs": 1,
        "steps": 2048,
        "minibatch": 64,
        "passes": 10,
        "lr": 3e-4,
        "entropy": 0.0,
        "episodes": 5,
    },
    "Pong 8 x 128": {
        "env": "PongNoFrameskip-v4",
        "frames": 4_096,
        "num_envs": 8,
        "steps": 128,
        "minibatch": 256,
        "passes": 4,
        "lr": 2.5e-4,
        "entropy": 0.01,
        "episodes": 1,
    },
}
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
SCRIPTS = {"CartPole": "ppo", "HalfCheetah": "ppo_continuous_action", "Pong": "ppo_atari"}


def pixels(setting: dict[str, Any]) -> bool:
    return "NoFrameskip" in setting["env"]


def train_rl_lightning(setting: dict[str, Any], seed: int) -> tuple[dict[str, float], Any]:
    from functools import partial

    import lightning as L
    import torch

    from rl_lightning import PPO, MLPEncoder, NatureCNN, RolloutDataModule

    L.seed_everything(seed, verbose=False)
    cheetah, atari = setting["env"].startswith("HalfCheetah"), pixels(setting)
    wrappers: Any = []
    if atari:
        # Grey frames of 84 x 84, four of them, four steps an action, a lost life ends an episode.
        wrappers = [
            {"AtariPreprocessing": {"terminal_on_life_loss": True}},
            {"FrameStackObservation": {"stack_size": 4}},
            {"ClipReward": {"min_reward": -1.0, "max_reward": 1.0}},
        ]
    data = RolloutDataModule(
        setting["env"],
        num_envs=setting["num_envs"],
        rollout_steps=setting["steps"],
        minibatch_size=setting["minibatch"],
        passes=setting["passes"],
        total_frames=setting["frames"],
        rollouts_per_epoch=2 if atari or cheetah else 10,
        wrappers=wrappers,
        normalize_reward=cheetah,
        vectorization="native" if setting.get("native") else "sync",
    )
    encoder: Any = NatureCNN if atari else partial(MLPEncoder, normalize=cheetah)
    agent = PPO(
        data.spec,
        encoder=encoder,
        optimizer=partial(torch.optim.Adam, lr=setting["lr"], eps=1e-5, fused=True),
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        entropy_coef=setting["entropy"],
    )
    trainer = quiet_trainer(gradient_clip_val=0.5)
    took, _ = timed(lambda: trainer.fit(agent, data))
    agent.eval()

    def act(obs: Any) -> Any:
        action = agent.act(agent.preprocess(obs[None]), False)["action"][0]
        return action.numpy() if action.ndim else int(action)

    return took, act


def train_sb3(setting: dict[str, Any], seed: int) -> tuple[dict[str, float], Any]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

    cheetah, atari = setting["env"].startswith("HalfCheetah"), pixels(setting)

    def learn() -> tuple[PPO, Any]:
        make = make_atari_env if atari else make_vec_env
        envs: Any = make(setting["env"], setting["num_envs"], seed=seed)
        if atari:
            envs = VecFrameStack(envs, 4)
        if cheetah:
            envs = VecNormalize(envs, gamma=GAMMA)
        model = PPO(
            "CnnPolicy" if atari else "MlpPolicy",
            envs,
            n_steps=setting["steps"],
            batch_size=setting["minibatch"],
            n_epochs=setting["passes"],
            learning_rate=setting["lr"],
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            clip_range=CLIP,
            ent_coef=setting["entropy"],
            seed=seed,
            device="cpu",
        )
        return model.learn(setting["frames"]), envs

    took, (model, envs) = timed(learn)

    def act(obs: Any) -> Any:
        if cheetah:
            obs = envs.normalize_obs(obs)
        return model.predict(obs, deterministic=True)[0]

    return took, act


def train_cleanrl(setting: dict[str, Any], seed: int, folder: Path) -> tuple[dict[str, float], Any]:
    import cleanrl
    import numpy as np
    import torch

    (script,) = (s for name, s in SCRIPTS.items() if setting["env"].startswith(name))
    took, names = cleanrl.train(
        folder,
        script,
        env_id=setting["env"],
        seed=seed,
        total_timesteps=setting["frames"],
        num_envs=setting["num_envs"],
        num_steps=setting["steps"],
        num_minibatches=setting["num_envs"] * setting["steps"] // setting["minibatch"],
        update_epochs=setting["passes"],
        learning_rate=setting["lr"],
        anneal_lr=False,
        ent_coef=setting["entropy"],
    )
    agent = names["agent"]
    if script == "ppo_continuous_action":
        env = names["envs"].envs[0]
        while not hasattr(env, "obs_rms"):
            env = env.env
        mean, std = env.obs_rms.mean, np.sqrt(env.obs_rms.var + 1e-8)

        def act(obs: Any) -> Any:
            seen = torch.tensor(((obs - mean) / std).clip(-10, 10), dtype=torch.float32)
            return agent.actor_mean(seen[None])[0].numpy().clip(-1, 1)

        return took, act

    def choose(obs: Any) -> int:
        seen = torch.tensor(np.asarray(obs)[None], dtype=torch.float32)
        if script == "ppo_atari":
            return int(agent.actor(agent.network(seen / 255.0)).argmax())
        return int(agent.actor(seen).argmax())

    return took, choose


def evaluate(setting: dict[str, Any], policy: Any) -> float:
    """Mean greedy return."""
    import gymnasium as gym
    import torch

    env: Any = gym.make(setting["env"])
    if pixels(setting):
        env = gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env), 4)
    total = 0.0
    with torch.no_grad():
        for episode in range(setting["episodes"]):
            obs, _ = env.reset(seed=10_000 + episode)
            over = False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(policy(obs))
                total += float(reward)
                over = terminated or truncated
    return total / setting["episodes"]


def run_here(library: str, name: str, frames: int, folder: str, seed: int) -> None:
    """One run in this process; prints one line of JSON."""
    prepare_process()
    setting = {**SETTINGS[name]}
    setting["frames"] = frames or setting["frames"]
    if pixels(setting):
        import ale_py
        import gymnasium as gym

        gym.register_envs(ale_py)
    if library == "cleanrl":
        took, policy = train_cleanrl(setting, seed, Path(folder))
    else:
        train = train_rl_lightning if library == "rl_lightning" else train_sb3
        took, policy = train(setting, seed)
    fps = setting["frames"] / took["seconds"]
    print(json.dumps({"fps": fps, "cpu": took["cpu"], "return": evaluate(setting, policy)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=0, help="of each run; 0: the setting's")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--against", choices=["sb3", "cleanrl"], default="sb3")
    parser.add_argument("--cleanrl", type=Path, default=Path(), help="a checkout of CleanRL")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        library, name, frames, folder, seed = args.run
        return run_here(library, name, int(frames), folder, int(seed))

    def keep(rows: dict[str, Any]) -> None:
        if args.out:
            there = json.loads(args.out.read_text())["settings"] if args.out.exists() else {}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"settings": {**there, **rows}}, indent=1))

    settings = {name: (name, args.frames, args.cleanrl) for name in args.settings}
    rows = compare(__file__, settings, args.pairs, keep, against=args.against)
    print(f"PPO, {args.pairs} pairs of runs, one thread, against {args.against}")
    print("| envs x steps | rl_lightning | theirs | ratio (min .. max) | CPU seconds | returns |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['ours']:,.0f} | {row['theirs']:,.0f} | **{row['ratio']:.2f}** "
            f"({row['ratio_min']:.2f} .. {row['ratio_max']:.2f}) | {row['cpu_ratio']:.2f} | "
            f"{row['return']:.0f} / {row['their_return']:.0f} |"
        )
    return None


if __name__ == "__main__":
    main()
