"""DQN and SAC: frames per second and returns against Stable-Baselines3 or CleanRL, in turn.

    python benchmarks/offpolicy.py                               # about an hour
    python benchmarks/offpolicy.py --settings "DQN CartPole" --pairs 5
    python benchmarks/offpolicy.py --settings "SAC HalfCheetah" --pairs 2 --out speed.json
    python benchmarks/offpolicy.py --against cleanrl --cleanrl ../cleanrl     # see cleanrl.py

With `--pairs 3 --more --together` instead, the last adds pairs for their returns, both runs of each
at the same time.

Both libraries get the same environment, network, replay, number of frames and settings of Adam
(ours is fused, as is our default), one thread, and a process of their own for every run; what is
timed is the whole call that trains.
The figure to look at is the median of the ratios of neighbouring runs. The greedy return of the
trained policies shows that the same thing was learned. "Products" is the share of our time that the
bare matrix products of all updates take, timed by themselves in the same process: what neither
library can save.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from common import compare, prepare_process, quiet_trainer, timed

SETTINGS: dict[str, dict[str, Any]] = {
    # One update per frame, as in CleanRL's dqn.py.
    "DQN CartPole": {
        "agent": "DQN",
        "env": "CartPole-v1",
        "frames": 20_000,
        "warmup": 1_000,
        "hidden": (120, 84),
        "batch": 128,
        "lr": 2.5e-4,
        "gamma": 0.99,
        "target": 500,
        "epsilon": (1.0, 0.05, 0.5),
    },
    "SAC Pendulum": {
        "agent": "SAC",
        "env": "Pendulum-v1",
        "frames": 6_000,
        "warmup": 1_000,
        "hidden": (256, 256),
        "batch": 256,
        "lr": 1e-3,
        "gamma": 0.99,
    },
    "SAC HalfCheetah": {
        "agent": "SAC",
        "env": "HalfCheetah-v5",
        "frames": 50_000,
        "warmup": 10_000,
        "hidden": (256, 256),
        "batch": 256,
        "lr": 3e-4,
        "gamma": 0.99,
    },
}


def train_rl_lightning(
    setting: dict[str, Any], seed: int, clip: float | None
) -> tuple[dict[str, float], Any]:
    from functools import partial

    import lightning as L
    import torch

    from rl_lightning import DQN, SAC, ContinuousNetwork, QNetwork, ReplayDataModule
    from rl_lightning.exploration import EpsilonGreedy

    L.seed_everything(seed, verbose=False)
    data = ReplayDataModule(
        setting["env"],
        buffer_frames=1_000_000 if setting["agent"] == "SAC" else 100_000,
        batch_size=setting["batch"],
        warmup_frames=setting["warmup"],
        frames_per_epoch=1_000,
        total_frames=setting["frames"],
    )
    optimizer = partial(torch.optim.Adam, lr=setting["lr"], fused=True)
    if setting["agent"] == "DQN":
        start, end, fraction = setting["epsilon"]
        agent: Any = DQN(
            data.spec,
            network=partial(QNetwork, hidden=setting["hidden"]),
            optimizer=optimizer,
            gamma=setting["gamma"],
            exploration=partial(EpsilonGreedy, start=start, end=end, fraction=fraction),
            target_update_frames=setting["target"],
            max_grad_norm=clip,
        )
    else:
        agent = SAC(
            data.spec,
            network=partial(ContinuousNetwork, hidden=setting["hidden"]),
            optimizer=optimizer,
            gamma=setting["gamma"],
        )
    trainer = quiet_trainer()
    took, _ = timed(lambda: trainer.fit(agent, data))
    agent.eval()

    def act(obs: Any) -> Any:
        action = agent.act(agent.preprocess(obs[None]), explore=False)["action"][0]
        return action.numpy() if action.ndim else int(action)

    return took, act


def train_sb3(setting: dict[str, Any], seed: int) -> tuple[dict[str, float], Any]:
    from stable_baselines3 import DQN, SAC

    common: dict[str, Any] = {
        "learning_rate": setting["lr"],
        "batch_size": setting["batch"],
        "learning_starts": setting["warmup"],
        "gamma": setting["gamma"],
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": list(setting["hidden"])},
        "seed": seed,
        "device": "cpu",
    }
    if setting["agent"] == "DQN":
        start, end, fraction = setting["epsilon"]
        model: Any = DQN(
            "MlpPolicy",
            setting["env"],
            buffer_size=100_000,
            target_update_interval=setting["target"],
            exploration_initial_eps=start,
            exploration_final_eps=end,
            exploration_fraction=fraction,
            **common,
        )
    else:
        model = SAC("MlpPolicy", setting["env"], buffer_size=1_000_000, **common)
    took, _ = timed(lambda: model.learn(setting["frames"]))
    return took, lambda obs: model.predict(obs, deterministic=True)[0]


def train_cleanrl(setting: dict[str, Any], seed: int, folder: Path) -> tuple[dict[str, float], Any]:
    import cleanrl
    import torch

    # Its networks have the settings' sizes. An update a frame is what its sac does.
    common: dict[str, Any] = {
        "env_id": setting["env"],
        "seed": seed,
        "total_timesteps": setting["frames"],
        "gamma": setting["gamma"],
        "batch_size": setting["batch"],
        "learning_starts": setting["warmup"],
    }
    if setting["agent"] == "DQN":
        start, end, fraction = setting["epsilon"]
        own = {"buffer_size": 100_000, "train_frequency": 1, "learning_rate": setting["lr"]}
        own |= {"start_e": start, "end_e": end, "exploration_fraction": fraction}
        own |= {"target_network_frequency": setting["target"]}
        took, names = cleanrl.train(folder, "dqn", **common, **own)
        network = names["q_network"]
        return took, lambda obs: int(network(torch.as_tensor(obs)[None]).argmax())
    own = {"buffer_size": 1_000_000, "policy_lr": setting["lr"], "q_lr": setting["lr"]}
    took, names = cleanrl.train(folder, "sac_continuous_action", **common, **own)
    actor = names["actor"]

    def act(obs: Any) -> Any:
        seen = torch.as_tensor(obs, dtype=torch.float32)[None]
        return actor.get_action(seen)[2][0].numpy()

    return took, act


def bare_products(setting: dict[str, Any], repeats: int = 200) -> float:
    """Seconds that the matrix products of one update take, and nothing else.

    With W a layer's weights, forward is x W; backward xᵀ g for W and, where something below wants
    it, g Wᵀ. DQN: online forward and backward, target forward. SAC: the same with two critics each;
    the actor forward twice and backward once; the critics once more, backward to the action only.
    """
    import gymnasium as gym
    import torch

    env: Any = gym.make(setting["env"])
    obs, batch = env.observation_space.shape[0], setting["batch"]
    products: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(heads: int, width: int, out: int, *kinds: str, below: bool = False) -> None:
        widths = [width, *setting["hidden"], out]
        for layer, (n, m) in enumerate(itertools.pairwise(widths)):
            x, w, g = (torch.randn(heads, *shape) for shape in ((batch, n), (n, m), (batch, m)))
            factors = {"forward": (x, w), "weights": (x.mT, g), "input": (g, w.mT)}
            for kind in kinds:
                if kind != "input" or layer or below:
                    products.append(factors[kind])

    if setting["agent"] == "DQN":
        actions = int(env.action_space.n)
        network(1, obs, actions, "forward", "weights", "input")
        network(1, obs, actions, "forward")
    else:
        size = env.action_space.shape[0]
        network(1, obs, 2 * size, "forward", "weights", "input")
        network(1, obs, 2 * size, "forward")
        network(2, obs + size, 1, "forward", "weights", "input")
        network(2, obs + size, 1, "forward")
        network(2, obs + size, 1, "forward", "input", below=True)
    pairs = [(a[0], b[0]) if len(a) == 1 else (a, b) for a, b in products]
    for warm in (True, False):
        began = time.perf_counter()
        for _ in range(repeats // 10 if warm else repeats):
            for a, b in pairs:
                a @ b
    return (time.perf_counter() - began) / repeats


def evaluate(env_id: str, policy: Any, episodes: int = 20) -> float:
    """Mean greedy return."""
    import gymnasium as gym
    import torch

    env, total = gym.make(env_id), 0.0
    with torch.no_grad():
        for episode in range(episodes):
            obs, _ = env.reset(seed=10_000 + episode)
            over = False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(policy(obs))
                total += float(reward)
                over = terminated or truncated
    return total / episodes


def run_here(library: str, name: str, folder: str, seed: int) -> None:
    """One run in this process; prints one line of JSON."""
    prepare_process()
    setting = SETTINGS[name]
    if library == "rl_lightning":
        # Stable-Baselines3's DQN clips gradients by default, CleanRL's does not.
        took, policy = train_rl_lightning(setting, seed, 10.0 if folder == "." else None)
    elif library == "cleanrl":
        took, policy = train_cleanrl(setting, seed, Path(folder))
    else:
        took, policy = train_sb3(setting, seed)
    updates = setting["frames"] - setting["warmup"]
    result = {
        "fps": setting["frames"] / took["seconds"],
        "cpu": took["cpu"],
        "products": updates * bare_products(setting) / took["seconds"],
        "return": evaluate(setting["env"], policy),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--more", action="store_true", help="add pairs to those in --out")
    parser.add_argument(
        "--together", action="store_true", help="both of a pair at once, for their returns only"
    )
    parser.add_argument("--against", choices=["sb3", "cleanrl"], default="sb3")
    parser.add_argument("--cleanrl", type=Path, default=Path(), help="a checkout of CleanRL")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        library, name, folder, seed = args.run
        return run_here(library, name, folder, int(seed))

    if args.more and not args.out:
        parser.error("--more adds to a file: name it with --out")

    def known() -> dict[str, Any]:
        there = args.out is not None and args.out.exists()
        return json.loads(args.out.read_text())["settings"] if there else {}

    def keep(rows: dict[str, Any]) -> None:
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"settings": {**known(), **rows}}, indent=1))

    settings = {name: (name, args.cleanrl) for name in args.settings}
    earlier = {name: row["pairs"] for name, row in known().items()} if args.more else None
    rows = compare(
        __file__, settings, args.pairs, keep, earlier, args.together, against=args.against
    )
    print(f"against {args.against}")
    print("| setting | rl_lightning | theirs | ratio (min .. max) | products | returns |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        speed = "| – | – | – | – "
        if "ratio" in row:
            speed = (
                f"| {row['ours']:,.0f} | {row['theirs']:,.0f} | **{row['ratio']:.2f}** "
                f"({row['ratio_min']:.2f} .. {row['ratio_max']:.2f}) | {row['products']:.0%} "
            )
        print(
            f"| {name} {speed}| {row['return']:.0f} ± {row['return_std']:.0f} / "
            f"{row['their_return']:.0f} ± {row['their_return_std']:.0f} |"
        )
    return None


if __name__ == "__main__":
    main()
