"""`load_from_checkpoint`: an agent built in Python comes back without a word about how."""

import json
import os
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from llm_tiny import tiny_model
from probes import batch
from training import make_trainer

from rl_lightning import (
    A2C,
    PPO,
    REINFORCE,
    ActorCritic,
    DictEncoder,
    ImpalaCNN,
    LLMEncoder,
    MLPEncoder,
)
from rl_lightning.agents.agent import adam
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import RolloutDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")
STATES = (0, 1, 2, 1)


def save(agent, path):
    trainer = make_trainer()
    trainer.strategy.connect(agent)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def build(make, observation="vector", action="discrete"):
    """An agent whose actions and values depend on its weights."""
    kwargs = {"observation": observation, "action": action}
    agent = make(RolloutDataModule("Probe-v0", env_kwargs=kwargs).spec)
    with torch.no_grad():
        agent.policy.action_head.linear.weight.normal_()
    return agent.eval()


@torch.no_grad()
def think(agent, observation):
    agent.eval()
    x = agent.preprocess(batch(observation, *STATES))
    out = agent.act(x, explore=False, state=agent.initial_state(len(STATES)))
    optimizer = agent.configure_optimizers()
    rates = [optimizer.param_groups[0][key] for key in ("lr", "betas", "eps")]
    return {
        "class": type(agent).__name__,
        "action": out["action"].tolist(),
        "value": agent.inspect(x).get("value", torch.zeros(0)).tolist(),
        "gamma": agent.gamma,
        "optimizer": [type(optimizer).__name__, *map(str, rates)],
    }


def cases(model):
    cnn = partial(ImpalaCNN, features=8, channels=[4])
    network = partial(ActorCritic, hidden=(6,), recurrent="lstm", recurrent_size=5)
    optimizer = partial(torch.optim.AdamW, lr=1e-2, betas=(0.8, 0.9))
    return {
        "defaults": ("vector", "discrete", PPO),
        "partial": (
            "vector",
            "multi_discrete",
            partial(
                PPO,
                encoder=partial(MLPEncoder, hidden=[7, 6], activation="relu", normalize=True),
                network=network,
                optimizer=optimizer,
                gamma=np.float64(0.9),
                sequence_length=4,
            ),
        ),
        "dict": (
            "dict",
            "multi_binary",
            partial(
                A2C,
                encoder=partial(DictEncoder, encoders={"image": cnn}),
                optimizer=partial(adam, lr=0.1),
            ),
        ),
        "llm": (
            "text",
            "box",
            partial(
                REINFORCE,
                encoder=partial(LLMEncoder, model=model, tune="lora"),
                network=partial(ActorCritic, squash=True),
                baseline=False,
            ),
        ),
    }


SCRIPT = """
import json, sys, warnings
import torch
from rl_lightning.agents import A2C, PPO, REINFORCE
from test_load import think

warnings.simplefilter("ignore")
out = {}
for name, (kind, path, observation) in json.loads(sys.argv[1]).items():
    agent = {"PPO": PPO, "A2C": A2C, "REINFORCE": REINFORCE}[kind].load_from_checkpoint(path)
    out[name] = think(agent, observation)
print(json.dumps(out))
"""


@pytest.mark.learning  # a fresh interpreter takes seconds to import everything
def test_a_fresh_process_needs_nothing_but_the_file(tmp_path):
    saved, expected = {}, {}
    for name, (observation, action, make) in cases(tiny_model("bert", tmp_path / "bert")).items():
        agent = build(make, observation, action)
        path = save(agent, tmp_path / f"{name}.ckpt")
        saved[name] = (type(agent).__name__, str(path), observation)
        expected[name] = think(agent, observation)
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(saved)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_checkpoint_is_plain_data(tmp_path):
    observation, action, make = cases("")["partial"]
    path = save(build(make, observation, action), tmp_path / "agent.ckpt")
    arguments = torch.load(path, weights_only=True)["hyper_parameters"]
    assert arguments["encoder"] == {
        "class_path": "rl_lightning.MLPEncoder",
        "init_args": {"hidden": [7, 6], "activation": "relu", "normalize": True},
    }
    assert arguments["gamma"] == 0.9


def test_what_keeps_a_part_from_being_built_is_the_whole_message(tmp_path):
    path = save(build(PPO), tmp_path / "agent.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["spec"] = EnvSpec(gym.spaces.Text(9), gym.spaces.Discrete(2))
    given = {"model": str(tmp_path / "gone")}
    checkpoint["hyper_parameters"]["encoder"] = {
        "class_path": "rl_lightning.LLMEncoder",
        "init_args": given,
    }
    torch.save(checkpoint, path)
    with pytest.raises(ConfigurationError, match=r"^cannot find model='.*gone'.*Give one of"):
        PPO.load_from_checkpoint(path)


def test_arguments_can_be_changed_while_loading(tmp_path):
    path = save(build(PPO), tmp_path / "agent.ckpt")
    assert PPO.load_from_checkpoint(path, gamma=0.5, clip_range=0.3).clip_range == 0.3
    assert PPO.load_from_checkpoint(path, gamma=0.5).gamma == 0.5


def test_an_encoder_that_cannot_be_described_must_be_given_again(tmp_path):
    encoder = lambda spec: MLPEncoder(spec, hidden=(5,))  # noqa: E731
    agent = build(partial(PPO, encoder=encoder))
    path = save(agent, tmp_path / "agent.ckpt")
    with pytest.raises(Exception, match="encoder") as error:
        PPO.load_from_checkpoint(path)
    message = str(error.value)
    assert "load_from_checkpoint(path, encoder=...)" in message
    assert "function" in message
    loaded = PPO.load_from_checkpoint(path, encoder=encoder)
    assert think(loaded, "vector") == think(agent, "vector")
    again = save(loaded, tmp_path / "again.ckpt")
    with pytest.raises(Exception, match="load_from_checkpoint"):
        PPO.load_from_checkpoint(again)


@pytest.mark.parametrize("name", ["defaults", "partial", "dict", "llm"])
def test_a_loaded_agent_can_be_saved_and_loaded_again(name, tmp_path):
    model = tiny_model("bert", tmp_path / "bert") if name == "llm" else ""
    observation, action, make = cases(model)[name]
    agent = build(make, observation, action)
    expected, kind = think(agent, observation), type(agent)
    for generation in range(3):
        agent = kind.load_from_checkpoint(save(agent, tmp_path / f"{generation}.ckpt"))
        assert think(agent, observation) == expected


# --- what a checkpoint cannot say -----------------------------------------------------------------


def trusts(hparams):
    """Whether code loading is switched on anywhere in these hyper-parameters."""
    if isinstance(hparams, dict):
        return "trust_remote_code" in hparams or any(map(trusts, hparams.values()))
    return isinstance(hparams, list) and any(map(trusts, hparams))


def trusting(model, kind):
    """An encoder by `partial`, two inside a dictionary, or as a configuration has it."""
    one = partial(LLMEncoder, model=model, max_length=48, trust_remote_code=True)
    if kind == "dict":
        return partial(DictEncoder, encoders={"text": one}, ignore=["vector"])
    if kind == "twice":
        return partial(one, tune="lora", trust_remote_code=True)
    return one


@pytest.mark.parametrize("kind", ["partial", "dict", "twice"])
def test_trust_is_not_stored(kind, tmp_path):
    model = tiny_model("bert", tmp_path / "model")
    space = gym.spaces.Text(40)
    if kind == "dict":
        space = gym.spaces.Dict({"text": space, "vector": gym.spaces.Box(0, 1, (2,))})
    agent = PPO(EnvSpec(space, gym.spaces.Discrete(2)), trusting(model, kind))
    assert not trusts(dict(agent.hparams))
    assert not trusts(dict(agent.hparams_initial))
    path = save(agent, tmp_path / "agent.ckpt")
    assert not trusts(torch.load(path, weights_only=True)["hyper_parameters"])
    loaded = PPO.load_from_checkpoint(path)
    assert loaded.encoder.out_dim == agent.encoder.out_dim


def test_trust_given_on_the_command_line_is_not_stored_but_stays_in_its_configuration(tmp_path):
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

    model = tiny_model("bert", tmp_path / "model")
    spec = EnvSpec(gym.spaces.Text(40), gym.spaces.Discrete(2))
    init = {"model": model, "trust_remote_code": True}
    given = {"encoder": {"class_path": "rl_lightning.LLMEncoder", "init_args": init}, "spec": spec}
    given["networks"] = [{"init_args": {"trust_remote_code": True}}]
    with _given_hyperparameters_context(given, "lightning.pytorch.cli.instantiate_module"):
        agent = PPO(spec, partial(LLMEncoder, **init))
    assert not trusts(dict(agent.hparams))
    assert agent.hparams["encoder"]["init_args"] == {"model": model}
    assert agent.hparams["spec"] is spec
    assert trusts(given)
