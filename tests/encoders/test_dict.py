"""DictEncoder: every entry reaches its encoder, in every half of the contract."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import OBSERVATIONS, batch

from rl_lightning import PPO, DictEncoder, ImpalaCNN, MLPEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data import Collector
from rl_lightning.encoders import Encoder
from rl_lightning.envs import make_vector_env

s = gym.spaces
ONE, THREE = s.Box(-1.0, 1.0, (1,), np.float32), s.Discrete(3)
TWO = s.Dict({"number": ONE, "kind": THREE})


def build(space=TWO, **kwargs):
    return DictEncoder(EnvSpec(space, s.Discrete(2)), **kwargs)


class Loud(Encoder):
    """Notes what it is asked."""

    def __init__(self, spec, factor=1.0):
        super().__init__()
        self.out_dim, self.factor, self.calls = 1, factor, []

    def preprocess(self, obs):
        return torch.as_tensor(obs, dtype=torch.float32).reshape(len(obs), -1)[:, :1] * self.factor

    def forward(self, x):
        return x

    def observe(self, obs):
        self.calls.append(np.asarray(obs).tolist())

    def synchronize(self):
        self.calls.append("synchronize")

    def metrics(self):
        return {f"loud/{self.factor:.0f}": self.factor}

    def collection_state(self):
        return {"factor": self.factor}

    def load_collection_state(self, state):
        self.calls.append(state)


def test_features_are_the_entries_features_side_by_side():
    encoder = build()
    x = encoder.preprocess({"number": np.array([[0.5], [-1.0]]), "kind": np.array([2, 0])})
    # Gymnasium sorts a Dict's entries by name: kind, then number.
    assert encoder(x).tolist() == [[0, 0, 1, 0.5], [1, 0, 0, -1]]
    assert encoder.out_dim == 4


def test_entries_of_a_tuple_are_named_by_their_place():
    encoder = build(s.Tuple([ONE, THREE]), encoders={"0": partial(Loud, factor=10.0)})
    x = encoder.preprocess((np.array([[0.5], [-1.0]]), np.array([2, 0])))
    assert encoder(x).tolist() == [[5, 0, 0, 1], [-10, 1, 0, 0]]


def test_encoders_default_and_ignore():
    obs = {"number": np.array([[0.5]]), "kind": np.array([2])}
    named = build(encoders={"number": partial(Loud, factor=2.0)})
    assert named(named.preprocess(obs)).tolist() == [[0, 0, 1, 1.0]]
    default = build(default=partial(Loud, factor=3.0))
    assert default(default.preprocess(obs)).tolist() == [[6, 1.5]]
    ignoring = build(ignore=["kind"])
    assert ignoring(ignoring.preprocess(obs)).tolist() == [[0.5]]
    assert ignoring.out_dim == 1


@pytest.mark.parametrize("argument", ["encoders", "ignore"])
def test_unknown_entries_are_refused(argument):
    value = {"encoders": {"colour": MLPEncoder}, "ignore": ["colour"]}[argument]
    with pytest.raises(ValueError, match=r"no entry 'colour'.* it has 'kind', 'number'"):
        build(**{argument: value})


@pytest.mark.parametrize("odd", [s.Text(3), s.Sequence(ONE), s.Graph(ONE, None), s.OneOf([ONE])])
def test_an_entry_that_cannot_be_read_is_named(odd):
    space = s.Dict(fine=ONE, odd=odd)
    with pytest.raises(ConfigurationError, match=r"the entry 'odd' cannot .* ignore: \[odd\]"):
        build(space)
    assert build(space, ignore=["odd"]).names == ["fine"]
    message = r"the entry '0' cannot .*the entry 'odd' cannot .*ignore: \[odd\]"
    with pytest.raises(ConfigurationError, match=message):
        build(s.Tuple([space]), default=DictEncoder)


def test_something_must_be_left():
    with pytest.raises(ValueError, match=r"every entry .* is ignored"):
        build(ignore=["kind", "number"])


@pytest.mark.parametrize("space", [ONE, THREE, s.Text(3)])
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="needs a Dict or Tuple"):
        build(space)


@pytest.mark.parametrize("names", [("type", "keys"), ("items", "a.b"), ("train", "forward")])
def test_any_name_of_an_entry_will_do(names):
    """`nn.ModuleDict` would refuse each of these."""
    encoder = build(s.Dict(dict.fromkeys(names, ONE)), default=partial(MLPEncoder, hidden=(2,)))
    x = encoder.preprocess({name: np.ones((1, 1)) for name in names})
    assert encoder(x).shape == (1, 4)
    assert len(list(encoder.parameters())) == 4


def test_everything_else_of_the_contract_reaches_every_part():
    encoder = build(
        encoders={"number": partial(Loud, factor=2.0), "kind": partial(Loud, factor=3.0)}
    )
    parts = dict(encoder._named())
    encoder.observe({"number": np.array([[0.5]]), "kind": np.array([2])})
    encoder.synchronize()
    assert parts["number"].calls == [[[0.5]], "synchronize"]
    assert parts["kind"].calls == [[2], "synchronize"]
    assert encoder.metrics() == {"loud/2": 2.0, "loud/3": 3.0}
    state = encoder.collection_state()
    assert state == {"number": {"factor": 2.0}, "kind": {"factor": 3.0}}
    encoder.load_collection_state(state)
    assert parts["number"].calls[-1] == {"factor": 2.0}
    encoder.load_collection_state({"kind": {"factor": 4.0}})  # one entry is new
    assert parts["kind"].calls[-1] == {"factor": 4.0}
    assert parts["number"].calls[-1] == {}


def test_a_metric_of_several_entries_is_told_by_entry():
    class Plain(Loud):
        def metrics(self):
            return {"plain": self.factor, "deep/er/name": 1.0, f"own/{self.factor:.0f}": 5.0}

    space = s.Dict({"inner": TWO, "outer": ONE})
    inner = partial(DictEncoder, default=partial(Plain, factor=2.0))
    encoder = build(space, encoders={"inner": inner, "outer": partial(Plain, factor=3.0)})
    assert encoder.metrics() == {
        "kind/plain": 2.0,
        "number/plain": 2.0,
        "plain": 3.0,
        "deep/kind/er/name": 1.0,
        "deep/number/er/name": 1.0,
        "deep/er/name": 1.0,
        "own/kind/2": 5.0,
        "own/number/2": 5.0,
        "own/3": 5.0,
    }


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_rollouts_store_every_entry(kind):
    cnn = partial(ImpalaCNN, features=4, channels=(4,))
    encoders = {"image": cnn} if kind == "dict" else {}
    spec = EnvSpec(OBSERVATIONS[kind], s.Discrete(2))
    agent = PPO(spec, partial(DictEncoder, encoders=encoders))
    env = make_vector_env("Probe-v0", 3, env_kwargs={"task": "policy", "observation": kind})
    rollout = Collector(env, 4, seed=0).collect(agent)
    stored = rollout.steps["obs"]
    assert set(stored.keys()) == ({"image", "vector"} if kind == "dict" else {"0", "1"})
    assert all(entry.shape[:2] == (4, 3) for entry in stored.values())
    # What is stored of a step is what the observation preprocesses to: every other step is dark.
    dark = agent.preprocess(batch(kind, 2, 2, 2))
    for name, entry in stored.items():
        assert torch.equal(entry[1], dark[name])


def test_parts_can_be_nested():
    space = s.Dict({"inner": TWO, "outer": ONE})
    encoder = build(space, encoders={"inner": DictEncoder})
    obs = {
        "inner": {"number": np.array([[0.5]]), "kind": np.array([2])},
        "outer": np.array([[-1.0]]),
    }
    assert encoder(encoder.preprocess(obs)).tolist() == [[0, 0, 1, 0.5, -1]]
