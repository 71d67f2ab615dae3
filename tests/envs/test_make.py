"""Making environments: lean stepping changes nothing, mistakes are explained."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import make_env, make_vector_env


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) or (isinstance(a, np.ndarray) and a.dtype == object):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return np.array_equal(a, b)


@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("Taxi-v4", {}),
        ("TextMaze-v0", {"max_steps": 9}),
        ("Blackjack-v1", {}),
        ("Probe-v0", {"task": "policy", "observation": "dict", "action": "multi_discrete"}),
        ("Probe-v0", {"task": "policy", "observation": "tuple", "action": "multi_binary"}),
        ("Counter-v0", {"truncate": True}),
    ],
)
def test_lean_vector_env_equals_gymnasium_s(env, kwargs):
    lean = make_vector_env(env, 3, "sync", kwargs)
    plain = SyncVectorEnv(
        [lambda: gym.make(env, **kwargs)] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert equal(lean.reset(seed=5), plain.reset(seed=5))
    lean.action_space.seed(0)
    for _ in range(60):
        action = lean.action_space.sample()
        for ours, theirs in zip(lean.step(action), plain.step(action), strict=True):
            assert equal(ours, theirs)


def test_wrappers_by_name():
    env = make_env(
        "CartPole-v1",
        wrappers=[
            {"SelectObservation": {"indices": [0, 2]}},
            {"gymnasium.wrappers.FrameStackObservation": {"stack_size": 3}},
            {"TimeLimit": {"max_episode_steps": 2}},
        ],
    )
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 2)
    env.step(0)
    assert env.step(0)[3]


def test_atari_preprocessing():
    pytest.importorskip("ale_py")
    env = make_env(
        "ALE/Pong-v5",
        {"frameskip": 1},
        [{"AtariPreprocessing": {"frame_skip": 4}}, {"FrameStackObservation": {"stack_size": 4}}],
    )
    assert env.reset(seed=0)[0].shape == (4, 84, 84)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": "CartPoll-v1"}, "unknown environment 'CartPoll-v1'.*CartPole"),
        ({"env": "no_such_module:Foo-v0"}, "No module named 'no_such_module'"),
        ({"env_kwargs": {"gravity": 1}}, "CartPole-v1.*gravity"),
        ({"wrappers": ["NoSuchWrapper"]}, "unknown wrapper 'NoSuchWrapper'.*dotted path"),
        ({"wrappers": ["os.NoSuchWrapper"]}, "'os.NoSuchWrapper' cannot be imported"),
        ({"wrappers": [{"TimeLimit": {"steps": 3}}]}, "wrapper TimeLimit.*max_episode_steps"),
        ({"wrappers": [{"SelectObservation": {"indices": [9]}}]}, "between 0 and 3.*\\[9\\]"),
        ({"wrappers": [{"a": {}, "b": {}}]}, "must be a name or a mapping from one name"),
        ({"wrappers": [{"TimeLimit": 5}]}, "must be a name or a mapping from one name"),
        ({"wrappers": [{1: {}}]}, "must be a name or a mapping from one name"),
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"vectorization": "threads"}, "sync, async or native, not 'threads'"),
        ({"vectorization": "native", "wrappers": ["ClipReward"]}, "leave out wrappers"),
        ({"env": "Taxi-v4", "vectorization": "native"}, "no vectorised implementation"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_vector_env(**{"env": "CartPole-v1", "num_envs": 1, **arguments})


def test_async_reports_a_wrong_configuration_from_here():
    with pytest.raises(ConfigurationError, match="gravity"):
        make_vector_env("CartPole-v1", 2, "async", {"gravity": 1})


# --- wrappers that would evaluate another task ---------------------------------------------------


class OwnNormalization(gym.wrappers.NormalizeObservation):
    """A subclass is no better."""


class Normalized(gym.wrappers.NormalizeReward):
    """An environment that brings its wrapper along."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))


gym.register("Normalized-v0", entry_point=Normalized)


@pytest.mark.parametrize(
    ("env", "wrapper", "words"),
    [
        ("CartPole-v1", "NormalizeObservation", "NormalizeObservation: .*normalize: true"),
        ("CartPole-v1", {"NormalizeReward": {"gamma": 0.9}}, "NormalizeReward: .*normalize_reward"),
        ("CartPole-v1", "gymnasium.wrappers.NormalizeReward", "NormalizeReward: .*val/return"),
        ("CartPole-v1", "gymnasium.wrappers.vector.NormalizeReward", "normalize_reward: true"),
        ("CartPole-v1", f"{__name__}.OwnNormalization", "OwnNormalization: .*normalize: true"),
        ("Normalized-v0", "TransformReward", "Normalized: .*normalize_reward"),
    ],
)
def test_normalisation_by_running_statistics_is_refused(env, wrapper, words):
    wrapper = {"TransformReward": {"func": float}} if wrapper == "TransformReward" else wrapper
    with pytest.raises(ConfigurationError, match=words):
        make_env(env, wrappers=[wrapper])
    with pytest.raises(ConfigurationError, match=words):
        make_vector_env(env, 2, wrappers=[wrapper])


def test_normalisation_by_fixed_numbers_is_not_refused():
    make_env("Acrobot-v1", wrappers=[{"RescaleObservation": {"min_obs": 0.0, "max_obs": 1.0}}])
    make_env("CartPole-v1", wrappers=[{"ClipReward": {"max_reward": 1}}])


def test_wrappers_of_vector_environments_are_explained():
    with pytest.raises(ConfigurationError, match="wraps vector environments"):
        make_env("CartPole-v1", wrappers=["gymnasium.wrappers.vector.ClipReward"])


# --- what strangers' code raises -----------------------------------------------------------------


class OddError(Exception):
    """Nothing that Python or Gymnasium knows."""


class Unmakeable(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, when="make", kind=OddError):
        self.when, self.kind = when, kind
        self.complain("make")

    def complain(self, now):
        if now == self.when:
            raise self.kind("no licence\nfor this host")

    def reset(self, *, seed=None, options=None):
        self.complain("reset")
        return 0, {}

    def step(self, action):
        self.complain("step")
        return 0, 0.0, False, False, {}


gym.register("Unmakeable-v0", entry_point=Unmakeable)


@pytest.mark.parametrize("kind", [OddError, KeyError, OSError, AssertionError, ZeroDivisionError])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_whatever_a_constructor_raises_is_told_in_a_sentence(kind, vectorization):
    with pytest.raises(ConfigurationError, match=r"'Unmakeable-v0'.*no licence") as caught:
        make_vector_env("Unmakeable-v0", 1, vectorization, {"kind": kind})
    assert f"{kind.__name__}: " in str(caught.value)
    assert "test_make.py:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        (
            "broken_0",
            "1 / 0",
            r"importing broken_0 raised ZeroDivisionError: division by zero \(broken_0.py:1\)",
        ),
        ("broken_1", "import no_such_thing", "No module named 'no_such_thing'"),
        ("broken_2", "import sys; sys.exit('usage: me')", "SystemExit: usage: me"),
        ("broken_3", "def (", "SyntaxError"),
    ],
)
def test_whatever_importing_an_environment_raises_is_told(
    module, text, words, tmp_path, monkeypatch
):
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=words) as caught:
        make_env(f"{module}:Foo-v0")
    assert f"'{module}:Foo-v0'" in str(caught.value)


def test_whatever_a_wrapper_raises_is_told():
    with pytest.raises(ConfigurationError, match=r"wrapper \S*Unwrappable with {}: OddError: no"):
        make_env("CartPole-v1", wrappers=[f"{__name__}.Unwrappable"])


class Unwrappable(gym.Wrapper):
    def __init__(self, env):
        raise OddError("no")


class Silent(gym.vector.VectorEnv):
    """Says nothing of when it restarts, or something that is no use."""

    def __init__(self, num_envs=1, mode=None):
        self.num_envs = num_envs
        self.single_observation_space = self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = self.action_space = gym.spaces.MultiDiscrete([2] * num_envs)
        self.metadata = {} if mode is None else {"autoreset_mode": mode}


gym.register("Silent-v0", vector_entry_point=Silent)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [None, AutoresetMode.DISABLED, "NextStep"])
def test_a_native_environment_must_say_when_it_restarts(mode):
    with pytest.raises(ConfigurationError, match=r"'Silent-v0' says .*autoreset_mode.*sync"):
        make_vector_env("Silent-v0", 2, "native", {"mode": mode})


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_what_a_native_environment_says_stands(mode):
    env = make_vector_env("Silent-v0", 2, "native", {"mode": mode})
    assert env.metadata["autoreset_mode"] == mode


def test_gymnasium_s_own_native_environments_say_it():
    env = make_vector_env("CartPole-v1", 2, "native")
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("name", ["TextMaze-v0", "rl_lightning:BitFlip-v0"])
def test_importing_the_package_registers_its_environments(name):
    code = f"import gymnasium, rl_lightning; print(gymnasium.make({name!r}).spec.id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name.rpartition(":")[2]
