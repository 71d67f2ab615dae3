"""TextWorld's games: what is told, what is rewarded, and that a seed is a game, everywhere."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.resume.environments import Snapshots
from rl_lightning.envs import make_env, make_vector_env
from rl_lightning.envs.text_games import games
from rl_lightning.envs.text_games.telling import tell_state, with_article

pytest.importorskip("textworld")

from rl_lightning.envs.text_games.text_world import TextWorldGame

SMALL = {"quest_length": 2, "rooms": 2, "objects": 4, "seed_range": (0, 8)}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RL_LIGHTNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def small(**kwargs):
    return TextWorldGame(**{**SMALL, **kwargs})


def play(env, commands, seed=0):
    """Texts and rewards of a game."""
    told = [(env.reset(options={"game_seed": seed})[0], 0.0)]
    return told + [env.step(command)[:2] for command in commands]


# --- what is told


class Info:
    def __init__(self, name, type, indefinite=None):
        self.name, self.type, self.indefinite = name, type, indefinite


class Fact:
    """As TextWorld's propositions."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, [Info(a, None) for a in arguments]


INFOS = {
    "r1": Info("kitchen", "r"),
    "r2": Info("attic", "r"),
    "c": Info("oven", "c"),
    "s": Info("table", "s"),
    "k": Info("key", "k"),
    "f": Info("flour", "f", "some"),
    "d": Info("oak door", "d"),
}


def test_a_room_in_words():
    facts = [
        Fact("at", "P", "r1"),
        Fact("at", "s", "r1"),
        Fact("at", "c", "r1"),
        Fact("closed", "c"),
        Fact("in", "k", "c"),
        Fact("on", "f", "s"),
        Fact("north_of", "r2", "r1"),
        Fact("link", "r1", "d", "r2"),
        Fact("locked", "d"),
        Fact("east_of", "r3", "r1"),
        Fact("free", "r1", "r3"),
    ]
    text = (
        "You are in the kitchen. You see a closed oven and a table. The table holds some flour. "
        "A locked oak door leads north. You can go east. You carry nothing."
    )
    assert tell_state(facts, INFOS) == text
    assert tell_state(facts[::-1], INFOS) == text


def test_an_open_container_shows_what_it_holds():
    facts = [Fact("at", "P", "r1"), Fact("at", "c", "r1"), Fact("open", "c"), Fact("in", "k", "c")]
    assert "You see an open oven. The oven holds a key." in tell_state(facts, INFOS)
    assert "The oven holds nothing." in tell_state(facts[:3], INFOS)
    assert tell_state([facts[0], Fact("in", "k", "I")], INFOS).endswith("You carry a key.")


def test_articles():
    assert [with_article(n) for n in ("oven", "key", "Oak")] == ["an oven", "a key", "an Oak"]
    assert with_article("flour", "some") == "some flour"


def test_goals():
    env = small(goal="steps")
    _, info = env.reset(options={"game_seed": 1})
    first, second = env.walkthrough
    assert info["goal"].lower() == f"{first}, then {second}.".lower()
    last = small(goal="last").reset(options={"game_seed": 1})[1]["goal"]
    assert last == f"{second[:1].upper()}{second[1:]}."
    story = small(goal="story").reset(options={"game_seed": 1})[1]["goal"]
    assert len(story) > len(info["goal"])
    with pytest.raises(ConfigurationError, match=r"goal='plot'.*steps"):
        small(goal="plot")


# --- what happens


@pytest.mark.parametrize("seed", range(8))
def test_the_way_a_game_was_made_for_wins_it(seed):
    env = small(step_reward=-0.25, win_reward=2.0)
    _, info = env.reset(options={"game_seed": seed})
    assert (info["game_seed"], info["success"]) == (seed, False)
    first, second = env.walkthrough
    assert first in info["admissible_actions"]
    _, reward, terminated, truncated, info = env.step(first)
    assert (reward, terminated, truncated) == (-0.25, False, False)
    assert set(info) == {"admissible_actions"}
    _, reward, terminated, truncated, info = env.step(second)
    assert (reward, terminated, truncated) == (1.75, True, False)
    assert (info["success"], info["game_seed"]) == (True, seed)
    with pytest.raises(ResetNeeded):
        env.step(second)


def test_every_admitted_command_changes_what_is_told_or_done():
    env = small()
    _, info = env.reset(options={"game_seed": 2})
    assert info["admissible_actions"] == sorted(set(info["admissible_actions"]))
    for command in info["admissible_actions"]:
        (before, _), (after, _) = play(env, [command], 2)
        assert before != after


def test_any_other_command_does_nothing_and_takes_a_turn():
    env = small(max_steps=3, step_reward=-1.0)
    told = play(env, ["", "look", "fly"])
    assert len({text for text, _ in told}) == 1
    assert [reward for _, reward in told] == [0.0, -1.0, -1.0, -1.0]
    with pytest.raises(ResetNeeded):
        env.step("fly")


def test_the_time_limit_truncates():
    env = small(max_steps=2)
    env.reset(seed=0)
    assert env.step("")[2:4] == (False, False)
    *_, terminated, truncated, info = env.step("")
    assert (terminated, truncated, info["success"]) == (False, True, False)


def test_what_is_lost_is_over(monkeypatch):
    env = small(progress_reward=1.0)
    env.reset(options={"game_seed": 1})
    monkeypatch.setattr(games.Session, "lost", True)
    monkeypatch.setattr(games.Session, "remaining", lambda self: None)
    _, reward, terminated, truncated, info = env.step("")
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, False)


def test_progress_is_a_potential():
    """Whatever the detours, all rewards add up to the length of the way."""
    env = TextWorldGame(3, 3, 5, win_reward=0.0, progress_reward=0.5, max_steps=10_000)
    lowest = 0.0
    for seed in range(4):
        rng, rewards, over = np.random.default_rng(seed), [], False
        info = env.reset(options={"game_seed": seed})[1]
        while not over:
            choices = [c for c in info["admissible_actions"] if not c.startswith("eat")]
            _, reward, over, _, info = env.step(str(rng.choice(choices)))
            rewards.append(reward)
        assert info["success"]
        assert sum(rewards) == pytest.approx(0.5 * 3)
        lowest = min(lowest, *rewards)
        straight = [reward for _, reward in play(env, env.walkthrough, seed)]
        assert straight == [0.0, 0.5, 0.5, 0.5]
    assert lowest < 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"quest_length": 0}, "quest_length must be at least 1"),
        ({"rooms": 0}, "rooms must be at least 1"),
        ({"objects": 1.5}, "objects must be a whole number"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"seed_range": (3, 3)}, "seed_range"),
        ({"seed_range": 3}, "seed_range"),
        ({"win_reward": float("nan")}, "win_reward must be"),
        ({"progress_reward": "much"}, "progress_reward must be"),
        ({"step_reward": float("nan")}, "step_reward must be"),
        ({"render_mode": "human"}, "render_mode='human'"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        small(**kwargs)
    with pytest.raises(ConfigurationError, match=r"no other key than 'game_seed'"):
        small().reset(options={"seed": 3})


def test_sizes_are_as_asked():
    def count(kind, **kwargs):
        game = games.find_game(games.Settings(**kwargs), 0)
        return sum(info.type == kind for info in game.infos.values())

    base = {"quest_length": 2, "rooms": 2, "objects": 4}
    assert count("r", **base) == 2
    assert count("r", **{**base, "rooms": 5}) == 5
    few, many = (sum(count(kind, **{**base, "objects": n}) for kind in "ocsfk") for n in (4, 9))
    assert (few, many) == (4, 9)
    assert len(TextWorldGame(4, 2, 4).reset()[1]["goal"].split(", then ")) == 4


def test_render():
    env = small(render_mode="ansi")
    text, _ = env.reset(seed=0)
    assert env.render() == text
    assert small().render() is None


# --- seeds


def test_disjoint_ranges_are_different_games():
    def seen(low, high):
        env, found = small(seed_range=(low, high)), set()
        for seed in range(30):
            text, info = env.reset(seed=seed)
            assert low <= info["game_seed"] < high
            found.add((text, info["goal"]))
        return found

    ours, theirs = seen(0, 8), seen(8, 16)
    assert len(ours) == len(theirs) == 8
    assert not ours & theirs


SCRIPT = """
from rl_lightning.envs.text_games.games import Settings, Session
for seed in range(3):
    session = Session(Settings(3, 3, 5), seed)
    print(session.game.objective, session.game.walkthrough, session.remaining())
    for step in range(6):
        session.play(session.admitted[-1])
        print(session.admitted, session.remaining(), sorted(map(str, session.facts)))
"""


@pytest.mark.slow
def test_a_seed_is_the_same_game_in_another_process(tmp_path):
    said = []
    root = str(Path(games.__file__).parents[3])
    for number in (1, 2):
        path = os.pathsep.join([root, *sys.path])
        own = {"PYTHONHASHSEED": str(number), "RL_LIGHTNING_CACHE": str(tmp_path / str(number))}
        env = {**os.environ, "PYTHONPATH": path, **own}
        said.append(subprocess.check_output([sys.executable, "-c", SCRIPT], env=env, text=True))
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 21


def test_games_are_made_once_and_damaged_ones_again(monkeypatch, tmp_path):
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path))
    made, settings, make = [], games.Settings(1, 1, 2), games._make
    monkeypatch.setattr(games, "_make", lambda *args: made.append(args) or make(*args))
    find = games.find_game.__wrapped__  # not from memory
    first = find(settings, 5)
    assert find(settings, 5) == first
    assert made == [(settings, 5)]
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert path.name == "5.json"
    path.write_text(path.read_text()[:100])
    assert find(settings, 5) == first
    assert len(made) == 2
    # Where nothing can be written it is made each time.
    (tmp_path / "file").touch()
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path / "file"))
    assert find(settings, 5) == first
    assert len(made) == 3


def test_a_game_that_cannot_be_made(monkeypatch):
    def fail(options):
        raise RuntimeError("no way")

    monkeypatch.setattr(games.textworld(".generator"), "make_game", fail)
    with pytest.raises(ConfigurationError, match=r"quest_length=1, rooms=1, .* seed 999: .*no way"):
        games.find_game(games.Settings(1, 1, 1), 999)


# --- as an environment with numbered actions


def test_the_registered_environment():
    env = make_env("TextWorld-v0", SMALL)
    obs, info = env.reset(options={"game_seed": 0})
    assert set(obs) == {"observation", "goal", "actions"}
    assert obs["goal"] == info["goal"]
    assert obs["actions"].split("\n") == info["admissible_actions"]
    assert info["action_mask"].sum() == len(info["admissible_actions"])
    for command in env.unwrapped.walkthrough:
        *_, info = env.step(info["admissible_actions"].index(command))
    assert info["success"]
    assert make_env("TextWorld-v0", {**SMALL, "max_actions": 20}).action_space.n == 20
    with pytest.raises(ConfigurationError, match=r"max_actions=1: the environment admits"):
        make_env("TextWorld-v0", {**SMALL, "max_actions": 1}).reset(seed=0)
    with pytest.raises(ConfigurationError, match="quest_lenght"):
        make_env("TextWorld-v0", {"quest_lenght": 3})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_is_content():
    check_env(make_env("TextWorld-v0", SMALL), skip_render_check=True)
    check_env(small(), skip_render_check=True)


WRAPPERS = [{"TextHistory": {"observations": 1, "actions": 3}}]


def episodes(env, steps, rng):
    """What is seen of random play, as text."""
    seen, info = [], env.reset(seed=3)[1]
    for _ in range(steps):
        actions = [rng.choice(np.flatnonzero(mask)) for mask in info["action_mask"]]
        *step, info = env.step(np.array(actions))
        seen.append(repr([step[0], *(part.tolist() for part in step[1:])]))
    return seen


@pytest.mark.slow  # each process imports TextWorld
def test_sync_and_async_play_the_same():
    seen = []
    for vectorization in ("sync", "async"):
        env = make_vector_env("TextWorld-v0", 2, vectorization, SMALL, WRAPPERS)
        seen.append(episodes(env, 40, np.random.default_rng(0)))
        env.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("vectorization", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_resumed_goes_on_as_uninterrupted(vectorization):
    kwargs = {**SMALL, "progress_reward": 1.0}
    copies = Snapshots(make_env("TextWorld-v0", kwargs, WRAPPERS))
    assert copies.reason is None
    first, second = (
        make_vector_env("TextWorld-v0", 2, vectorization, kwargs, WRAPPERS) for _ in range(2)
    )
    rng = np.random.default_rng(1)
    episodes(first, 7, rng)
    second.reset(seed=9)
    copies.put(second, copies.take(first))
    for _ in range(30):
        actions = rng.integers(5, size=2)
        ours, theirs = first.step(actions), second.step(actions)
        assert ours[0] == theirs[0]
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:4], theirs[1:4], strict=True))
    first.close()
    second.close()


def test_copies_are_independent():
    env = small()
    env.reset(options={"game_seed": 1})
    env.step(env.walkthrough[0])
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.step(other.walkthrough[1])[1:3] == (1.0, True)
    assert env.step("")[1:3] == (0.0, False)
