"""What tabular agents have learned against what is best, exactly.

    python benchmarks/tabular.py --out benchmarks/results/exact/tabular.json

Every configuration in `configs/tabular` is trained with every seed, by `rl-lightning fit` on one
thread. Where the environment publishes its model, the value of the greedy policy of the last
checkpoint at the start of an episode is computed by dynamic programming, beside the optimal one, at
the agent's γ; nothing is sampled. In a maze, the greedy episode's steps are compared with the
length of the shortest path.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml
from learning import digest, render, versions
from preparing import cli
from tqdm import tqdm

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    configs = sorted((ROOT / "configs" / "tabular").glob("*.yaml"))
    parser.add_argument("configs", nargs="*", type=Path, default=configs)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    runs = []
    with tqdm(total=len(args.configs) * len(args.seeds), unit="run") as bar:
        for config in args.configs:
            for seed in args.seeds:
                runs.append(run(config, seed))
                bar.write(
                    f"{config.stem} seed {seed}: {runs[-1]['value']:.5f}, best "
                    f"{runs[-1]['best']:.5f}, gap {runs[-1]['gap']:.3%}"
                )
                bar.update()
    print("| configuration | frames | best | worst seed | largest gap |\n|---|--:|--:|--:|--:|")
    for config in args.configs:
        own = [r for r in runs if r["config"] == config.stem]
        worst = max(own, key=lambda r: r["gap"])
        print(
            f"| {config.stem} | {worst['frames'] / 1000:.0f} k | {worst['best']:.4f} | "
            f"{worst['value']:.4f} | {worst['gap']:.2%} |"
        )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        digests = {config.stem: digest(config) for config in args.configs}
        args.out.write_text(render({"digests": digests, "runs": runs, "versions": versions()}))


def run(config: Path, seed: int) -> dict[str, Any]:
    """Train with one seed, and judge the greedy policy of the last checkpoint.

    Returns:
        `value` and `best`: of the greedy and of the best policy at the start of an episode,
        discounted, or minus the steps of a maze; `gap`: what is missing, as a share of `best`.
    """
    from rl_lightning import QTable

    with tempfile.TemporaryDirectory() as folder:
        where = [f"--trainer.logger.init_args.save_dir={folder}", f"--checkpoint.dirpath={folder}"]
        cli("fit", f"--config={config}", f"--seed_everything={seed}", *where)
        path = Path(folder) / "last.ckpt"
        agent = QTable.load_from_checkpoint(path, map_location="cpu").eval()
        frames = agent.frames
    data = yaml.safe_load(config.read_text())["data"]["init_args"]
    judge = walk if data["env"] == "TextMaze-v0" else plan
    value, best = judge(agent, data)
    gap = max((best - value) / abs(best), 0.0)  # no policy is better but by rounding
    return {"config": config.stem, "seed": seed, "frames": frames, "gamma": agent.gamma,
            "value": value, "best": best, "gap": gap}  # fmt: skip


def plan(agent: Any, data: dict[str, Any]) -> tuple[float, float]:
    """Exact values of the greedy and of the best policy."""
    import numpy as np

    from rl_lightning.envs import make_env
    from rl_lightning.maths.planning import policy_value, read_model, start_value, value_iteration

    env = make_env(data["env"], data.get("env_kwargs"))
    model = read_model(env)
    x = agent.preprocess(np.arange(len(model.reward)))
    greedy = agent.act(x, explore=False)["action"].numpy()
    values = policy_value(model, greedy, agent.gamma), value_iteration(model, agent.gamma)[0]
    return start_value(env, values[0]), start_value(env, values[1])


def walk(agent: Any, data: dict[str, Any]) -> tuple[float, float]:
    """Minus the steps of a greedy episode, and minus those of the shortest path."""
    from rl_lightning.envs import make_env

    env = make_env(data["env"], data["env_kwargs"])
    obs, info = env.reset(seed=0)
    shortest, steps, over = info["shortest"], 0, False
    while not over:
        action = agent.act(agent.preprocess((obs,)), explore=False)["action"].item()
        obs, _, terminated, truncated, info = env.step(action)
        over, steps = terminated or truncated, steps + 1
    return -float(steps), -float(shortest)


if __name__ == "__main__":
    main()
