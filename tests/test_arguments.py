"""What a script gives a constructor is of its annotation's kind, or refused by name."""

import inspect
import typing
from decimal import Decimal

import numpy as np
import pytest
from every_agent import AGENTS, CONTINUOUS, DISCRETE, SPECS

import rl_lightning
from rl_lightning import DQN, PPO, SAC, EnvSpec, MLPEncoder, ReplayDataModule, RolloutDataModule
from rl_lightning.agents import Agent
from rl_lightning.core.arguments import check_arguments
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.signatures import hints_of
from rl_lightning.data.base_module import RLDataModule

DATA = ["RolloutDataModule", "ReplayDataModule", "OfflineDataModule"]


class Odd:
    """Of no argument's kind, and with a repr of many lines."""

    def __repr__(self):
        return "an odd\nthing" + 200 * "!"


def typed(made):
    hints = hints_of(made)
    names = [name for name in inspect.signature(made).parameters if hints.get(name)]
    return {name: hints[name] for name in names if hints[name] is not typing.Any}


MADE = {
    **{name: ("", {"spec": SPECS.get(name, DISCRETE)}) for name in AGENTS},
    **{name: ("data.", {"env": "CartPole-v1"}) for name in DATA},
}
MADE["OfflineDataModule"] = ("data.", {"env": "CartPole-v1", "dataset": "x.hdf5"})


@pytest.mark.parametrize("name", MADE)
def test_no_argument_may_be_of_another_kind(name):
    made, (prefix, first) = getattr(rl_lightning, name), MADE[name]
    arguments = typed(made)
    assert len(arguments) >= 6
    for argument in arguments:
        said = rf"^{prefix}{argument} must be .*, not an odd thing!"
        with pytest.raises(ConfigurationError, match=said):
            made(**{**first, argument: Odd()})


@pytest.mark.parametrize(
    ("made", "wrong", "said"),
    [
        (SAC, {"temperature": None}, "temperature must be a number, not None"),
        (SAC, {"learn_temperature": None}, "learn_temperature must be True or False, not None"),
        (SAC, {"network": 3}, "network must be a class or another callable, not 3"),
        (SAC, {"noise": 3}, "noise must be a class or another callable or None, not 3"),
        (SAC, {"spec": "Pendulum-v1"}, "spec must be of class EnvSpec, not 'Pendulum-v1'"),
        (DQN, {"exploration": 3}, "exploration must be a class or another callable or None, not 3"),
        (DQN, {"value_range": -1}, "value_range must be a pair: a number, a number or None, not"),
        (DQN, {"value_range": (0, "1")}, "value_range must be a pair"),
        (PPO, {"gamma": True}, "gamma must be a number, not True"),
        (PPO, {"gamma": Decimal(1)}, "gamma must be a number, not Decimal"),
        (PPO, {"gamma": np.array([0.9, 0.8])}, "gamma must be a number, not array"),
        (SAC, {"learn_temperature": np.True_}, "learn_temperature must be True or False, not"),
        (PPO, {"encoder": [MLPEncoder]}, "encoder must be a class or another callable, not"),
    ],
)
def test_messages_name_the_kind_and_the_value(made, wrong, said):
    with pytest.raises(ConfigurationError) as refused:
        made(**{"spec": CONTINUOUS if made is SAC else DISCRETE, **wrong})
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("made", "given", "said"),
    [
        (PPO, {"gama": 0.9}, "PPO has no argument 'gama'; nearest are gamma, "),
        (DQN, {"n_step": 3}, "DQN has no argument 'n_step'; nearest are "),
        (RolloutDataModule, {"num_env": 3}, "RolloutDataModule has no argument 'num_env'; nearest"),
    ],
)
def test_a_misspelt_argument_is_answered_with_the_nearest(made, given, said):
    with pytest.raises(ConfigurationError) as refused:
        made("CartPole-v1" if made is RolloutDataModule else DISCRETE, **given)
    assert str(refused.value).startswith(said)
    names = inspect.signature(made).parameters  # what a notebook completes
    assert {"gamma", "num_envs"} & names.keys()


def test_what_means_the_right_thing_is_taken():
    agent = PPO(DISCRETE, gamma=np.float32(0.5), entropy_coef=0)
    assert agent.gamma == 0.5
    data = RolloutDataModule("CartPole-v1", total_frames=1e4, num_envs=np.int64(2), wrappers=())
    assert (data.total_frames, data.num_envs) == (10_000, 2)
    assert ReplayDataModule("CartPole-v1", success_threshold=475).success_threshold == 475


def test_classes_of_others_are_held_to_what_their_annotations_say_and_no_more():
    class Mine(Agent):
        def __init__(self, spec: EnvSpec, words: "list[str]" = (), free="x"):
            super().__init__(spec)

    assert Mine(DISCRETE, ["a"], free="y").hparams["free"] == "y"
    check_arguments(Mine, {"free": Odd()})
    with pytest.raises(ConfigurationError, match=r"^words must be a list, not 'abc'"):
        Mine(DISCRETE, "abc")

    class Unresolved(RLDataModule):
        def __init__(self, env):
            pass

    Unresolved.__init__.__annotations__["env"] = "NotImported"
    check_arguments(Unresolved, {"env": Odd()})
