"""Arguments that stand in one place are known by name everywhere: here, to parsers, to files."""

import inspect
from functools import partial

import pytest
from every_agent import AGENTS, DISCRETE
from training import fit

import rl_lightning
from rl_lightning import PPO, Agent, ReplayAgent, RolloutDataModule, agents
from rl_lightning.cli.parser import Parser
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.signatures import hints_of, signature_of
from rl_lightning.policies import ActorCritic

DATA = ["RolloutDataModule", "ReplayDataModule", "OfflineDataModule"]
CLASSES = [getattr(agents, name) for name in AGENTS] + [getattr(rl_lightning, n) for n in DATA]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_signature_is_what_the_command_line_takes(cls):
    parser = Parser()
    parser.add_class_arguments(cls, "x", fail_untyped=False)
    signature = inspect.signature(cls)
    assert signature == signature_of(cls)
    options = {action.dest.removeprefix("x.") for action in parser._actions}
    names = set(signature.parameters) - {"spec"}
    assert names <= options, names - options
    assert {n for n in options if "." not in n} - names <= {"help", "x", "spec", "print_x"}
    assert not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    assert set(hints_of(cls)) == set(signature.parameters)
    defaults = parser.get_defaults().x
    for name in ("gamma", "total_frames", "val_episodes", "lr_schedule"):
        if name in signature.parameters:
            assert defaults[name] == signature.parameters[name].default


def test_shared_arguments_are_explained_by_help(capsys):
    parser = Parser()
    parser.add_class_arguments(PPO, "model", skip={"spec"})
    told = parser.format_help()
    for words in ("Discount γ", "Learning rate of the encoders' parameters", "ε of the clipped"):
        assert words in told


def test_shared_arguments_reach_the_agent_and_its_checkpoint():
    agent = PPO(DISCRETE, gamma=0.5, clip_range=0.3, encoder_lr=1e-5)
    assert (agent.gamma, agent.clip_range, agent.encoder_lr) == (0.5, 0.3, 1e-5)
    assert (agent.hparams["gamma"], agent.hparams["clip_range"]) == (0.5, 0.3)
    assert "shared" not in agent.hparams
    data = RolloutDataModule("CartPole-v1", 2, 8, val_seed=3)
    assert (data.hparams["val_seed"], data.hparams["rollout_steps"]) == (3, 8)
    assert "shared" not in data.hparams


@pytest.mark.parametrize(
    ("make", "nearest"),
    [
        (lambda: PPO(DISCRETE, gama=0.5), "PPO has no argument 'gama'.*gamma"),
        (lambda: PPO(DISCRETE, lr_shedule="linear"), "lr_schedule"),
        (lambda: PPO(DISCRETE, max_grad_norm=1.0), "PPO has no argument 'max_grad_norm'"),
        (lambda: agents.BC(DISCRETE, gamma=0.5), "BC has no argument 'gamma'"),
        (lambda: RolloutDataModule("CartPole-v1", total_frame=9), "total_frames"),
        (lambda: PPO(DISCRETE, gamma="high"), "gamma must be a number, not 'high'"),
        (lambda: RolloutDataModule("CartPole-v1", val_seed=[]), "val_seed must be a whole number"),
    ],
)
def test_a_misspelt_or_wrong_one_is_refused(make, nearest):
    with pytest.raises(ConfigurationError, match=nearest):
        make()


class Own(PPO):
    def __init__(self, spec, strength: float = 1.0, **rest):
        super().__init__(spec, gamma=0.9, **rest)
        self.strength = strength


class Elsewhere(PPO):
    """Its keywords are somebody else's."""

    def __init__(self, spec, **network):
        super().__init__(spec, network=partial(ActorCritic, **network))


class Between(ReplayAgent):
    pass


def test_a_users_class_hands_on_likewise(tmp_path):
    assert list(signature_of(Own).parameters)[:3] == ["spec", "strength", "encoder"]
    assert "gamma" not in signature_of(Own).parameters
    agent = Own(DISCRETE, clip_range=0.4, strength=2.0)
    assert {"clip_range": 0.4, "strength": 2.0}.items() <= agent.hparams.items()
    with pytest.raises(ConfigurationError, match=r"Own has no argument 'clip_rang'.*clip_range"):
        Own(DISCRETE, clip_rang=0.4)
    data = RolloutDataModule("CartPole-v1", 2, 8, total_frames=16)
    agent = fit(Own(data.spec, strength=2.0, clip_range=0.4), data)
    agent.trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = Own.load_from_checkpoint(tmp_path / "x.ckpt")
    assert (again.strength, again.clip_range, again.gamma) == (2.0, 0.4, 0.9)


def test_keywords_that_go_elsewhere_stay_keywords():
    assert list(signature_of(Elsewhere).parameters) == ["spec", "network"]
    assert Elsewhere(DISCRETE, hidden=(3,)).policy.actor is not None
    assert signature_of(Between) == signature_of(ReplayAgent)
    assert "max_grad_norm" in signature_of(Between).parameters


def test_a_class_without_source_keeps_its_keywords():
    place = {"Agent": Agent}
    exec(
        "class A(Agent):\n  def __init__(self, spec, **k):\n    super().__init__(spec, **k)", place
    )
    assert list(signature_of(place["A"]).parameters) == ["spec", "k"]


def test_the_signature_of_an_instance_is_that_of_its_call():
    agent = PPO(DISCRETE)
    assert inspect.signature(agent) == inspect.signature(agent.__call__)


class Positions(PPO):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Mixin:
    def __init__(self, *args, extra=1, **kw):
        super().__init__(*args, **kw)
        self.extra = extra


class Mixed(Mixin, PPO):
    pass


class Deeper(Positions):
    def __init__(self, spec, *, deep=3, **kw):
        super().__init__(spec, **kw)
        self.deep = deep


class Takes(PPO):
    def __init__(self, spec, **kwargs):
        self_width = kwargs.pop("width", 64)
        super().__init__(spec, **kwargs)
        self.width = self_width


class Either(PPO):
    def __init__(self, spec, fixed=False, **kw):
        if fixed:
            super().__init__(spec, gamma=0.5, **kw)
        else:
            super().__init__(spec, **kw)


class Renames(PPO):
    """Its `network` is another thing than PPO's."""

    def __init__(self, spec, network="small", **kw):
        super().__init__(spec, network={"small": ActorCritic}[network], **kw)


@pytest.mark.parametrize(
    ("cls", "args", "kwargs"),
    [
        (Positions, (DISCRETE,), {"gamma": 0.7}),
        (Positions, (), {"spec": DISCRETE, "gamma": 0.7}),
        (Mixed, (DISCRETE,), {"extra": 3, "gamma": 0.7}),
        (Mixed, (), {"spec": DISCRETE, "gamma": 0.7}),
        (Deeper, (DISCRETE,), {"deep": 4, "gamma": 0.7}),
        (Takes, (DISCRETE,), {"width": 3, "gamma": 0.7}),
        (Either, (DISCRETE,), {"gamma": 0.7}),
        (Renames, (DISCRETE, "small"), {"gamma": 0.7}),
    ],
)
def test_constructors_of_all_kinds_are_called(cls, args, kwargs):
    assert cls(*args, **kwargs).gamma == 0.7
