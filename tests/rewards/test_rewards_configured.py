"""One line of configuration: on the command line, in checkpoints, and from there again."""

import copy
import json
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from llm_tiny import tiny_model
from reward_tools import Height, warmth
from training import make_trainer

from rl_lightning import PPO, RolloutDataModule, TableEncoder
from rl_lightning.cli.command import main
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.signatures import signature_of
from rl_lightning.data import RLDataModule
from rl_lightning.rewards import (
    CountBonus,
    GoalSimilarity,
    LabelledReward,
    Likelihood,
    RNDBonus,
    RuleLabeller,
    StateReward,
    SuggestedGoals,
    TextFunction,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*jsonargparse:", "ignore:.*instantiate_classes")
TABLE = partial(TableEncoder, capacity=500)
SHORT = {"num_envs": 2, "rollout_steps": 8, "total_frames": 32, "val_episodes": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model("bert", tmp_path_factory.mktemp("tiny") / "bert")


def saved(path, rewards, **more):
    """A checkpoint of a short run; what it says of rewards."""
    data = RolloutDataModule("TextMaze-v0", rewards=rewards, seed=1, **SHORT, **more)
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(PPO(data.spec, encoder=TABLE), data)
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)["datamodule_hyper_parameters"]["rewards"]


def built(data):
    return [make(data.spec) for make in data.rewards]


def test_checkpoints_hold_rewards_as_plain_data_and_build_them_again(tiny, tmp_path):
    goal = {"goal": ["You stand at the exit.", "b"], "weight": 0.1, "shaping": "potential"}
    makers = [
        partial(GoalSimilarity, model=tiny, layers=1, **goal),
        CountBonus,
        partial(TextFunction, function=warmth, name="rule"),
        partial(RNDBonus, hidden=(8,), model=tiny),
    ]
    path = tmp_path / "last.ckpt"
    judge, count, rule, rnd = saved(path, makers, env_reward_weight=0.5)
    assert judge == {
        "class_path": "rl_lightning.GoalSimilarity",
        "init_args": {"model": tiny, "layers": 1, **goal},
    }
    assert count == "rl_lightning.CountBonus"
    assert rule["init_args"] == {"function": "reward_tools.warmth", "name": "rule"}
    assert rnd["init_args"]["hidden"] == [8]
    data = RLDataModule.load_from_checkpoint(path)
    assert data.env_reward_weight == 0.5
    judge, count, rule, rnd = built(data)
    assert (judge.goals, judge.weight, judge.shaping) == (goal["goal"], 0.1, "potential")
    assert isinstance(count, CountBonus)
    assert isinstance(rnd, RNDBonus)
    assert rule.function is warmth
    # As often as one likes: what a loaded module was built with is described like the original.
    trainer = make_trainer(max_epochs=0)
    trainer.fit(PPO(data.spec, encoder=TABLE), data)
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    assert [
        r.weight for r in built(RLDataModule.load_from_checkpoint(tmp_path / "again.ckpt"))
    ] == [
        0.1,
        1.0,
        1.0,
        1.0,
    ]
    other = RLDataModule.load_from_checkpoint(path, rewards=[Height])
    assert other.rewards == [Height]


def test_a_run_goes_on_from_its_checkpoint_alone(tmp_path):
    path = tmp_path / "last.ckpt"
    saved(path, [partial(CountBonus, episodic="root")])
    data = RLDataModule.load_from_checkpoint(path)
    data.total_frames = 64
    agent = PPO.load_from_checkpoint(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(begins anew|fresh episodes)")
        make_trainer().fit(agent, data, ckpt_path=path)
    assert agent.frames == 64


def test_what_cannot_be_described_is_asked_for_again(tmp_path):
    path = tmp_path / "last.ckpt"
    saved(path, [lambda spec: CountBonus(spec)])
    with pytest.raises(ConfigurationError, match=r"rewards was a function .* give it again"):
        RLDataModule.load_from_checkpoint(path)
    assert RLDataModule.load_from_checkpoint(path, rewards=[CountBonus]).rewards == [CountBonus]


FORGED = {
    "os.system": "names os.system, which is no part of an agent",
    "subprocess.Popen": "names subprocess.Popen, which is no part",
    "rl_lightning.MLPEncoder": "data.rewards cannot be built",
    "rl_lightning.rewards.NoSuch": "rl_lightning.rewards.NoSuch, which is not there",
    "antigravity.fly": "importing 'antigravity' would run its code",
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("honest") / "last.ckpt"
    saved(path, [CountBonus])
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", FORGED)
def test_a_checkpoint_may_name_rewards_and_nothing_else(name, honest, tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint = copy.deepcopy(honest)
    for forged in (
        [name],
        [{"class_path": name, "init_args": {}}],
        [{"class_path": "rl_lightning.TextFunction", "init_args": {"function": name}}],
    )[: 3 if name == "os.system" else 2]:
        checkpoint["datamodule_hyper_parameters"]["rewards"] = forged
        torch.save(checkpoint, path)
        with pytest.raises(ConfigurationError, match=FORGED[name]):
            RLDataModule.load_from_checkpoint(path)


ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "OWN_API_KEY"}
ASKS = "data.rewards ask a labeller, and whom to ask, .*give --config"


def judged(labeller):
    return [{"class_path": "LabelledReward", "init_args": {"labeller": labeller}}]


@pytest.mark.parametrize(
    "forged",
    [
        judged({"class_path": "EndpointLabeller", "init_args": ENDPOINT}),
        judged({"class_path": "rl_lightning.rewards.EndpointLabeller", "init_args": ENDPOINT}),
        judged("EndpointLabeller"),
        judged(json.dumps({"labeller": "EndpointLabeller"})),
        [{"class_path": "LabelledReward", "init_args.labeller.init_args.model": "m"}],
        [{"class_path": "SuggestedGoals", "init_args": {"judge": "a.EndpointLabeller"}}],
        [
            {
                "class_path": "TextFunction",
                "init_args": {
                    "function": {"class_path": "EndpointLabeller", "init_args": ENDPOINT}
                },
            }
        ],
    ],
)
def test_a_checkpoint_never_says_whom_to_ask(forged, honest, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OWN_API_KEY", "sk-0123456789-secret")
    path = tmp_path / "last.ckpt"
    checkpoint = copy.deepcopy(honest)
    checkpoint["datamodule_hyper_parameters"]["rewards"] = forged
    torch.save(checkpoint, path)
    with pytest.raises(ConfigurationError, match=ASKS):
        RLDataModule.load_from_checkpoint(path)
    with pytest.raises(SystemExit):
        run("validate", "--ckpt_path", str(path), "--trainer.logger=false")
    assert re.search(ASKS, capfd.readouterr().err)


def test_a_run_that_asks_goes_on_with_its_own_configuration(tmp_path, capfd, monkeypatch):
    """Neither the address nor the key's name is in the checkpoint, and the file says so."""
    monkeypatch.setenv("OWN_API_KEY", "sk-0123456789-secret")
    labeller = {"class_path": "RuleLabeller", "init_args": {"function": "reward_tools.length_of"}}
    endpoint = {"class_path": "EndpointLabeller", "init_args": {**ENDPOINT, "template": "{text}"}}
    endpoint["init_args"] |= {"budget": 0, "on_failure": "skip"}
    rewards = [
        *judged(labeller),
        {"class_path": "SuggestedGoals", "init_args": {"labeller": endpoint, "info_key": "k"}},
    ]
    table = {"class_path": "TableEncoder", "init_args": {"capacity": 500}}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "PPO", "init_args": {"encoder": table}},
        "data": {
            "class_path": "RolloutDataModule",
            "init_args": {"env": "TextMaze-v0", "rewards": rewards, **SHORT},
        },
        "trainer": {"logger": False, "default_root_dir": str(tmp_path)},
    }
    file, path = str(tmp_path / "c.json"), str(tmp_path / "last.ckpt")
    Path(file).write_text(json.dumps(config))
    run("fit", "--config", file, f"--checkpoint.dirpath={tmp_path}")
    for told in (b"127.0.0.1", b"OWN_API_KEY", b"0123456789-secret"):
        assert told not in Path(path).read_bytes()
    with pytest.raises(ConfigurationError, match=ASKS):
        RLDataModule.load_from_checkpoint(path)
    capfd.readouterr()
    with pytest.raises(SystemExit):
        run("validate", "--ckpt_path", path, "--trainer.logger=false")
    assert re.search(ASKS, capfd.readouterr().err)
    run("validate", "--ckpt_path", path, "--config", file)
    assert "val/return" in capfd.readouterr().out
    own = partial(LabelledReward, labeller=RuleLabeller(len))
    assert RLDataModule.load_from_checkpoint(path, rewards=[own]).rewards == [own]


def test_a_likelihood_is_built_again_from_a_checkpoint(tmp_path):
    model = tiny_model("gpt2", tmp_path / "gpt2")
    path = tmp_path / "last.ckpt"
    given = {"model": model, "max_length": 128, "of": "goal", "goal": "a door", "layers": 1}
    saved(path, [partial(Likelihood, **given)])
    (reward,) = built(RLDataModule.load_from_checkpoint(path))
    assert (reward.of, reward.goal, len(reward.scorer.backbone.model.transformer.h)) == (
        "goal",
        "a door",
        1,
    )


def run(*words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(list(words))


def test_the_words_of_a_configuration(tiny, tmp_path, capfd):
    """Trained from a file, validated from the checkpoint alone; validation is the environment's."""
    init = {"goal": "You stand at the exit.", "weight": 0.1, "shaping": "potential"}
    judge = {
        "class_path": "rl_lightning.rewards.GoalSimilarity",
        "init_args": {**init, "model": tiny, "layers": 1},
    }
    rule = {"class_path": "TextFunction", "init_args": {"function": "reward_tools.warmth"}}
    table = {"class_path": "TableEncoder", "init_args": {"capacity": 500}}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "PPO", "init_args": {"encoder": table}},
        "data": {
            "class_path": "RolloutDataModule",
            "init_args": {"env": "TextMaze-v0", "rewards": [judge, rule, "CountBonus"], **SHORT},
        },
        "trainer": {"logger": False, "default_root_dir": str(tmp_path)},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    checkpoint = f"--checkpoint.dirpath={tmp_path}"
    run("fit", "--config", str(tmp_path / "c.json"), checkpoint, "--data.env_reward_weight=2")
    path = tmp_path / "last.ckpt"
    described = torch.load(path, weights_only=True)["datamodule_hyper_parameters"]
    assert described["env_reward_weight"] == 2.0
    assert described["rewards"][0]["init_args"]["goal"] == init["goal"]
    assert [type(one).__name__ for one in built(RLDataModule.load_from_checkpoint(path))] == [
        "GoalSimilarity",
        "TextFunction",
        "CountBonus",
    ]
    capfd.readouterr()
    run("validate", "--ckpt_path", str(path), "--trainer.logger=false")
    assert "val/return" in capfd.readouterr().out


MISTAKES = {
    "--data.rewards=[NoSuch]": "data.rewards: no class 'NoSuch'.*there are .*GoalSimilarity",
    "--data.rewards=[PPO]": "data.rewards: PPO is no reward; there are .*CountBonus",
    "--data.rewards=[Reward]": "Reward is what others are derived from; choose one of .*CountB",
    "--data.rewards=3": "data.rewards: expected .*list.* not 3",
    "--data.rewards=[3]": "data.rewards",
    "--data.env_reward_weight=.nan": "data.env_reward_weight: expected a number, not nan",
    "--data.env_reward_weight=null": "data.env_reward_weight: null is no value",
    '--data.rewards=[{"class_path":"CountBonus","init_args":{"episodc":"first"}}]': (
        "CountBonus has no argument 'episodc'; did you mean 'episodic'"
    ),
    '--data.rewards=[{"class_path":"CountBonus","init_args":{"key":"near"}}]': "exact or embedding",
}


@pytest.mark.parametrize("option", MISTAKES)
def test_mistakes_are_one_sentence(option, capfd):
    words = ["--model=PPO", "--data=RolloutDataModule", "--data.env=CartPole-v1"]
    with pytest.raises(SystemExit):
        run("fit", *words, "--trainer.logger=false", option)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rl-lightning: error: ")
    assert re.search(MISTAKES[option], error), error


def test_all_rewards_have_their_arguments_by_name():
    kinds = (GoalSimilarity, CountBonus, RNDBonus, TextFunction)
    for cls in (*kinds, LabelledReward, Likelihood, SuggestedGoals):
        shaped = {"shaping"} if issubclass(cls, StateReward) else set()
        assert {"weight", "name", *shaped} <= set(signature_of(cls).parameters)
