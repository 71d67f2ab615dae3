"""Checkpoints from strangers: what they name is loaded, or refused; nothing of it is run."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training import make_trainer

from rl_lightning import A2C, DQN, PPO, ActorCritic, Agent, MLPEncoder, RolloutDataModule
from rl_lightning.cli.command import main
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.trust import check_import, find_named, loading_stranger
from rl_lightning.data import RLDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")
SHORT = {"num_envs": 2, "rollout_steps": 8, "total_frames": 32, "val_episodes": 4}
RAN = []


def leave_a_trace(*args, **kwargs):
    RAN.append(args)


class NotAPart:
    """What a checkpoint may not name: it is no part of an agent."""

    def __init__(self, *args, **kwargs):
        RAN.append(args)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a short run, as `torch.load` reads it."""
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    data = RolloutDataModule("CartPole-v1", wrappers=["FlattenObservation"], seed=1, **SHORT)
    trainer = make_trainer()
    trainer.fit(PPO(data.spec, network=partial(ActorCritic, hidden=[8])), data)
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


@pytest.fixture
def forge(trained, tmp_path):
    """Writes the checkpoint with other hyper-parameters of its agent, or of its data."""

    def write(agent=None, data=None):
        RAN.clear()
        changed = {
            **trained,
            "hyper_parameters": {**trained["hyper_parameters"], **(agent or {})},
            "datamodule_hyper_parameters": {
                **trained["datamodule_hyper_parameters"],
                **(data or {}),
            },
        }
        path = tmp_path / "forged.ckpt"
        torch.save(changed, path)
        return path

    return write


def test_neither_class_nor_configuration_need_to_be_named(forge):
    path = forge()
    agent, data = Agent.load_from_checkpoint(path), RLDataModule.load_from_checkpoint(path)
    assert type(agent) is PPO
    assert type(data) is RolloutDataModule
    assert (data.env, data.wrappers, data.num_envs) == ("CartPole-v1", ["FlattenObservation"], 2)
    assert data.spec == agent.spec
    assert RLDataModule.load_from_checkpoint(path, val_episodes=7).val_episodes == 7
    with pytest.raises(ConfigurationError, match="episodez"):
        RLDataModule.load_from_checkpoint(path, episodez=7)


def test_an_agent_of_another_class_is_refused(forge):
    with pytest.raises(ConfigurationError, match=r"holds a .*PPO, which is no DQN"):
        DQN.load_from_checkpoint(forge())


def test_the_command_line_validates_a_checkpoint_alone_as_with_its_configuration(forge, capsys):
    path, quiet = str(forge()), ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    main(["validate", "--ckpt_path", path, *quiet])
    alone = capsys.readouterr().out
    own = ["--model=PPO", "--model.network=ActorCritic", "--model.network.hidden=[8]"]
    own += ["--data=RolloutDataModule", "--data.env=CartPole-v1"]
    own += [f"--data.{name}={value}" for name, value in SHORT.items()]
    main(["validate", *own, "--ckpt_path", path, *quiet])
    assert "val/return" in alone
    assert capsys.readouterr().out == alone


def named(path, **init_args):
    return {"class_path": path, "init_args": init_args}


HERE = __name__
AGENTS = {
    "a class that is no part of an agent": {"encoder": named(f"{HERE}.NotAPart")},
    "the same, deeper down": {
        "encoder": named("rl_lightning.DictEncoder", encoders={"x": named(f"{HERE}.NotAPart")})
    },
    "a function of the system": {"encoder": "os.system"},
    "a function of torch": {"optimizer": "torch.load"},
    "a class of the standard library": {"network": named("subprocess.Popen", args=["true"])},
    "another class of the standard library": {"optimizer": named("pickle.Unpickler")},
    "an agent that is a function": {"_class_path": "os.system"},
    "an agent that is no agent": {"_class_path": f"{HERE}.NotAPart"},
    "an agent without a path": {"_class_path": "__import__('os').system('true')"},
    "a way through a module's imports": {"encoder": "rl_lightning.cli.command.os.system"},
}


@pytest.mark.parametrize("what", AGENTS)
def test_a_forged_agent_is_refused_before_anything_is_built(what, forge):
    path = forge(agent=AGENTS[what])
    with pytest.raises(ConfigurationError):
        Agent.load_from_checkpoint(path)
    with pytest.raises(ConfigurationError):
        PPO.load_from_checkpoint(path)
    assert RAN == []


DATA = {
    "a wrapper that is a function": {"wrappers": ["make_env"]},
    "a wrapper that is another module's": {"wrappers": [f"{HERE}.NotAPart"]},
    "a wrapper that writes files": {"wrappers": [{"RecordVideo": {"video_folder": "here"}}]},
    "its dotted path": {"wrappers": [{"gymnasium.wrappers.RecordVideo": {"video_folder": "x"}}]},
    "a describer that is the system's": {"wrappers": [{"Describe": {"describer": "os.system"}}]},
    "an argument that is a function": {"env_kwargs": {"reward": "os.system"}},
    "a module of environments": {"env": "antigravity:CartPole-v1"},
    "a data module that is none": {"_class_path": f"{HERE}.NotAPart"},
}


@pytest.mark.parametrize("what", DATA)
def test_a_forged_data_module_is_refused(what, forge):
    path = forge(data=DATA[what])
    with pytest.raises(ConfigurationError):
        RLDataModule.load_from_checkpoint(path)
    assert RAN == []
    assert "antigravity" not in sys.modules


# --- texts that are more than texts ------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Modules that leave a trace when they are imported, and a configuration that names one."""
    trace = (
        f"import pathlib; pathlib.Path({str(tmp_path)!r}, 'ran').touch()\nEyes = Still = print\n"
    )
    (tmp_path / "their_module.py").write_text(trace)
    (tmp_path / "their-module.py").write_text(trace)
    (tmp_path / "their module.py").write_text(trace)
    (tmp_path / "eyes.yaml").write_text("class_path: their_module.Eyes\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


CODE = "{class_path: rl_lightning.LLMEncoder, init_args: {model: x, trust_remote_code: true}}"
TEXTS = {
    "JSON": {"encoder": '{"class_path": "their_module.Eyes"}'},
    "YAML": {"encoder": "{class_path: their_module.Eyes}"},
    "YAML that does not look like it": {"encoder": '{"class\\x5fpath": "their_module.Eyes"}'},
    "an optimizer in JSON": {"optimizer": '{"class_path": "their_module.Eyes"}'},
    "a switch in YAML": {"encoder": CODE},
    "a switch that does not look like it": {"encoder": CODE.replace("trust_", '"trust\\x5f', 1)
                                            .replace("code:", 'code":')},
    "a file": {"encoder": "eyes.yaml"},
    "a variable": {"encoder": "${oc.env:NOT_THERE,their_module.Eyes}"},
    "an entry that is called model": {
        "encoder": named("rl_lightning.DictEncoder", encoders={"model": "their_module.Eyes"})
    },
    "a class for one": {
        "encoder": named("rl_lightning.DictEncoder", encoders={"model": named("their_module.Eyes")})
    },
    "a function of an installed package": {"encoder": "jinja2.filters.do_int"},
    "a function of this library": {"encoder": "rl_lightning.data.resume.sidecar.install"},
}  # fmt: skip


@pytest.mark.parametrize("what", TEXTS)
def test_a_text_of_a_forged_agent_is_no_way_to_code(what, forge, theirs, monkeypatch):
    import jinja2.filters  # noqa: F401  (as something else may have imported it)

    path = forge(agent=TEXTS[what])
    monkeypatch.chdir(theirs)
    with pytest.raises(ConfigurationError):
        Agent.load_from_checkpoint(path)
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--ckpt_path", str(path)])
    assert ended.value.code == 2
    assert not (theirs / "ran").exists()


WRAPPERS = {
    "a name that Python could not import": ["their-module.Still"],
    "a variable": ["${oc.env:NOT_THERE,their_module.Still}"],
    "an argument that is a variable": [{"TimeLimit": {"max_episode_steps": "${oc.env:HOME}"}}],
    "a describer that Python could not import": [{"Describe": {"describer": "their-module.Eyes"}}],
    "one in two words": [{"Describe": {"describer": "their module.Eyes"}}],
    "functions in turn": [
        {"jinja2.filters.do_int": {"default": "__import__('os').system('touch ran')"}},
        "sympy.core.sympify.sympify",
    ],
    "a function of this library": ["rl_lightning.data.resume.sidecar._remove"],
    "one of the user's own": [f"{HERE}.leave_a_trace"],
}


@pytest.mark.parametrize("what", WRAPPERS)
def test_a_text_of_a_forged_wrapper_is_no_way_to_code(what, forge, theirs, monkeypatch):
    import sympy.core.sympify  # noqa: F401  (torch does)

    path = forge(data={"wrappers": WRAPPERS[what]})
    monkeypatch.chdir(theirs)
    with pytest.raises(ConfigurationError):
        _ = RLDataModule.load_from_checkpoint(path).spec
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--ckpt_path", str(path)])
    assert ended.value.code == 2
    assert not (theirs / "ran").exists()
    assert RAN == []


@pytest.mark.parametrize("text", ["Go: north [or not]", "eyes.yaml", "Look. Then go."])
def test_what_looks_odd_and_is_a_text_stays_one(text, forge, theirs, monkeypatch):
    """Templates are YAML by chance, and an environment may read a file of its own."""
    monkeypatch.chdir(theirs)
    data = {"env_kwargs": {"render_mode": text}}
    assert RLDataModule.load_from_checkpoint(forge(data=data)).env_kwargs == data["env_kwargs"]


@pytest.mark.parametrize("path", ["local://{victim}", "{here}/../victim", "{here}/link/diary"])
def test_a_checkpoint_does_not_choose_what_is_removed(path, trained, tmp_path):
    """Lightning believes what it says of the checkpoints before it."""
    victim, here = tmp_path / "victim", tmp_path / "here"
    victim.mkdir()
    here.mkdir()
    (victim / "diary").write_text("dear diary")
    (here / "link").symlink_to(victim)
    saver = ModelCheckpoint(dirpath=here, monitor="val/return", mode="max", save_last=True)
    said = {
        "dirpath": str(here),
        "best_model_path": path.format(victim=victim, here=here),
        "last_model_path": path.format(victim=victim, here=here),
        "best_model_score": None,
        "kth_best_model_path": "",
        "kth_value": None,
        "best_k_models": {},
    }
    torch.save({**trained, "callbacks": {saver.state_key: said}}, tmp_path / "forged.ckpt")
    data = RolloutDataModule("CartPole-v1", wrappers=["FlattenObservation"], seed=1, **SHORT)
    data.total_frames = 64
    agent = PPO(data.spec, network=partial(ActorCritic, hidden=[8]))
    trainer = make_trainer(callbacks=[saver], enable_checkpointing=True)
    trainer.fit(agent, data, ckpt_path=tmp_path / "forged.ckpt")
    assert list(here.glob("*.ckpt"))
    assert (victim / "diary").read_text() == "dear diary"


@pytest.mark.parametrize(
    "counts", [{"frames": "x"}, {"frames": -5}, {"frames": 10**30}, {"frames": float("nan")},
               {"progress": None}, {"progress": float("nan")}, {"progress": 2.0}]
)  # fmt: skip
def test_counts_that_no_run_can_have_are_refused(counts, trained, tmp_path):
    torch.save({**trained, **counts}, tmp_path / "forged.ckpt")
    with pytest.raises(ConfigurationError, match=f"{next(iter(counts))}.*was changed"):
        Agent.load_from_checkpoint(tmp_path / "forged.ckpt")


def test_weights_of_another_algorithm_are_refused_even_where_they_fit(forge, trained):
    data = RolloutDataModule("CartPole-v1", wrappers=["FlattenObservation"], seed=1, **SHORT)

    class Derived(PPO):
        pass

    network = partial(ActorCritic, hidden=[8])
    path = forge()
    for kind in (PPO, Derived):
        make_trainer().validate(kind(data.spec, network=network), data, ckpt_path=path)
    with pytest.raises(ConfigurationError, match="holds a PPO, and this agent is A2C"):
        make_trainer().validate(A2C(data.spec, network=network), data, ckpt_path=path)
    moved = forge(agent={"_class_path": "rl_lightning.of_old.PPO"})
    make_trainer().validate(PPO(data.spec, network=network), data, ckpt_path=moved)


def test_an_instantiator_of_the_files_own_is_not_called(forge):
    agent = Agent.load_from_checkpoint(forge(agent={"_instantiator": f"{HERE}.leave_a_trace"}))
    assert type(agent) is PPO
    assert RAN == []


def test_where_to_write_is_not_taken_from_the_file(forge):
    places = {"record": "somewhere.hdf5"}
    assert RLDataModule.load_from_checkpoint(forge(data=places)).record is None


def test_code_loading_cannot_be_switched_on_by_a_file(forge):
    switched = named("rl_lightning.MLPEncoder", hidden=[4], trust_remote_code=True)
    agent = Agent.load_from_checkpoint(forge(agent={"encoder": switched}), strict=False)
    assert isinstance(agent.encoder, MLPEncoder)
    assert "trust_remote_code" not in str(agent.hparams)


def test_arguments_of_the_data_that_were_no_plain_data_are_asked_for(tmp_path):
    gym.register("Unstorable-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
    data = RolloutDataModule("Unstorable-v0", env_kwargs={"render_mode": object()}, **SHORT)
    assert "cannot describe" in str(data.hparams["env_kwargs"])


# --- packages that only the checkpoint names ---------------------------------------------------

PACKAGE = """
import gymnasium as gym, pathlib, torch
pathlib.Path(__file__).with_name("imported").touch()
from rl_lightning import MLPEncoder

class Eyes(MLPEncoder):
    pass

class Still(gym.Wrapper):
    pass

gym.register("Theirs-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
"""
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from rl_lightning import Agent
from rl_lightning.data import RLDataModule
from rl_lightning.core.errors import ConfigurationError
path, trusted = sys.argv[1], sys.argv[2:]
for kind in (Agent, RLDataModule):
    try:
        made = kind.load_from_checkpoint(path, trusted=trusted)
        print("loaded", type(made).__name__)
    except ConfigurationError as error:
        print("refused", error)
"""


@pytest.mark.distributed  # processes of their own
def test_a_package_is_imported_only_if_it_is_trusted(forge, tmp_path):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    path = forge(
        agent={"encoder": named("their_package.Eyes")},
        data={"env": "their_package:Theirs-v0", "wrappers": ["their_package.Still"]},
    )

    def run(*command):
        env = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PATH": "", "HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=env, cwd=tmp_path
        )

    refused = run("-c", SCRIPT, str(path)).stdout.splitlines()
    assert [line.split()[0] for line in refused] == ["refused", "refused"]
    assert all("their_package" in line and "--trust their_package" in line for line in refused)
    assert not (package / "imported").exists()

    alone = ["-m", "rl_lightning", "validate", "--ckpt_path", str(path), "--trainer.logger=false"]
    told = run(*alone)
    assert told.returncode == 2
    assert "--trust their_package" in told.stderr
    assert "Traceback" not in told.stderr
    assert not (package / "imported").exists()

    loaded = run("-c", SCRIPT, str(path), "their_package").stdout.splitlines()
    assert loaded == ["loaded PPO", "loaded RolloutDataModule"]
    trusting = run(*alone, "--trust", "their_package")
    assert trusting.returncode == 0, trusting.stderr
    assert "val/return" in trusting.stdout


def test_outside_of_loading_every_import_is_the_users_own_business():
    check_import("their_package", "anything")
    with loading_stranger():
        with pytest.raises(ConfigurationError, match="--trust their_package"):
            check_import("their_package.part", "the encoder their_package.part.Eyes")
        with loading_stranger(["their-package"]):
            check_import("their_package.part", "the encoder their_package.part.Eyes")
        assert find_named("gymnasium.wrappers.TimeLimit", "a wrapper") is gym.wrappers.TimeLimit
        with pytest.raises(ConfigurationError, match="not there"):
            find_named("gymnasium.wrappers.TimeLimits", "a wrapper")
        with pytest.raises(ConfigurationError, match="--trust idlelib"):
            find_named("idlelib.run.main", "idlelib.run.main")  # the standard library's, too
