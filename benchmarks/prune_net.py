"""PruneNet-v0: DDPG and SAC beside uniform pruning, channel norms and random search.

    python benchmarks/prune_net.py                # all arms, both budgets, five seeds
    python benchmarks/prune_net.py --arms SAC --budgets 0.3 --seeds 1
    python benchmarks/prune_net.py --arms         # runs nothing, shows the table

Seed s is the network that was trained on division s of the data, and the agent's seed. Who searches
judges `EVALUATIONS` networks, on rows that are not test rows; what was found is compared by its
accuracy on test rows. Of an agent two plans are: its greedy policy's after the last update, and the
one with the best reward among all that it tried, as AMC has it. Agents are those of
`configs/*/prune-net.yaml`, with what `ARMS` lays over them. Random search draws shares from
U(lowest, 1) as `RandomSearch` does, or plays uniformly random actions in the agents' environment.

"unseen" is one agent for each seed, trained on `TRAINED` networks, and used without search on those
of `UNSEEN`: of another width, and trained on other rows.

Results go to `benchmarks/results/comparisons/prune-net.json` as soon as a run is done; those that
are there of the same configuration are not repeated.
"""

import argparse
import importlib
import json
import time
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from common import prepare_process, quiet_trainer
from learning import RESULTS, digest_of
from learning_speed import laid_over
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
FILE = RESULTS / "comparisons" / "prune-net.json"
EVALUATIONS = 150
BUDGETS = (0.5, 0.3)
GROUPS = 12
TRAINED = {"widths": [12, 16, 20], "splits": [20, 24]}
UNSEEN = {"widths": [14], "splits": [100, 105]}
TRANSFER_EVALUATIONS = 600

PLAIN = {
    "fill": False,
    "around": "none",
    "places": 0,
    "judged_on": "validation",
    "baseline": "none",
    "reward_scale": 1.0,
}
# By its name: the agent, and what is laid over its environment's arguments.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPG, none of the remedies": ("ddpg", PLAIN),
    "DDPG, budget filled": ("ddpg", {**PLAIN, "fill": True}),
    "DDPG, filled, around uniform": (
        "ddpg",
        {**PLAIN, "fill": True, "around": "uniform", "places": GROUPS},
    ),
    "DDPG": ("ddpg", {}),
    "SAC": ("sac", {}),
}
RULES = ("uniform share", "global magnitude", "global magnitude, normalised")
SEARCHES = ("random search", "random search, agents' reward")
RANDOM_AGENT = "random actions in the agents' environment"
UNSEEN_ARM = "SAC, unseen"
ENV = "RecordedPruneNet-v0"
_tried: list[dict[str, Any]] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everyone = ["rules", "searches", RANDOM_AGENT, *ARMS, UNSEEN_ARM]
    parser.add_argument("--arms", nargs="*", default=everyone, help=f"of {', '.join(everyone)}")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    args = parser.parse_args()
    if unknown := set(args.arms) - set(everyone):
        parser.error(f"--arms {sorted(unknown)}: there are {everyone}")
    prepare_process()
    register()
    runs = json.loads(FILE.read_text())["runs"] if FILE.exists() else []
    jobs = [(a, b, s) for a in args.arms for b in args.budgets for s in args.seeds]
    for arm, budget, seed in tqdm(jobs, unit="run"):
        digest = digest_of_run(arm, budget, seed)
        job = {"arm": arm, "budget": budget, "seed": seed}
        mine = [run for run in runs if {k: run[k] for k in job} == job]
        if mine and mine[0]["digest"] == digest:
            continue
        began = time.process_time()
        found = play_arm(arm, budget, seed)
        took = round(time.process_time() - began, 1)
        runs = [run for run in runs if run not in mine]
        runs.append({**job, "digest": digest, "cpu_seconds": took, "plans": found})
        runs.sort(key=lambda run: (everyone.index(run["arm"]), -run["budget"], run["seed"]))
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(written(runs))
    print(f"{table(runs)}\n\n{unseen_table(runs)}")


def written(runs: list[dict[str, Any]]) -> str:
    """As JSON with a line for each run."""
    lines = ",\n".join(f"  {json.dumps(run, ensure_ascii=False)}" for run in runs)
    return f'{{\n "evaluations": {EVALUATIONS},\n "runs": [\n{lines}\n ]\n}}\n'


def digest_of_run(arm: str, budget: float, seed: int) -> str:
    """Of what a run depends on: tells results of an older configuration."""
    return digest_of([EVALUATIONS, settings(arm, budget, seed)])


def settings(arm: str, budget: float, seed: int) -> Any:
    """All that a run depends on."""
    network = {"splits": [seed, seed + 1], "budget": budget}
    if arm in ("rules", "searches"):
        return network
    if arm == RANDOM_AGENT:
        return [network, configuration("sac", {})["data"]["init_args"]["env_kwargs"]]
    if arm == UNSEEN_ARM:
        frames = {"total_frames": TRANSFER_EVALUATIONS * GROUPS, "budget": budget}
        return [frames, UNSEEN, configuration("sac", TRAINED)]
    agent, change = ARMS[arm]
    return configuration(agent, {**change, **network})


def configuration(agent: str, change: dict[str, Any]) -> dict[str, Any]:
    """The model and data of `configs/AGENT/prune-net.yaml`, with other arguments of its task."""
    config = yaml.safe_load((ROOT / f"configs/{agent}/prune-net.yaml").read_text())
    data = config["data"]["init_args"]
    config["data"]["init_args"] = {k: v for k, v in data.items() if not k.startswith("val_")}
    used = {"model": config["model"], "data": config["data"]}
    return laid_over(used, {"data": {"init_args": {"env_kwargs": change}}})


def play_arm(arm: str, budget: float, seed: int) -> dict[str, Any]:
    """What an arm finds, by the name of a row of the table."""
    network = {"splits": [seed, seed + 1], "budget": budget}
    if arm == "rules":
        return rules(network)
    if arm == "searches":
        return searches(network, seed)
    if arm == RANDOM_AGENT:
        return {RANDOM_AGENT: random_agent(network, seed)}
    if arm == UNSEEN_ARM:
        return unseen(budget, seed)
    agent_name, change = ARMS[arm]
    config = configuration(agent_name, {**change, **network})
    config["data"]["init_args"]["total_frames"] = EVALUATIONS * GROUPS
    agent = train(config, seed)
    # Some steps before them were of a spare environment: whether its state can be saved.
    best = max(_tried[-EVALUATIONS:], key=lambda row: row["return"])
    from rl_lightning.envs import make_env
    from rl_lightning.envs.optimise.baselines import play

    env = make_env("PruneNet-v0", config["data"]["init_args"]["env_kwargs"])
    return {"policy": kept(play(env, Greedy(agent), 0)), "best tried": kept(best)}


def rules(network: dict[str, Any]) -> dict[str, Any]:
    """Plans that no network is judged for."""
    from rl_lightning.envs import make_env
    from rl_lightning.envs.optimise import compression_baselines as c
    from rl_lightning.envs.optimise.baselines import play

    env = make_env("PruneNet-v0", network)
    ways = (c.UniformPruning(), c.GlobalMagnitude(), c.GlobalMagnitude(normalised=True))
    return {name: kept(play(env, way, 0)) for name, way in zip(RULES, ways, strict=True)}


def searches(network: dict[str, Any], seed: int) -> dict[str, Any]:
    """The best of plans that were drawn, by accuracy on validation rows, or by agents' reward."""
    from rl_lightning.envs import make_env
    from rl_lightning.envs.optimise.baselines import play
    from rl_lightning.envs.optimise.compression_baselines import RandomSearch

    _tried.clear()
    env = make_env(ENV, {**network, "judged_on": "training_too"})
    play(env, RandomSearch(EVALUATIONS, seed=seed), 0)
    rows = _tried[:EVALUATIONS]  # then the best one once more
    found = [max(rows, key=lambda row: row[by]) for by in ("accuracy", "judged_accuracy")]
    return {name: kept(row) for name, row in zip(SEARCHES, found, strict=True)}


def random_agent(network: dict[str, Any], seed: int) -> dict[str, float]:
    """The plan with the best reward of uniformly random actions where the agents act."""
    from rl_lightning.envs import make_env
    from rl_lightning.envs.optimise.baselines import Uniform

    _tried.clear()
    config = configuration("sac", network)
    env = make_env(ENV, config["data"]["init_args"]["env_kwargs"])
    random = np.random.default_rng(seed)
    for _ in range(EVALUATIONS):
        way = Uniform()
        way.begin(env, int(random.integers(2**31)))
        obs, info = env.reset(options={"task_seed": 0})
        ended = False
        while not ended:
            obs, _, ended, _, info = env.step(way.act(obs, info))
    return kept(max(_tried, key=lambda row: row["return"]))


def unseen(budget: float, seed: int) -> dict[str, Any]:
    """One policy for several networks, on others without search, beside a search of each."""
    from rl_lightning.envs import make_env
    from rl_lightning.envs.optimise import compression_baselines as c
    from rl_lightning.envs.optimise.baselines import play
    from rl_lightning.envs.optimise.tasks import check_disjoint

    config = configuration("sac", {**TRAINED, "budget": budget})
    check_disjoint(TRAINED, UNSEEN, list(UNSEEN))
    config["data"]["init_args"]["total_frames"] = TRANSFER_EVALUATIONS * GROUPS
    agent = train(config, seed)
    own = config["data"]["init_args"]["env_kwargs"]
    found: dict[str, Any] = {}
    for split in range(*UNSEEN["splits"]):
        others = {**UNSEEN, "splits": [split, split + 1], "budget": budget}
        for name, kwargs, way in (
            ("policy, no search", {**own, **others}, Greedy(agent)),
            ("uniform share", others, c.UniformPruning()),
            ("random search, 50 networks", others, c.RandomSearch(50, seed=seed)),
        ):
            found.setdefault(name, []).append(kept(play(make_env("PruneNet-v0", kwargs), way, 0)))
    return found


def kept(info: dict[str, Any]) -> dict[str, float]:
    """Of a plan: accuracies, and its share of the cost."""
    names = ("accuracy", "test_accuracy", "cost", "original_accuracy")
    return {name: round(info[name], 4) for name in names}


class Greedy:
    """An agent, as a baseline acts."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def begin(self, env: Any, task_seed: int) -> dict[str, Any]:
        return {}

    def act(self, obs: np.ndarray, info: Any) -> Any:
        return self.agent.predict(obs)


def train(config: dict[str, Any], seed: int) -> Any:
    """Train an agent as a configuration says; its episodes are in `_tried` then."""
    import lightning as L

    L.seed_everything(seed, verbose=False)
    _tried.clear()
    data = built(laid_over(config["data"], {"init_args": {"env": ENV}}))()
    agent = built(config["model"])(data.spec)
    quiet_trainer().fit(agent, data)
    return agent


def built(said: Any) -> Any:
    """A piece of a configuration: classes are functions of what it does not say."""
    if not isinstance(said, dict) or "class_path" not in said:
        return said
    home, _, name = said["class_path"].rpartition(".")
    arguments = {key: built(value) for key, value in said.get("init_args", {}).items()}
    return partial(getattr(importlib.import_module(home), name), **arguments)


def register() -> None:
    """A PruneNet-v0 that adds to `_tried` what it has judged."""
    from rl_lightning.envs.optimise.prune_net import PruneNetEnv

    class Recorded(PruneNetEnv):
        def step(self, action: Any) -> Any:
            found = super().step(action)
            if found[2]:
                _tried.append({"return": float(found[1]), **found[4]})
            return found

    gym.register(ENV, entry_point=Recorded)  # type: ignore[arg-type]


def table(runs: list[dict[str, Any]]) -> str:
    """Test accuracies, and by how much they are above uniform pruning's, as Markdown."""
    rows: dict[str, dict[float, dict[int, float]]] = {}
    for run in runs:
        if run["arm"] == UNSEEN_ARM:
            continue
        for name, plan in run["plans"].items():
            row = f"{run['arm']}: {name}" if run["arm"] in ARMS else name
            cells = rows.setdefault(row, {}).setdefault(run["budget"], {})
            cells[run["seed"]] = plan["test_accuracy"]
    budgets = sorted({run["budget"] for run in runs}, reverse=True)
    heads = [f"{b:g} of FLOPs | − uniform" for b in budgets]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'--:|--:|' * len(budgets)}"]
    for row, cells in rows.items():
        texts = []
        for budget in budgets:
            values, base = cells.get(budget, {}), rows["uniform share"].get(budget, {})
            gaps = [value - base[seed] for seed, value in values.items() if seed in base]
            texts += [spelled(list(values.values())), spelled(gaps, "+")]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines)


def unseen_table(runs: list[dict[str, Any]]) -> str:
    """Test accuracies on unseen networks, of all seeds together, as Markdown."""
    runs = [run for run in runs if run["arm"] == UNSEEN_ARM]
    if not runs:
        return ""
    budgets = sorted({run["budget"] for run in runs}, reverse=True)
    heads = [f"{b:g} of FLOPs | − uniform" for b in budgets]
    lines = [f"| unseen networks | {' | '.join(heads)} |", f"|---|{'--:|--:|' * len(budgets)}"]
    for name in runs[0]["plans"]:
        texts = []
        for budget in budgets:
            mine = [run["plans"] for run in runs if run["budget"] == budget]
            values, base = (
                [plan["test_accuracy"] for plans in mine for plan in plans[row]]
                for row in (name, "uniform share")
            )
            gaps = [value - other for value, other in zip(values, base, strict=True)]
            texts += [spelled(values), spelled(gaps, "+")]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def spelled(values: list[float], sign: str = "") -> str:
    """Mean ± standard error."""
    if not values:
        return ""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{mean(values):{sign}.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
