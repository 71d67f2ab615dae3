"""Describers: hand-worked sentences, texts that tell states apart, controllers that only read."""

import copy
import math
import pickle
import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.describe import Describe, register_describer, wrapper
from rl_lightning.envs.describe import classic_control as classic
from rl_lightning.envs.describe.classic_control import nearest, outwards
from rl_lightning.envs.wrappers import SelectObservation


def shout(obs, env) -> str:
    """A describer of one's own."""
    return f"{env.unwrapped.spec.id} shows {len(obs)} numbers!"


BOX = gym.spaces.Box(-10.0, 10.0, (4,), np.float32)

# --- the wrapper


def test_a_describer_may_be_looked_up_named_or_given():
    known = Describe(gym.make("CartPole-v1"))
    assert known.describer is classic.describe_cart_pole
    path = "rl_lightning.envs.describe.classic_control.describe_cart_pole"
    assert Describe(gym.make("CartPole-v1"), path).describer is classic.describe_cart_pole
    own = Describe(gym.make("CartPole-v1"), shout)
    assert own.reset()[0] == "CartPole-v1 shows 4 numbers!"
    assert own.step(0)[0] == "CartPole-v1 shows 4 numbers!"


def test_the_longest_registered_start_wins(monkeypatch):
    monkeypatch.setattr(wrapper, "_DESCRIBERS", dict(wrapper._DESCRIBERS))
    register_describer("MountainCar-", lambda obs, env: "one")
    assert Describe(gym.make("MountainCar-v0")).reset()[0] == "one"
    assert Describe(gym.make("MountainCarContinuous-v0")).reset()[0] != "one"
    register_describer("MountainCar-", lambda obs, env: "two")
    assert Describe(gym.make("MountainCar-v0")).reset()[0] == "two"


@pytest.mark.parametrize(
    ("key", "describer", "error"), [("", shout, ValueError), ("Own-", 3, TypeError)]
)
def test_wrong_registrations(key, describer, error):
    with pytest.raises(error, match="expected"):
        register_describer(key, describer)
    assert key not in wrapper._DESCRIBERS


def test_an_unknown_environment_is_told_what_is_known_and_what_to_do():
    env = gym.make("CartPole-v1")
    env.spec.id = "Mystery-v0"
    with pytest.raises(ValueError, match=r"Mystery-v0.*Acrobot-.*Taxi-.*describe\(obs, env\)"):
        Describe(env)
    with pytest.raises(ValueError, match="no describer for <"):
        Describe(gym.Env())


@pytest.mark.parametrize("path", ["describe", "no.such.module", "math.nothing", ".x", ""])
def test_a_path_that_leads_nowhere(path):
    with pytest.raises(ValueError, match=re.escape(f"describer={path!r} is not")):
        Describe(gym.make("CartPole-v1"), path)


@pytest.mark.parametrize("describer", [3, "math.pi"])
def test_a_describer_must_be_callable(describer):
    with pytest.raises(TypeError, match="expected a function"):
        Describe(gym.make("CartPole-v1"), describer)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b"bytes", TypeError, "returned bytes, expected str"),
        ("naïve", ValueError, "ï"),
        ("tab\t", ValueError, "printable"),
        ("x" * 21, ValueError, "21 characters, max_length is 20"),
    ],
)
def test_a_wrong_text_is_an_error(text, error, message):
    env = Describe(gym.make("CartPole-v1"), lambda obs, env: text, max_length=20)
    with pytest.raises(error, match=message):
        env.reset()


def test_max_length_bounds_the_space():
    env = Describe(gym.make("CartPole-v1"), lambda obs, env: "a\nb" * 100, max_length=300)
    assert env.observation_space.max_length == 300
    assert env.observation_space.contains(env.reset()[0])
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"max_length={wrong}"):
            Describe(gym.make("CartPole-v1"), max_length=wrong)


def test_it_can_be_copied_and_made_again_from_its_spec():
    env = Describe(gym.make("CartPole-v1"), shout)
    env.reset(seed=0)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert twin.step(0)[0] == "CartPole-v1 shows 4 numbers!"
    again = gym.make(env.spec)
    assert again.reset()[0] == "CartPole-v1 shows 4 numbers!"


def test_what_is_described_may_be_kept():
    env = gym.make("CartPole-v1")
    plain = gym.make("CartPole-v1")
    beside = Describe(env, shout, keep=True)
    obs, _ = beside.reset(seed=0)
    np.testing.assert_array_equal(obs["observation"], plain.reset(seed=0)[0])
    assert obs["text"] == "CartPole-v1 shows 4 numbers!"
    assert list(obs) == list(beside.observation_space.spaces) == ["observation", "text"]
    assert beside.observation_space.contains(beside.step(0)[0])
    again = gym.make(beside.spec)
    assert isinstance(again.observation_space, gym.spaces.Dict)


def test_entries_of_a_dict_stay_and_none_is_replaced():
    dict_env = gym.wrappers.TransformObservation(
        gym.make("CartPole-v1"),
        lambda obs: {"a": obs, "b": obs},
        gym.spaces.Dict({"a": BOX, "b": BOX}),
    )
    env = Describe(dict_env, lambda obs, env: str(sorted(obs)), keep=True)
    obs, _ = env.reset(seed=0)
    assert list(obs) == list(env.observation_space.spaces) == ["a", "b", "text"]
    assert obs["text"] == "['a', 'b']"
    with pytest.raises(ConfigurationError, match="has an entry 'text' already; set keep: false"):
        Describe(env, lambda obs, env: "", keep=True)


def test_final_observations_are_texts_too():
    make = partial(gym.make, "CartPole-v1")
    envs = SyncVectorEnv([lambda: Describe(make())] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    finals = []
    for _ in range(30):
        obs, _, terminated, _, info = envs.step(np.array([1, 1]))
        assert all(text.startswith("The cart") for text in obs)
        finals += [info["final_obs"][i] for i in np.flatnonzero(terminated)]
    assert len(finals) > 2
    assert all("leans 1" in text for text in finals)  # beyond 12 degrees
    envs.close()


# --- classic control


@pytest.mark.parametrize(
    ("value", "near", "out"),
    [(0.0, 0, 0), (1, 0, 10), (4.9, 0, 10), (5, 10, 10), (10, 10, 10), (11, 10, 20), (1e9, 50, 50)],
)
def test_rounding(value, near, out):
    assert (nearest(value, 10, 50), outwards(value, 10, 50)) == (near, out)
    assert (nearest(-value, 10, 50), outwards(-value, 10, 50)) == (-near, -out)


def test_no_number_is_no_text():
    for rounding in (nearest, outwards):
        with pytest.raises(ValueError, match="NaN"):
            rounding(math.nan, 10, 50)


def rad(degrees: float) -> float:
    return math.radians(degrees)


def angle(degrees: float) -> tuple[float, float]:
    return math.cos(rad(degrees)), math.sin(rad(degrees))


@pytest.mark.parametrize(
    ("describe", "obs", "text"),
    [
        (
            classic.describe_cart_pole,
            (0, 0, 0, 0),
            "The cart is at the center, standing still. The pole is upright, not turning.",
        ),
        (
            classic.describe_cart_pole,
            (-0.5, 1.0, rad(-1.2), rad(-51)),
            "The cart is 40 centimeters left of the center, moving right at 120 centimeters per "
            "second. The pole leans 1 degree left, falling left at 60 degrees per second.",
        ),
        (
            classic.describe_cart_pole,
            (2.5, -0.3, rad(7), 99.0),
            "The cart is 240 centimeters right of the center, moving left at 40 centimeters per "
            "second. The pole leans 7 degrees right, falling right at 200 degrees per second.",
        ),
        (
            classic.describe_mountain_car,
            (-math.pi / 6, 0),
            "The car is on the valley floor, standing still.",
        ),
        (
            classic.describe_mountain_car,
            (0.5, 0.001),
            "The car is 100 centimeters right of the valley floor, rolling right at 10 millimeters "
            "per step.",
        ),
        (
            classic.describe_acrobot,
            (*angle(0), *angle(0), 0, 0),
            "The upper link points straight down, not turning. The lower link is in line with it, "
            "not turning.",
        ),
        (
            classic.describe_acrobot,
            (*angle(41), *angle(-62), rad(-61), rad(1)),
            "The upper link points 40 degrees right of straight down, turning clockwise at 120 "
            "degrees per second. The lower link bends 60 degrees clockwise from it, turning "
            "counterclockwise at 120 degrees per second.",
        ),
        (
            classic.describe_acrobot,
            (*angle(-179), *angle(179), 0, 0),
            "The upper link points straight up, not turning. The lower link is folded back on it, "
            "not turning.",
        ),
        (
            classic.describe_pendulum,
            (*angle(31), rad(-100)),
            "The pole points 30 degrees left of straight up, turning clockwise at 120 degrees per "
            "second.",
        ),
        (classic.describe_pendulum, (*angle(2), 0), "The pole points straight up, not turning."),
        (
            classic.describe_pendulum,
            (*angle(-178), 0),
            "The pole points straight down, not turning.",
        ),
    ],
)
def test_hand_worked_quantities(describe, obs, text):
    assert describe(np.array(obs, dtype=np.float32), gym.Env()) == text


SWAPS = {"left": "right", "clockwise": "counterclockwise"}
SWAPS |= {b: a for a, b in SWAPS.items()}


@pytest.mark.parametrize(
    ("describe", "signs"),
    [
        (classic.describe_cart_pole, (-1, -1, -1, -1)),
        (classic.describe_acrobot, (1, -1, 1, -1, -1, -1)),
        (classic.describe_pendulum, (1, -1, -1)),
    ],
)
def test_mirrored_states_have_mirrored_texts(describe, signs):
    for obs in np.random.default_rng(0).normal(size=(50, len(signs))):
        text, mirrored = describe(obs, gym.Env()), describe(obs * signs, gym.Env())
        assert mirrored == re.sub(r"\w+", lambda word: SWAPS.get(word[0], word[0]), text)


def signed(text: str, pattern: str, positive: str) -> int:
    """The number of a phrase, negative unless its other group is `positive`; 0 if it is missing."""
    found = re.search(pattern, text)
    if not found:
        return 0
    number, direction = sorted(found.groups())
    return int(number) if direction == positive else -int(number)


def balance(text: str) -> int:
    return int(
        0.02 * signed(text, r"is (\d+) centimeters (\w+)", "right")
        + 0.04 * signed(text, r"moving (\w+) at (\d+)", "right")
        + 3.0 * signed(text, r"leans (\d+) degrees? (\w+)", "right")
        + 0.5 * signed(text, r"falling (\w+) at (\d+)", "right")
        > 0
    )


def rock(text: str) -> int:
    return 0 if "rolling left" in text else 2


def pump(text: str) -> int:
    upper, lower = (
        signed(link, r"turning (\w+) at (\d+)", "counterclockwise") for link in text.split(". ")
    )
    return 2 if lower >= upper else 0


def swing(text: str) -> np.ndarray:
    away = rad(180 if "down" in text else signed(text, r"points (\d+) degrees (\w+)", "left"))
    spin = rad(signed(text, r"turning (\w+) at (\d+)", "counterclockwise"))
    if abs(away) < 0.6 and abs(spin) < 3:
        torque = -10 * away - 3 * spin
    else:
        energy = spin**2 / 6 + 5 * (math.cos(away) - 1)
        torque = -2 * np.sign(energy * spin) if spin else 2
    return np.array([np.clip(torque, -2, 2)], dtype=np.float32)


@pytest.mark.parametrize(
    ("env_id", "policy", "least", "texts"),
    [
        ("CartPole-v1", balance, 500, 100),
        ("MountainCar-v0", rock, -130, 200),
        (
            "MountainCarContinuous-v0",
            lambda text: np.array([rock(text) - 1.0], np.float32),
            88,
            200,
        ),
        ("Acrobot-v1", pump, -130, 400),
        ("Pendulum-v1", swing, -330, 250),
    ],
)
def test_the_text_suffices_for_control_and_repeats(env_id, policy, least, texts):
    env = Describe(gym.make(env_id, disable_env_checker=True))
    seen = set()
    for seed in range(5):
        text, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            seen.add(text)
            text, reward, terminated, truncated, _ = env.step(policy(text))
            total, done = total + float(reward), terminated or truncated
        assert total >= least
    assert len(seen) <= texts


# --- toy text


@pytest.mark.parametrize(
    ("env_id", "states"),
    [("FrozenLake-v1", 16), ("FrozenLake8x8-v1", 64), ("CliffWalking-v1", 48), ("Taxi-v4", 500)],
)
def test_every_state_has_its_own_text(env_id, states):
    env = Describe(gym.make(env_id))
    assert len({env.observation(state) for state in range(states)}) == states


def test_blackjack():
    env = Describe(gym.make("Blackjack-v1"))
    hands = [(s, d, a) for s in range(4, 32) for d in range(1, 11) for a in range(2)]
    assert len(set(map(env.observation, hands))) == len(hands)
    assert env.observation((14, 10, 0)) == "You hold 14 without usable ace. The dealer shows 10."
    assert env.observation((21, 1, 1)) == "You hold 21 with a usable ace. The dealer shows an ace."


def test_frozen_lake_by_hand():
    env = Describe(gym.make("FrozenLake-v1"))  # SFFF FHFH FFFH HFFG
    assert env.observation(0) == (
        "You are on the start in row 1, column 1. Edge up, ice right, ice down, edge left. "
        "The goal is 3 down, 3 right."
    )
    assert env.observation(6) == (
        "You are on ice in row 2, column 3. Ice up, hole right, ice down, hole left. "
        "The goal is 2 down, 1 right."
    )
    assert env.observation(14) == (
        "You are on ice in row 4, column 3. Ice up, goal right, edge down, ice left. "
        "The goal is 1 right."
    )
    assert env.observation(5).startswith("You are in a hole in row 2, column 2.")
    assert env.observation(15).startswith("You are on the goal in row 4, column 4.")
    assert env.observation(15).endswith("The goal is here.")


def test_frozen_lake_reads_the_map_it_is_given():
    env = Describe(gym.make("FrozenLake-v1", desc=["GFF", "FSF", "FFG"]))
    assert env.observation(1).endswith("The goal is 1 left.")
    assert env.observation(5).endswith("The goal is 1 down.")
    env = Describe(gym.make("FrozenLake-v1", desc=["SH"]))
    assert env.observation(0).endswith("There is no goal.")


def test_cliff_walking_by_hand():
    env = Describe(gym.make("CliffWalking-v1"))
    assert env.reset()[0] == (
        "You are in row 4, column 1. Ground up, cliff right, edge down, edge left. "
        "The goal is 11 right."
    )
    assert env.observation(2 * 12 + 11) == (
        "You are in row 3, column 12. Ground up, edge right, goal down, ground left. "
        "The goal is 1 down."
    )


@pytest.mark.parametrize(
    ("env_id", "words", "blocked"),
    [
        ("FrozenLake-v1", ("left", "down", "right", "up"), "edge"),
        ("CliffWalking-v1", ("up", "right", "down", "left"), "edge"),
        ("Taxi-v4", ("south", "north", "east", "west"), "wall"),
    ],
)
def test_what_blocks_the_way_blocks_the_environment(env_id, words, blocked):
    kwargs = {"is_slippery": False} if env_id == "FrozenLake-v1" else {}
    env = Describe(gym.make(env_id, **kwargs))
    dynamics = env.unwrapped.P
    for state, moves in dynamics.items():
        text = env.observation(state).lower()
        if "in a hole" in text or "the goal is here" in text:
            continue
        if env_id == "CliffWalking-v1" and 36 < state < 47:
            continue  # on the cliff, where nobody ever is
        for action, word in enumerate(words):
            (_, after, reward, _) = moves[action][0]
            stays = after == state and reward != -100  # the cliff sends back to the start
            assert (f"{blocked} {word}" in text) == stays
            assert (f"cliff {word}" in text) == (reward == -100)


def test_taxi_by_hand():
    env = Describe(gym.make("Taxi-v4"))
    taxi = env.unwrapped
    assert env.observation(taxi.encode(0, 1, 3, 0)) == (
        "The taxi is in row 1, column 2. Wall north, wall east, road south, road west. "
        "The passenger waits at blue, 4 south, 2 east. The destination is red, 1 west."
    )
    assert env.observation(taxi.encode(4, 3, 4, 3)).endswith(
        "The passenger is in the taxi. The destination is blue, here."
    )


# --- MiniGrid


@pytest.fixture(scope="module")
def mini():
    """A bare 15 x 15 grid with the agent at (7, 7) in its middle; x grows to the east, y south."""
    pytest.importorskip("minigrid")
    from minigrid.core.grid import Grid

    env = Describe(gym.make("MiniGrid-Empty-16x16-v0"))
    env.reset(seed=0)
    base = env.unwrapped
    base.see_through_walls = False

    def look(direction: int = 0, carrying=None, **objects) -> str:
        base.grid = Grid(15, 15)
        base.agent_pos, base.agent_dir, base.carrying = (7, 7), direction, carrying
        base.mission = "find out"
        for place, thing in objects.items():
            base.grid.set(*map(int, place[1:].split("_")), thing)
        return env.observation(base.gen_obs())

    look.base = base
    return look


EAST, SOUTH, WEST, NORTH = range(4)


def test_nothing_in_sight(mini):
    assert mini() == "Mission: find out."


@pytest.mark.parametrize(
    ("direction", "ahead_and_right", "ahead_and_left"),
    [
        (EAST, "_9_8", "_8_4"),
        (SOUTH, "_6_9", "_10_8"),
        (WEST, "_5_6", "_6_10"),
        (NORTH, "_8_5", "_4_6"),
    ],
)
def test_directions_are_the_agents_own(mini, direction, ahead_and_right, ahead_and_left):
    from minigrid.core.world_object import Ball, Box

    text = mini(direction, **{ahead_and_right: Ball("red"), ahead_and_left: Box("grey")})
    assert text == (
        "Mission: find out. You see a red ball 1 step right and 2 steps forward. "
        "You see a grey box 3 steps left and 1 step forward."
    )


def test_zero_steps_are_left_out_and_near_comes_first(mini):
    from minigrid.core.world_object import Ball, Goal, Key, Lava

    text = mini(_10_7=Key("blue"), _7_6=Lava(), _7_8=Goal(), _8_7=Ball("green"))
    assert text == (
        "Mission: find out. You see red lava 1 step left. You see a green ball 1 step forward. "
        "You see a green goal 1 step right. You see a blue key 3 steps forward."
    )


def test_walls_straight_ahead_and_beside(mini):
    from minigrid.core.world_object import Floor, Wall

    text = mini(_13_7=Wall(), _7_5=Wall(), _7_8=Wall(), _8_7=Floor("red"), _8_6=Wall())
    assert text == (
        "Mission: find out. You see a wall 6 steps forward. You see a wall 2 steps left. "
        "You see a wall 1 step right."
    )


def test_a_wall_behind_something_is_not_told(mini):
    from minigrid.core.world_object import Ball, Door, Wall

    assert mini(_9_7=Ball("red"), _10_7=Wall()) == (
        "Mission: find out. You see a red ball 2 steps forward."
    )
    assert mini(_9_7=Door("red", is_open=True), _10_7=Wall()) == (
        "Mission: find out. You see an open red door 2 steps forward."
    )


def test_doors_tell_their_state(mini):
    from minigrid.core.world_object import Door

    texts = [
        mini(_8_7=Door("yellow", is_open=is_open, is_locked=is_locked))
        for is_open, is_locked in ((True, False), (False, False), (False, True))
    ]
    assert [text.partition("You see ")[2] for text in texts] == [
        "an open yellow door 1 step forward.",
        "a closed yellow door 1 step forward.",
        "a locked yellow door 1 step forward.",
    ]


def test_a_closed_door_hides_what_is_behind(mini):
    from minigrid.core.world_object import Ball, Door, Wall

    row = {f"_8_{y}": Wall() for y in range(15) if y != 7}
    for is_open in (False, True):
        text = mini(**row, _8_7=Door("red", is_open=is_open), _10_7=Ball("blue"))
        assert ("blue ball 3 steps forward" in text) == is_open


def test_what_is_carried_is_said_once(mini):
    from minigrid.core.world_object import Ball, Key

    assert mini(carrying=Key("grey"), _8_7=Ball("purple")) == (
        "Mission: find out. You carry a grey key. You see a purple ball 1 step forward."
    )


def test_a_brief_description_tells_the_same_in_fewer_words(mini):
    from minigrid.core.world_object import Ball, Door, Key, Lava, Wall

    describe_briefly = "rl_lightning.envs.describe.minigrid.describe_briefly"
    env = Describe(gym.make("MiniGrid-Empty-16x16-v0"), describe_briefly)
    text = mini(
        carrying=Key("grey"), _7_5=Wall(), _9_8=Ball("purple"), _8_7=Door("red", is_locked=True),
        _7_8=Lava(),
    )  # fmt: skip
    assert text == (
        "Mission: find out. You carry a grey key. You see a wall 2 steps left. You see a locked "
        "red door 1 step forward. You see red lava 1 step right. You see a purple ball 1 step "
        "right and 2 steps forward."
    )
    assert env.describer(mini.base.gen_obs(), env) == (
        "free: left, carrying grey key, wall: left 2, locked red door: forward 1, red lava: right "
        "1, purple ball: forward 2 right 1, mission: find out"
    )


def test_a_brief_description_begins_with_where_a_step_is_free(mini):
    from minigrid.core.world_object import Door

    describe_briefly = "rl_lightning.envs.describe.minigrid.describe_briefly"
    env = Describe(gym.make("MiniGrid-Empty-16x16-v0"), describe_briefly)
    for is_open in (True, False):
        mini(_8_7=Door("red", is_open=is_open))
        text = env.describer(mini.base.gen_obs(), env)
        assert text.startswith("free: forward left right, " if is_open else "free: left right, ")


def test_the_mission_is_in_the_text(mini):
    env = Describe(gym.make("BabyAI-GoToLocal-v0"))
    text, _ = env.reset(seed=0)
    assert text.startswith(f"Mission: {env.unwrapped.mission}. You see ")


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-8x8-v0", "BabyAI-BossLevel-v0"])
def test_stock_environments_fit_the_space(mini, env_id):
    env = Describe(gym.make(env_id))
    env.reset(seed=0)
    for action in np.random.default_rng(0).integers(6, size=100):
        text, _, terminated, truncated, _ = env.step(int(action))
        assert env.observation_space.contains(text)
        if terminated or truncated:
            env.reset()


def test_other_views_are_refused(mini):
    from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper

    env = gym.make("MiniGrid-Empty-5x5-v0")
    with pytest.raises(ValueError, match="own view"):
        Describe(FullyObsWrapper(env)).reset()
    with pytest.raises(ValueError, match="'image' and 'mission'"):
        Describe(ImgObsWrapper(env)).reset()


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize(
    "name",
    [
        "OneHotPartialObsWrapper",
        "RGBImgPartialObsWrapper",
        "RGBImgObsWrapper",
        "SymbolicObsWrapper",
        "FullyObsWrapper",
        "FlatObsWrapper",
        "DictObservationSpaceWrapper",  # of the mission, not of the image
    ],
)
def test_what_a_wrapper_has_encoded_anew_is_refused(mini, name, size):
    from minigrid import wrappers

    env = Describe(getattr(wrappers, name)(gym.make(f"MiniGrid-Empty-{size}x{size}-v0")))
    with pytest.raises(ConfigurationError, match=f"Describe: .*put Describe before {name}") as e:
        env.reset(seed=0)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["ViewSizeWrapper", "DirectionObsWrapper"])
def test_wrappers_that_leave_cells_what_they_are_may_come_first(mini, name):
    from minigrid import wrappers

    env = Describe(getattr(wrappers, name)(gym.make("MiniGrid-DoorKey-5x5-v0")))
    assert "You see" in env.reset(seed=0)[0]


@pytest.mark.parametrize(
    ("env", "wrap"),
    [
        ("CartPole-v1", lambda e: SelectObservation(e, [0, 2])),
        ("Acrobot-v1", lambda e: gym.wrappers.FrameStackObservation(e, 2)),
        ("Pendulum-v1", lambda e: gym.wrappers.RescaleObservation(e, np.float32(0), np.float32(1))),
        ("Taxi-v4", gym.wrappers.FlattenObservation),
    ],
)
def test_numbers_that_a_wrapper_has_changed_are_not_put_into_words(env, wrap):
    with pytest.raises(ConfigurationError, match=r"Describe: .*put Describe before \w+Observation"):
        Describe(wrap(gym.make(env)))


def test_a_wrapper_that_changes_no_number_may_come_first():
    env = gym.wrappers.DtypeObservation(gym.make("CartPole-v1"), np.float64)
    plain = Describe(gym.make("CartPole-v1"))
    assert Describe(env).reset(seed=0)[0] == plain.reset(seed=0)[0]


def test_what_a_describer_raises_is_told_with_its_name():
    def broken(obs, env):
        return obs["image"]

    env = Describe(gym.make("CartPole-v1"), broken)
    with pytest.raises(ConfigurationError, match=r"broken raised IndexError: .*test_describe.py:"):
        env.reset()
