"""The state of environments in a checkpoint: what goes on as before, and what is never run."""

import collections
import json
import os
import pickle
import random
from enum import Enum
from typing import ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.state import StateError, Vocabulary, load_state, save_state

CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
TOY_TEXT = ("FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", "Blackjack-v1")
OURS = ("TextMaze-v0", "BitFlip-v0")
GRIDS = ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-Empty-Random-5x5-v0", "BabyAI-GoToRedBallNoDists-v0")
MINATAR = ("MinAtar/Breakout-v1", "MinAtar/Seaquest-v1")
NATIVE = ("CartPole-v1",)


def actions_for(env, count):
    env.action_space.seed(1)
    return [env.action_space.sample() for _ in range(count)]


def play(env, actions):
    """All that is seen, as text; floating-point numbers to the last bit."""
    seen = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(repr([_plain(obs), reward.tolist(), terminated.tolist(), truncated.tolist()]))
    return seen


def _plain(x):
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    return [_plain(v) for v in x] if isinstance(x, tuple) else np.asarray(x).tolist()


def goes_on(name, vectorization):
    """A vector env, and another one that is given its state, play the same."""
    first = make_vector_env(name, 2, vectorization)
    first.reset(seed=3)
    actions = actions_for(first, 60)
    play(first, actions[:20])
    copies = Snapshots(spare(name, vectorization))
    assert copies.reason is None
    state = copies.take(first)
    second = make_vector_env(name, 2, vectorization)
    if vectorization != "native":  # whose first step after this would be a reset
        second.reset(seed=4)
    Snapshots(spare(name, vectorization)).put(second, state)
    same = play(first, actions[20:]) == play(second, actions[20:])
    first.close()
    second.close()
    return same


def spare(name, vectorization):
    return make_vector_env(name, 1, "native") if vectorization == "native" else make_env(name)


@pytest.mark.parametrize("name", [*CLASSIC, *TOY_TEXT, *OURS, *GRIDS, *MINATAR])
def test_a_copied_environment_goes_on_as_the_original(name):
    assert goes_on(name, "sync")


@pytest.mark.parametrize("name", NATIVE)
def test_a_copied_native_vector_env_goes_on_as_the_original(name):
    assert goes_on(name, "native")


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Taxi-v4", "TextMaze-v0", "MiniGrid-DoorKey-5x5-v0"]
)
def test_copied_environments_in_processes_go_on_as_the_originals(name):
    assert goes_on(name, "async")


@pytest.mark.parametrize(
    ("name", "what"), [("HalfCheetah-v5", "MjModel"), ("LunarLander-v3", "SwigPyObject")]
)
def test_what_cannot_be_copied_is_named(name, what):
    reason = Snapshots(make_env(name)).reason
    assert reason is not None
    assert what in reason
    assert reason.startswith("env.")


def test_a_constant_table_is_named_and_not_written_down():
    env = make_env("Taxi-v4")
    known = Vocabulary(make_env("Taxi-v4")).constants
    assert len(save_state(env, known)) < 0.1 * len(save_state(env))


# --- kinds of things that a state may consist of ---------------------------------------------


class Colour(Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: list


class Slotted:
    __slots__ = ("__hidden", "value")

    def __init__(self, value):
        self.value, self.__hidden = value, [value]

    def both(self):
        return self.value, self.__hidden


class Bag(dict):
    pass


class Key:
    def __init__(self, name):
        self.name = name

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        return self.name == other.name


class OwnSetState:
    ran: ClassVar[list] = []

    def __setstate__(self, state):
        self.ran.append(state)


def double(x):
    return 2 * x


class Everything(gym.Env):
    """Holds one of each kind of thing; its observation is a digest of all of them."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shared = [1, 2.5, "ü\ud800", None, True, 2**200, float("nan"), -0.0]
        self.alias = self.shared
        self.loop = [self]
        self.table = {("a", 1): self.shared, 3: Colour.RED, None: b"\x00\xff"}
        self.point = Point(1, [2])
        self.slotted = Slotted(4)
        self.bag = Bag(a=[1])
        self.bag.owner = self.slotted
        self.keys = {Key("k"): 1, Key("l"): [2]}
        self.sets = ({1, 2}, frozenset({3}), {Key("m")})
        self.queue = collections.deque([1, 2], maxlen=3)
        self.counts = collections.Counter("aab")
        self.lists = collections.defaultdict(list, a=[1])
        self.ordered = collections.OrderedDict(b=1, a=2)
        self.arrays = [
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.array([[1], "x"], object),
            np.array("2026-11-25", "datetime64[D]"),
            np.float16(1.5),
            np.zeros((0, 3)),
        ]
        self.locked = np.arange(3)
        self.locked.flags.writeable = False
        self.python, self.legacy = random.Random(3), np.random.RandomState(4)
        self.philox = np.random.Generator(np.random.Philox(5))
        self.function, self.method, self.kind = double, self.digest, Colour
        self.others = [range(3), slice(1, None), 1 + 2j, bytearray(b"x"), np.dtype("<i4")]
        return self.digest(), {}

    def digest(self):
        return np.zeros(1, np.float32)

    def step(self, action):
        self.shared.append(len(self.shared))
        self.bag["a"].append(self.np_random.random())
        self.slotted.value += 1
        self.queue.append(self.python.random())
        self.arrays[0] += self.legacy.rand() + self.philox.random()
        return self.digest(), 0.0, False, False, {}


def copy_of_everything():
    env, other = Everything(), Everything()
    env.reset(seed=1)
    env.step(0)
    state = save_state(env)
    load_state(other, state, Vocabulary(Everything()))
    return env, other, state


def test_every_kind_of_plain_thing_comes_back():
    env, other, state = copy_of_everything()
    assert save_state(other) == state
    env.step(0)
    other.step(0)
    assert save_state(other) == save_state(env)
    assert other.alias is other.shared
    assert other.loop[0] is other
    assert other.method.__self__ is other
    assert other.bag.owner is other.slotted
    assert other.keys[Key("l")] == [2]
    assert Key("m") in other.sets[2]
    assert other.arrays[0].flags.f_contiguous
    assert not other.locked.flags.writeable
    assert other.slotted.both() == (6, [4])
    assert [type(a).__name__ for a in other.arrays] == ["ndarray"] * 3 + ["float16", "ndarray"]
    assert str(other.shared[7]) == "-0.0"


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda: (i for i in ()), "generator"),
        (lambda: lambda: 0, "no name leads to"),
        (lambda: open(os.devnull), "TextIOWrapper"),  # noqa: SIM115
        (lambda: [(whole := np.zeros(4))[:3], whole[1:]], "shares its memory"),
        (lambda: torch.nn.Linear(1, 1).weight, "Parameter"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_place(thing, words):
    env = Everything()
    env.reset()
    env.inner = Key(None)
    env.inner.odd = thing()
    with pytest.raises(StateError, match=rf"env\.inner\.odd.*{words}"):
        save_state(env)


# --- what a forged state cannot do -----------------------------------------------------------


def forged(state, **nodes):
    """The state with an attribute of the environment replaced by a node of the forger's."""
    tree = json.loads(state)
    for name, node in nodes.items():
        tree["nodes"].append(node)
        place = next(pair for pair in tree["nodes"][0][3] if pair[0] == name)
        place[1] = [len(tree["nodes"]) - 1]
    return json.dumps(tree).encode()


HERE = Everything.__module__
FORGERIES = {
    "a class of a package that is imported": ["object", "subprocess", "Popen", [], None],
    "a class of gymnasium that is not part of it": [
        *("object", "gymnasium.vector.utils.misc", "CloudpickleWrapper", [["fn", 1]], None)
    ],
    "a dotted way to another module": ["name", "gymnasium.core", "np.save"],
    "a function that is imported": ["name", "os", "system"],
    "a function beside those that it has": ["name", HERE, "copy_of_everything"],
    "the type of types": ["object", "builtins", "type", [], None],
    "a class that has its own __setstate__": ["object", HERE, "OwnSetState", [["x", 1]], None],
    "a method of something else": ["method", HERE, "double", [0]],
    "an array of objects by its memory": ["array", "|O", [1], "AAAAAAAAAAA=", False, True],
    "an array that claims more than it has": ["array", "<f8", [10**9], "AAAA", False, True],
    "a node that is not there": ["list", [[10**6]]],
    "a node before the first": ["list", [[-1]]],
    "a tuple that holds itself": ["tuple", [["self"]]],
    "a member of an enumeration that is none": ["enum", HERE, "Colour", "__class__"],
    "a kind of random numbers that is none": ["Popen", [0], [0]],
    "a member that cannot be one": ["set", [["shared"]]],
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_state_is_refused_and_changes_nothing(what):
    env, _, state = copy_of_everything()
    tree = json.loads(state)
    indices = {"self": len(tree["nodes"]), "shared": dict(tree["nodes"][0][3])["shared"][0]}
    text = json.dumps(FORGERIES[what])
    for name, index in indices.items():
        text = text.replace(f'"{name}"', str(index))
    node = json.loads(text)
    before = save_state(env)
    with pytest.raises(StateError):
        load_state(env, forged(state, point=node), Vocabulary(Everything()))
    assert save_state(env) == before
    assert OwnSetState.ran == []


def test_a_pickle_is_not_read():
    class Evil:
        def __reduce__(self):
            return (OwnSetState.ran.append, (1,))

    copies = Snapshots(make_env("CartPole-v1"))
    env = make_vector_env("CartPole-v1", 1)
    data = torch.frombuffer(bytearray(pickle.dumps(Evil())), dtype=torch.uint8)
    with pytest.raises(StateError, match="earlier version"):
        copies.put(env, [data])
    assert OwnSetState.ran == []


def test_descriptions_of_environments_are_not_taken_from_a_state():
    env = make_env("CartPole-v1")
    env.reset(seed=1)
    tree = json.loads(save_state(env))
    assert ["same"] in tree["nodes"]
    assert "entry_point" not in json.dumps(tree)


def test_a_state_of_another_environment_is_refused():
    env = make_env("CartPole-v1")
    env.reset()
    other = make_env("Acrobot-v1")
    with pytest.raises(StateError, match="CartPoleEnv is no class that this environment"):
        load_state(other, save_state(env), Vocabulary(make_env("Acrobot-v1")))


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"format": "x"}', b"[" * 100_000])
def test_bytes_of_another_kind_are_refused(data):
    with pytest.raises(StateError, match="not written as"):
        load_state(Everything(), data, Vocabulary(Everything()))
