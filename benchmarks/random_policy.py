"""What uniformly random actions score in the evaluation episodes of every configuration.

    python benchmarks/random_policy.py
    python benchmarks/random_policy.py CONFIG      # of some; others stay as they are

Same environments, wrappers, seeds and number of episodes as `rl-lightning validate` plays. Random
tokens answer no prompt: there it is what the model scores before it is tuned.
"""

import argparse
import importlib
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from learning import digest_of, scalars, scores
from preparing import cli, prepare
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "baseline" / "random.json"
PLAYED = ("env", "env_kwargs", "wrappers", "success_threshold", "val_env_kwargs", "val_episodes")


class Uniform:
    """Acts in the place of an agent.

    Args:
        space: Of one environment's actions.
        num_envs: Environments.
    """

    device = torch.device("cpu")

    def __init__(self, space: Any, num_envs: int) -> None:
        self.space, self.num_envs = space, num_envs

    def initial_state(self, num_envs: int) -> None:
        return None

    def preprocess(self, obs: Any) -> Any:
        return obs

    def read_mask(self, info: dict[str, Any]) -> torch.Tensor | None:
        mask = info.get("action_mask")
        return None if mask is None else torch.as_tensor(np.stack(mask), dtype=torch.bool)

    def act(self, x: Any, mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        from rl_lightning.exploration import uniform_action

        return {"action": uniform_action(self.space, self.num_envs, mask, self.device)}


def evaluated(path: Path) -> dict[str, Any]:
    """The part of a configuration that random actions' score depends on."""
    config = yaml.safe_load(path.read_text())
    data = config["data"]["init_args"]
    names = ("env", "env_kwargs", "wrappers", "success_threshold")
    out = {k: v for k, v in data.items() if k in names or k.startswith("val_")}
    if asks(config["data"]):
        names = ("prompts", "rewards", "template", "chat", "system", "max_new_tokens", "stop")
        out |= {k: v for k, v in data.items() if k in names}
        out["model"] = config["model"]["init_args"]["model"]
    return out


def asks(data: dict[str, Any]) -> bool:
    """Whether prompts are answered, instead of environments played."""
    return data["class_path"].rpartition(".")[2] in ("PromptDataModule", "CompletionDataModule")


def answer(path: Path) -> dict[str, float]:
    """What completions of the model are worth that a configuration begins with."""
    prepare(f"{path.parent.name}-{path.stem}")
    with tempfile.TemporaryDirectory() as logs:
        cli("validate", f"--config={path}", f"--trainer.logger.init_args.save_dir={logs}")
        found = scores(scalars(Path(logs)))
    return {name: round(value, 4) for name, value in found.items()}


def digest(path: Path) -> str:
    """Of that part."""
    return digest_of(evaluated(path))


def play(path: Path) -> dict[str, float]:
    """Mean return and share of successes."""
    from rl_lightning.data.collect.evaluation import EpisodeLoader

    config = yaml.safe_load(path.read_text())["data"]
    if asks(config):
        return answer(path)
    home, _, name = config["class_path"].rpartition(".")
    given = config["init_args"]
    if name == "EpisodeDataModule":  # the same seeds, of actions in the place of texts
        name = "RolloutDataModule"
        given = {k: v for k, v in given.items() if k in PLAYED}
        given["val_num_envs"] = given["val_episodes"]
    module: Any = getattr(importlib.import_module(home), name)(**given)
    torch.manual_seed(module.val_seed)
    env = module.make_eval_env(min(module.val_num_envs, module.val_episodes))
    agent = Uniform(module.spec.action_space, env.num_envs)
    loader = EpisodeLoader(
        env,
        lambda: nullcontext(agent),
        module.val_episodes,
        module.val_seed,
        success_threshold=module.success_threshold,
    )
    episodes = list(loader)
    env.close()
    out = {"return": round(float(np.mean([e["return"] for e in episodes])), 4)}
    success = [e["success"] for e in episodes]
    return out if np.isnan(success).any() else {**out, "success": round(float(np.mean(success)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "configs", nargs="*", type=Path, help="default: all; others stay as they are"
    )
    args = parser.parse_args()
    # Reward models play no episodes.
    every = [p for p in sorted((ROOT / "configs").glob("*/*.yaml")) if p.parent.name != "reward"]
    rows = json.loads(RESULTS.read_text()) if args.configs and RESULTS.exists() else {}
    for path in tqdm([p.resolve() for p in args.configs] or every, unit="config"):
        rows[path.relative_to(ROOT).as_posix()] = {**play(path), "digest": digest(path)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f' "{name}": {json.dumps(row)}' for name, row in sorted(rows.items()))
    RESULTS.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
