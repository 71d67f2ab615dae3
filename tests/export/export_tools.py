"""Agents of every kind whose policies are exported, and running them where nothing else can."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from probes import OBSERVATIONS

from rl_lightning import (
    DQN,
    PPO,
    SAC,
    ActorCritic,
    BagOfWordsEncoder,
    DictEncoder,
    EnvSpec,
    ImpalaCNN,
    LLMEncoder,
    MLPEncoder,
    QNetwork,
)
from rl_lightning.export.inputs import assembled, parts_of
from rl_lightning.export.samples import sample_part

THREE = gym.spaces.Discrete(3)
TEXT = OBSERVATIONS["text"]
TALKS = gym.spaces.Dict({"text": TEXT, "place": gym.spaces.Discrete(4, start=1)})
BOX = gym.spaces.Box(np.array([-2.0, 0.0, 1.0]), np.array([1.0, 5.0, 1.0]), dtype=np.float64)
WORDS = partial(BagOfWordsEncoder, buckets=64, width=8)
SMALL = partial(ImpalaCNN, features=16, channels=(4, 4))


def opinionated(agent: Any) -> Any:
    """The agent with weights and statistics that make its decisions differ by observation."""
    generator = torch.Generator().manual_seed(0)
    for parameter in agent.policy.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            bias = parameter.ndim == 1
            parameter.data.add_(noise * (0.1 if bias else 2.0 * parameter[0].numel() ** -0.5))
    for module in agent.modules():
        if isinstance(module, MLPEncoder) and module.norm is not None:
            width = module.norm.running.moments.shape[1]
            module.norm.update(np.random.default_rng(0).normal(3.0, 0.2, (50, width)))
    return agent.eval()


def made(kind: str, model: Path | None = None) -> Any:
    """An agent that reads observations of this kind."""
    reader = partial(LLMEncoder, model=str(model), max_length=16)
    vector, image = OBSERVATIONS["vector"], OBSERVATIONS["small_image"]
    normal = partial(MLPEncoder, normalize=True)
    agents = {
        "vector": lambda: PPO(EnvSpec(vector, THREE), normal),
        "image": lambda: DQN(
            EnvSpec(image, gym.spaces.Discrete(3, start=2)),
            SMALL,
            partial(QNetwork, hidden=[16], dueling=True, noisy=True),
            distribution="quantile",
            atoms=4,
        ),
        "dict": lambda: SAC(
            EnvSpec(OBSERVATIONS["dict"], BOX), partial(DictEncoder, encoders={"image": SMALL})
        ),
        "words": lambda: PPO(EnvSpec(TEXT, THREE), WORDS),
        "tokens": lambda: PPO(
            EnvSpec(TALKS, THREE), partial(DictEncoder, encoders={"text": reader})
        ),
        "recurrent": lambda: PPO(
            EnvSpec(vector, gym.spaces.MultiDiscrete([2, 3])),
            normal,
            partial(ActorCritic, recurrent="lstm", recurrent_size=8, share_encoder=False),
        ),
    }
    agent = agents[kind]()
    if kind == "dict":
        return agent.eval()  # or its tanh would be full
    opinionated(agent)
    if kind == "image":  # of random convolutions one action is always the best
        policy, rows = agent.policy, np.stack(sampled(agent, 50, seed=2))
        with torch.no_grad():
            features = policy.features(agent.preprocess(rows))
            policy.advantage[-1].bias -= policy.advantage(features).mean(0)
    return agent


# The first two are in others as well: a vector in `recurrent`, an image in `dict`.
KINDS = ("vector", "image", "words", "dict", "tokens", "recurrent")


def sampled(agent: Any, count: int, seed: int = 1) -> list[Any]:
    """Single observations, of other seeds than those that an export is checked on."""
    rng = np.random.default_rng(seed)
    parts = list(parts_of(agent.encoder, agent.spec.observation_space))
    values = [sample_part(part, agent.encoder, count, rng) for part in parts]
    return [assembled(parts, row) for row in zip(*values, strict=True)]


def batched(space: gym.Space, rows: list[Any]) -> Any:
    """Single observations as a vector environment gives them."""
    if isinstance(space, gym.spaces.Dict):
        return {key: batched(part, [row[key] for row in rows]) for key, part in space.items()}
    return tuple(rows) if isinstance(rows[0], str) else np.stack(rows)


# Run in a process of its own: it can import neither torch nor lightning nor this library.
OUTSIDE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import numpy as np
from run_exported import ExportedPolicy

def plain(value):
    return {{k: plain(v) for k, v in value.items()}} if isinstance(value, dict) else value

policy = ExportedPolicy()
rows = [plain(row) for row in json.load(open(sys.argv[2]))]
steps = int(sys.argv[3])
size, outs = len(rows) // steps, []
for step in range(steps):
    outs.append(policy.run(rows[step * size : (step + 1) * size]))
policy.reset()
outs[0]["alone"] = np.asarray(policy.act(rows[0]))
np.savez(sys.argv[4], **{{f"{{n}}.{{k}}": v for n, out in enumerate(outs) for k, v in out.items()}})
assert not {blocked} & set(sys.modules)
"""


def run_outside(
    folder: Path, rows: list[Any], steps: int, blocked: str
) -> list[dict[str, np.ndarray]]:
    """What the folder's own script says of observations, in a process without those packages."""
    (folder.parent / "rows.json").write_text(json.dumps(rows, default=lambda a: a.tolist()))
    out = folder.parent / "said.npz"
    script = OUTSIDE.format(blocked=set(blocked.split()))
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", script, folder, folder.parent / "rows.json", str(steps), out]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    said: list[dict[str, np.ndarray]] = [{} for _ in range(steps)]
    with np.load(out) as stored:
        for key, value in stored.items():
            step, _, name = key.partition(".")
            said[int(step)][name] = value
    return said
