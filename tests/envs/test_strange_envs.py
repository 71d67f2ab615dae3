"""What environments hand over that they should not: shapes, types, arrays used again, infos."""

import copy
import sys

import gymnasium as gym
import numpy as np
import pytest
import strange

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.envs import make_vector_env
from rl_lightning.envs.infos import add_info

S = gym.spaces
ONE = S.Box(-9, 9, (3,), np.float32)
PROCESSES = ["sync", pytest.param("async", marks=pytest.mark.distributed)]


def play(steps=6, vectorization="sync", env="Strange-v0", num_envs=2, **kwargs):
    """What a vector env returned at each step, copied; it is closed whatever happens."""
    name = env if vectorization == "sync" else f"strange:{env}"
    made = make_vector_env(name, num_envs, vectorization, kwargs)
    try:
        seen = [copy.deepcopy(made.reset(seed=0))]
        action = np.zeros(num_envs, np.int64)
        return seen + [copy.deepcopy(made.step(action)) for _ in range(steps)]
    finally:
        made.close(**({} if vectorization == "sync" else {"terminate": True}))


def refused(match, **kwargs):
    with pytest.raises(RunError, match=match) as caught:
        play(**kwargs)
    assert "'Strange-v0'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


# --- shapes and types -----------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", PROCESSES)
def test_an_observation_of_one_number_is_not_broadcast(vectorization):
    refused(
        r"observation is an array of shape \[1\], but its space declares the shape \[3\]",
        vectorization=vectorization,
        obs=lambda e: np.zeros(1, np.float32),
    )


@pytest.mark.parametrize(
    ("space", "obs", "match"),
    [
        (ONE, np.zeros((3, 3)), r"observation is an array of shape \[3, 3\]"),
        (ONE, None, "observation is None"),
        (ONE, [0.0, None, 0.0], "dtype object.*float32"),
        (ONE, [[0.0], [0.0, 1.0]], "observation is no array of numbers"),
        (S.Dict(a=ONE), {"a": np.zeros(1)}, r"observation\['a'\] is an array of shape \[1\]"),
        (S.Dict(a=ONE, b=ONE), {"a": np.zeros(3)}, r"\['b'\] is missing.*keys \['a'\]"),
        (S.Dict(a=S.Dict(b=ONE)), {"a": {}}, r"observation\['a'\]\['b'\] is missing"),
        (S.Dict(a=ONE), np.zeros(3), r"observation\['a'\] is missing: observation is ndarray"),
        (S.Tuple((ONE, ONE)), (np.zeros(3),), r"observation\[1\] is missing"),
        (S.Text(5), 7, "observation must be text, not int"),
        (S.Box(0, 255, (2,), np.uint8), np.array([0.5, 1]), "dtype float64.*uint8"),
        (S.Box(0, 255, (2,), np.uint8), np.array([256, 1]), "dtype int64.*uint8"),
        (S.Discrete(3), "a", "observation is of dtype <U1"),
    ],
)
def test_an_observation_that_is_none_of_the_space_s_is_named(space, obs, match):
    refused(match, space=space, obs=lambda e: obs)


@pytest.mark.parametrize("part", ["final", "obs"])
def test_a_wrong_final_or_reset_observation_is_named_too(part):
    wrong = np.zeros(1, np.float32)
    fits = np.zeros(3, np.float32)
    if part == "final":
        refused(r"at step 4, .*shape \[1\]", obs=lambda e: fits, final=lambda e: wrong)
    else:
        refused(r"at step 4, ", obs=lambda e: wrong if e.steps and not e.t else fits)


@pytest.mark.parametrize(
    ("space", "obs", "kept"),
    [
        (ONE, np.arange(3), [0, 1, 2]),
        (ONE, [0.5, 1, 2], [0.5, 1, 2]),
        (ONE, np.arange(3.0)[None], [0, 1, 2]),  # an axis more, but no number less
        (S.Box(0, 255, (2,), np.uint8), np.array([255, 1]), [255, 1]),
        (S.Box(0, 255, (2,), np.uint8), np.array([255.0, 1.0]), [255, 1]),
        (S.Discrete(3), np.array([2]), 2),
        (S.Discrete(3), np.int32(2), 2),
    ],
)
def test_an_observation_in_another_form_is_taken(space, obs, kept):
    seen = play(space=space, obs=lambda e: obs)
    assert all(step[0][1].tolist() == kept for step in seen)
    assert seen[4][-1]["final_obs"][0].tolist() == kept


@pytest.mark.parametrize("reward", [np.array([2.5]), np.array(2.5), np.float32(2.5), [2.5]])
def test_a_reward_in_an_array_is_the_number(reward):
    assert play(1, reward=reward)[1][1].tolist() == [2.5, 2.5]


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        (None, "the reward must be one number, not None"),
        ("good", "the reward must be one number, not 'good'"),
        ("1.5", "not '1.5'"),
        (np.zeros(2), r"not an array of shape \[2\]"),
        ({"a": 1}, "not dict"),
        (10**400, "beyond every float"),
    ],
)
def test_a_reward_that_is_no_number_is_named(reward, match):
    refused(rf"at step 1, in environment 0 of 2.*{match}", reward=reward)


@pytest.mark.distributed
def test_a_missing_key_and_a_reward_of_text_are_named_from_another_process():
    space = S.Dict(a=ONE)
    refused(r"\['a'\] is missing", vectorization="async", space=space, obs=lambda e: {})
    refused(r"at step 1.*not 'good'", vectorization="async", reward="good")


class Old(strange.Strange):
    """Steps as before Gymnasium 0.26."""

    def step(self, action):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, info


class Flags(strange.Strange):
    """Its flags are what `reward` makes of them."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, 1.0, terminated, reward[truncated], info


@pytest.fixture
def registered():
    for cls in (Old, Flags):
        gym.register(f"{cls.__name__}-v0", entry_point=cls)
    yield
    for cls in (Old, Flags):
        del gym.registry[f"{cls.__name__}-v0"]


def test_four_values_instead_of_five_are_named(registered):
    with pytest.raises(RunError, match=r"step must return observation, reward, .*not 4"):
        play(env="Old-v0")


def test_flags_may_be_arrays_of_one_but_nothing_else(registered):
    seen = play(4, env="Flags-v0", reward=[np.array([False]), np.array([True])])
    assert [step[3].tolist() for step in seen[1:]] == [[False] * 2] * 3 + [[True] * 2]
    with pytest.raises(RunError, match=r"step 4.*truncated must be True or False, not an array"):
        play(4, env="Flags-v0", reward=[False, np.zeros(2, bool)])


# --- arrays that are used again ------------------------------------------------------------------


def numbers(obs):
    """The first number of every leaf of an observation."""
    if isinstance(obs, dict):
        return {x for part in obs.values() for x in numbers(part)}
    if isinstance(obs, tuple) and not isinstance(obs[0], str):
        return {x for part in obs for x in numbers(part)}
    return {float(np.asarray(obs, float).flat[0])}


REUSING = [("sync", kind) for kind in ("box", "dict", "tuple", "text")]
# With and without shared memory.
REUSING += [pytest.param("async", k, marks=pytest.mark.distributed) for k in ("dict", "text")]


@pytest.mark.parametrize(("vectorization", "kind"), REUSING)
def test_a_final_observation_outlives_the_reset(vectorization, kind):
    seen = play(7, vectorization, "Reusing-v0", kind=kind)
    for n, (obs, *_, info) in enumerate(seen):
        assert numbers(obs) == {n % 3}
        if n and n % 3 == 0:
            assert [numbers(final) for final in info["final_obs"]] == [{3.0}, {3.0}]


@pytest.mark.parametrize("vectorization", PROCESSES)
def test_a_final_mask_outlives_the_reset(vectorization):
    *_, info = play(3, vectorization, "Reusing-v0", mask=True)[-1]
    assert [list(mask) for mask in info["final_info"]["action_mask"]] == [[0, 1], [0, 1]]
    assert [list(mask) for mask in info["action_mask"]] == [[1, 1], [1, 1]]


SHARED = np.zeros(3, np.float32)


@pytest.mark.parametrize("nested", [False, True])
def test_environments_may_share_one_array(nested):
    """Each one's numbers are copied before the next one writes its own."""

    def obs(env):
        SHARED[:] = env.observation_space.low if not nested else env.observation_space["a"].low
        SHARED[:] = id(env) % 1000
        return {"a": SHARED} if nested else SHARED

    space = S.Box(-9, 1e9, (3,), np.float32)
    made = make_vector_env(
        "Strange-v0", 2, "sync", {"space": S.Dict(a=space) if nested else space, "obs": obs}
    )
    seen, _ = made.reset()
    rows = seen["a"] if nested else seen
    assert rows[:, 0].tolist() == [id(env.unwrapped) % 1000 for env in made.envs]


# --- infos ---------------------------------------------------------------------------------------


def infos(*values, **kwargs):
    """Info of a vector env whose environments say one value each."""
    turn = iter(values * 9)
    return play(0, num_envs=len(values), info=lambda e: {"x": next(turn)}, **kwargs)[0][1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), 1.0),
        (1.0, np.zeros(2)),
        (1, None),
        (None, 1),
        (1, "a"),
        ("a", 1.5),
        (True, "no"),
        (1, 1.5),  # an array of integers would make it 1
        (1, 10**30),
        ({"a": 1}, 3),
        (3, {"a": 1}),
        ({"a": 1}, {"a": np.zeros(2)}),
        ([1], [1, 2]),
        (10**30, 1),
    ],
)
def test_infos_that_differ_are_kept_as_they_are(one, other):
    info = infos(one, other)
    assert info["_x"].tolist() == [True, True]
    if isinstance(info["x"], dict):
        assert info["x"]["a"][0] == 1
        assert info["x"]["a"][1].shape == (2,)
        return
    for got, given in zip(info["x"], (one, other), strict=True):
        assert np.array_equal(got, given)


def test_a_key_that_is_called_as_the_flags_of_another_is_left_out():
    infos = {}
    add_info(infos, {"episode": {"r": 1.0}, "_episode": 5, "_own": 1}, 0, 2)
    add_info(infos, {"_episode": 5, "episode": {"r": 2.0}, "own": 3}, 1, 2)
    assert infos["episode"]["r"].tolist() == [1.0, 2.0]
    assert infos["_episode"].tolist() == [True, True]
    assert (infos["own"][1], infos["_own"].tolist()) == (3, [False, True])


def test_infos_that_are_alike_are_arrays_as_in_gymnasium():
    assert infos(1, 2)["x"].dtype == np.int64
    assert infos(1.5, 2.5)["x"].dtype == np.float64
    assert infos(np.ones(2), np.zeros(2))["x"].shape == (2, 2)
    assert infos({"a": 1}, {"a": 2})["x"]["a"].tolist() == [1, 2]


@pytest.mark.distributed
def test_infos_and_rewards_of_other_processes_need_not_be_alike():
    info, reward = (lambda e: {"x": np.zeros(e.np_random_seed + 1)}), np.array([2.5])
    (_, reset), (_, rewards, *_) = play(1, "async", info=info, reward=reward)
    assert [len(x) for x in reset["x"]] == [1, 2]
    assert rewards.tolist() == [2.5, 2.5]


def test_an_info_that_is_no_dict_is_named():
    refused("at reset.*info must be a dict, not list", info=lambda e: [1])
    refused("at step 4.*info must be a dict", info=lambda e: "over" if e.t == 4 else {})


# --- ending the program --------------------------------------------------------------------------


def leave(env):
    if env.steps > 2:
        sys.exit(0)
    return 1.0


@pytest.mark.parametrize("vectorization", PROCESSES)
def test_an_environment_cannot_end_the_program(vectorization):
    refused(r"at step 3.*SystemExit: 0", vectorization=vectorization, reward=leave)


def exits(env):
    sys.exit()


def test_nor_while_it_is_reset_or_made():
    refused(r"at reset.*SystemExit: None", obs=exits)
    gym.register("Exits-v0", entry_point=exits, kwargs={"env": None})
    for vectorization in ("sync", "async"):
        with pytest.raises(ConfigurationError, match=r"'Exits-v0' raised in make.*SystemExit"):
            make_vector_env("Exits-v0", 1, vectorization)
    del gym.registry["Exits-v0"]


def test_what_an_environment_raises_itself_is_left_alone():
    def stop(env):
        raise KeyboardInterrupt

    def fail(env):
        raise ZeroDivisionError("of its own")

    with pytest.raises(KeyboardInterrupt):
        play(reward=stop)
    with pytest.raises(ZeroDivisionError, match="of its own"):
        play(reward=fail)


# --- the wrapper for who means infinity ----------------------------------------------------------


def test_clip_observation_bounds_floats_wherever_they_are():
    space = S.Dict(a=ONE, n=S.Discrete(5), t=S.Tuple((S.Box(-1, 1e9, (1,), np.float64),)))
    obs = {"a": np.array([np.inf, -np.inf, 1], np.float32), "n": 4, "t": (np.array([7.0]),)}
    wrapper = {"ClipObservation": {"low": -5, "high": 5}}
    env = make_vector_env(
        "Strange-v0", 1, "sync", {"space": space, "obs": lambda e: obs}, [wrapper]
    )
    seen, _ = env.reset()
    assert seen["a"].tolist() == [[5, -5, 1]]
    assert seen["a"].dtype == np.float32
    assert seen["t"][0].tolist() == [[5]]
    assert seen["n"].tolist() == [4]
    inside = env.single_observation_space
    assert inside["a"] == S.Box(-5, 5, (3,), np.float32)
    assert inside["t"][0] == S.Box(-1, 5, (1,), np.float64)


@pytest.mark.parametrize(("nan", "kept"), [(None, np.nan), (0.0, 0.0), (5.0, 5.0)])
def test_clip_observation_says_what_nan_becomes(nan, kept):
    wrapper = {"ClipObservation": {"low": -5, "high": 5, "nan": nan}}
    obs = np.array([np.nan, 9, 0], np.float32)
    env = make_vector_env("Strange-v0", 1, "sync", {"obs": lambda e: obs}, [wrapper])
    np.testing.assert_array_equal(env.reset()[0], [[kept, 5, 0]])


@pytest.mark.parametrize(
    ("arguments", "space", "match"),
    [
        ({"low": 1, "high": 1}, ONE, "must ascend and be finite, not 1 and 1"),
        ({"low": 0, "high": np.inf}, ONE, "must ascend and be finite, not 0 and inf"),
        ({"low": 0, "high": 1, "nan": 2}, ONE, "nan must lie between 0 and 1, not 2"),
        ({"low": 0, "high": 1}, S.Discrete(3), "no floating-point numbers in Discrete"),
    ],
)
def test_clip_observation_refuses(arguments, space, match):
    with pytest.raises(ConfigurationError, match=match):
        make_vector_env("Strange-v0", 1, "sync", {"space": space}, [{"ClipObservation": arguments}])
