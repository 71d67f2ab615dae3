"""TextMaze: hand-worked episodes, solvable mazes, and texts that carry what a policy needs."""

import copy
import pickle
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rl_lightning.envs import maze, text_maze
from rl_lightning.envs.maze import Layout, make_layout
from rl_lightning.envs.text_maze import TextMazeEnv, exit_sentence

NORTH, EAST, SOUTH, WEST = range(4)


def from_rows(*rows: str) -> Layout:
    """A layout from a drawing without border: # wall, S start, X exit."""
    width = len(rows) + 2
    cells = "".join(["#" * width, *(f"#{row}#" for row in rows), "#" * width])
    walls, start, goal = [c == "#" for c in cells], cells.index("S"), cells.index("X")
    return Layout(tuple(walls), start, goal, maze.shortest_path(walls, width, start, goal))


@pytest.fixture
def hook(monkeypatch):
    """A 3 x 3 maze with a detour: the exit is two rows south, the way there leads east."""
    layout = from_rows("S..", "##.", "X..")
    monkeypatch.setattr(text_maze, "make_layout", lambda *_: layout)

    def make(**kwargs) -> TextMazeEnv:
        return TextMazeEnv(size=3, **kwargs)

    return make


def play(env: TextMazeEnv, actions) -> list[str]:
    texts = [env.reset(seed=0)[0]]
    return texts + [env.step(action)[0] for action in actions]


# --- layouts


def test_layouts_are_solvable_and_have_the_given_density():
    for seed in range(200):
        layout = make_layout(6, 0.25, seed)
        grid = np.array(layout.walls).reshape(8, 8)
        assert grid.sum() == 9 + 28  # round(0.25 * 36) obstacles and the border
        assert grid[[0, -1]].all()
        assert grid[:, [0, -1]].all()
        assert not grid.flat[layout.start]
        assert not grid.flat[layout.exit]
        # Independently: spread from the start, one step at a time, until the exit is reached.
        reached = np.zeros_like(grid)
        reached.flat[layout.start] = True
        steps = 0
        while not reached.flat[layout.exit]:
            spread = reached.copy()
            for axis in (0, 1):
                spread |= np.roll(reached, 1, axis) | np.roll(reached, -1, axis)
            reached, steps = spread & ~grid, steps + 1
        assert steps == layout.shortest >= 2


def test_a_layout_is_a_pure_function_of_its_arguments():
    assert make_layout(6, 0.25, 7) == make_layout(6, 0.25, 7)
    assert len({make_layout(6, 0.25, seed) for seed in range(100)}) == 100
    assert sum(make_layout(6, 0.5, 7).walls) == 18 + 28


def test_layouts_stay_what_they_are():
    """Results on held-out mazes are comparable only as long as this passes."""
    layout = make_layout(4, 0.25, 3)
    cells = [maze.WALL if wall else 0 for wall in layout.walls]
    drawing = maze.draw_map(cells, 4, layout.exit, layout.start)
    assert drawing.split() == ["...#", ".#.@", ".##.", ".X.."]
    assert layout.shortest == 4


def test_start_and_exit_may_touch_where_nothing_else_is_possible():
    assert make_layout(2, 0.5, 0).shortest == 1
    assert make_layout(2, 0.25, 0).shortest == 2


@pytest.mark.parametrize(("size", "density"), [(2, 0.75), (3, 0.99), (30, 0.9)])
def test_a_hopeless_density_ends_with_an_error(monkeypatch, size, density):
    monkeypatch.setattr(maze, "ATTEMPTS", 20)
    with pytest.raises(ValueError, match=f"density={density} gives no solvable maze.*lower"):
        TextMazeEnv(size=size, density=density)


# --- texts, rewards, ends


def test_a_hand_worked_episode(hook):
    env = hook()
    text, info = env.reset(seed=0)
    assert text == "Wall north, new east, wall south, wall west. The exit is far south."
    assert info["shortest"] == 6
    assert info["position"] == (1, 1)
    assert info["success"] is False

    text, reward, terminated, truncated, info = env.step(NORTH)  # into the wall
    assert text == "Wall north, new east, wall south, wall west. The exit is far south."
    assert (reward, terminated, truncated) == (-1.0, False, False)

    expected = [
        (EAST, "Wall north, new east, wall south, once west. The exit is far south, near west."),
        (WEST, "Wall north, once east, wall south, wall west. The exit is far south."),
        (EAST, "Wall north, new east, wall south, twice west. The exit is far south, near west."),
        (WEST, "Wall north, twice east, wall south, wall west. The exit is far south."),
        (EAST, "Wall north, new east, wall south, often west. The exit is far south, near west."),
        (EAST, "Wall north, wall east, new south, often west. The exit is far south, far west."),
        (SOUTH, "Once north, wall east, new south, wall west. The exit is near south, far west."),
        (SOUTH, "Once north, wall east, wall south, new west. The exit is far west."),
        (WEST, "Wall north, once east, wall south, new west. The exit is near west."),
    ]
    for action, wanted in expected:
        text, reward, terminated, truncated, info = env.step(action)
        assert text == wanted
        assert (reward, terminated, truncated) == (-1.0, False, False)
        assert info == {}
    text, reward, terminated, truncated, info = env.step(WEST)
    assert text == "Wall north, once east, wall south, wall west. The exit is here."
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["success"] is True
    assert info["position"] == (3, 1)
    assert set(info) == {"layout_seed", "shortest", "position", "success"}


def test_the_exit_is_north_and_east_too(monkeypatch):
    monkeypatch.setattr(text_maze, "make_layout", lambda *_: from_rows("..X", "...", "S.."))
    assert TextMazeEnv(size=3).reset()[0].endswith("The exit is far north, far east.")


def test_without_memory_the_text_only_tells_walls(hook):
    texts = play(hook(memory=False), [EAST, WEST])
    assert texts[0] == texts[2]
    assert (
        texts[1]
        == "Wall north, open east, wall south, open west. The exit is far south, near west."
    )


def test_layout_adds_places_and_the_map(hook):
    texts = play(hook(layout=True), [EAST])
    assert texts[1] == (
        "Wall north, new east, wall south, once west. The exit is far south, near west. "
        "You are in row 1, column 2 of 3; the exit is in row 3, column 1. "
        "The map, north up, # wall, . open, X exit, @ you:\n.@.\n##.\nX.."
    )
    without = play(hook(layout=True, memory=False), [EAST])
    assert without[1] == texts[1].replace("new", "open").replace("once", "open")


def test_rewards_are_what_they_were_set_to(hook):
    env = hook(step_reward=-0.5, exit_reward=7.0)
    env.reset()
    rewards = [env.step(action)[1] for action in (EAST, EAST, SOUTH, SOUTH, WEST, WEST)]
    assert rewards == [-0.5] * 5 + [7.0]


def test_the_time_limit_truncates_and_the_exit_terminates(hook):
    env = hook(max_steps=6)
    for actions, end in (((NORTH,) * 6, (False, True)), ((1, 1, 2, 2, 3, 3), (True, False))):
        env.reset()
        ends = [env.step(action)[2:4] for action in actions]
        assert ends == [(False, False)] * 5 + [end]
        with pytest.raises(ResetNeeded, match="call reset"):
            env.step(NORTH)
    assert TextMazeEnv(size=5).max_steps == 50


def test_stepping_needs_a_reset_and_an_action():
    env = TextMazeEnv()
    with pytest.raises(ResetNeeded):
        env.step(NORTH)
    env.reset(seed=0)
    for action in (-1, 4):
        with pytest.raises(ValueError, match=f"action={action}"):
            env.step(action)


# --- which maze


def test_layout_seeds_come_from_the_range_or_the_options():
    env = TextMazeEnv(seed_range=[5, 8])
    drawn = {env.reset(seed=0)[1]["layout_seed"]}
    drawn |= {env.reset()[1]["layout_seed"] for _ in range(50)}
    assert drawn == {5, 6, 7}
    _, info = env.reset(options={"layout_seed": 1_000_003})
    assert info["layout_seed"] == 1_000_003
    assert info["shortest"] == make_layout(6, 0.25, 1_000_003).shortest


def test_the_seed_decides_the_maze():
    seeds = [TextMazeEnv().reset(seed=s)[1]["layout_seed"] for s in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layout_sed": 1}, "layout_sed.*'layout_seed'"), ({"layout_seed": -1}, "layout_seed=-1")],
)
def test_wrong_reset_options(options, message):
    with pytest.raises(ValueError, match=message):
        TextMazeEnv().reset(options=options)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("size", 1, "at least 2"),
        ("size", 6.0, "integer"),
        ("size", True, "integer"),
        ("density", 1.0, r"\[0, 1\)"),
        ("density", -0.1, r"\[0, 1\)"),
        ("density", "0.2", r"\[0, 1\)"),
        ("seed_range", (5, 5), "low < high"),
        ("seed_range", (-1, 5), "0 <= low"),
        ("seed_range", 5, "two integers"),
        ("seed_range", (0, 1.5), "two integers"),
        ("max_steps", 0, "at least 1"),
        ("step_reward", float("nan"), "finite"),
        ("exit_reward", "1", "finite"),
        ("memory", 1, "True or False"),
        ("layout", None, "True or False"),
        ("render_mode", "rgb", "rgb_array"),
    ],
)
def test_wrong_arguments_are_named(name, value, right):
    with pytest.raises(ValueError, match=f"{name}=.*expected .*{right}"):
        TextMazeEnv(**{name: value})


# --- what the texts are good for


def words(text: str) -> tuple[list[str], tuple[int, int]]:
    """Read a text: the four neighbours, and the exit's (south, east) as 0, 1 or 2 with a sign."""
    around, _, exit_ = text.partition(" The exit is ")
    status = [word.lower() for word in re.findall(r"(\w+) \w+[,.]", around)]
    way = {d: {"near": 1, "far": 2}[w] for w, d in re.findall(r"(near|far) (\w+)", exit_)}
    south = way.get("south", 0) - way.get("north", 0)
    return status, (south, way.get("east", 0) - way.get("west", 0))


def least_visited(text: str) -> int:
    """Go to the exit, else to the least visited neighbour, among those towards the exit."""
    status, (south, east) = words(text)
    rank = {"new": 0, "open": 0, "once": 1, "twice": 2, "often": 3}
    moves = []
    for action, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
        if status[action] != "wall":
            distance = abs(south - down) + abs(east - right)
            moves.append((distance > 0, rank[status[action]], distance, action))
    return min(moves)[-1]


def success_rate(env: TextMazeEnv, episodes: int = 500) -> float:
    """On mazes that no training with the default `seed_range` ever sees."""
    solved = 0
    for seed in range(1_000_000, 1_000_000 + episodes):
        text, _ = env.reset(options={"layout_seed": seed})
        done = False
        while not done:
            text, _, terminated, truncated, info = env.step(least_visited(text))
            done = terminated or truncated
        solved += info["success"]
    return solved / episodes


def test_the_text_suffices_to_find_the_exit_and_needs_its_memory():
    assert success_rate(TextMazeEnv()) >= 0.98
    assert success_rate(TextMazeEnv(memory=False)) < 0.85


def test_texts_are_few_and_short():
    env = TextMazeEnv()
    rng = np.random.default_rng(0)
    text, _ = env.reset(seed=0)
    seen = {text}
    for action, random in zip(rng.integers(4, size=20_000), rng.random(20_000), strict=True):
        text, _, terminated, truncated, _ = env.step(
            int(action) if random < 0.1 else least_visited(text)
        )
        seen.add(text)
        if terminated or truncated:
            text, _ = env.reset()
    assert 500 < len(seen) < 3500
    assert max(map(len, seen)) <= env.observation_space.max_length <= 90


# --- Gymnasium


@pytest.mark.filterwarnings("ignore:.*not having a spec")
@pytest.mark.parametrize("kwargs", [{}, {"memory": False}, {"layout": True, "size": 12}])
def test_gymnasium_approves(kwargs):
    check_env(TextMazeEnv(**kwargs))


def test_every_text_fits_its_space():
    for kwargs in ({}, {"layout": True}, {"layout": True, "size": 11, "memory": False}):
        env = TextMazeEnv(**kwargs)
        texts = [env.reset(seed=seed)[0] for seed in range(300)]
        assert all(env.observation_space.contains(text) for text in texts)
        assert env.observation_space.max_length - max(map(len, texts)) < 25


def test_it_is_registered():
    env = gym.make("TextMaze-v0", size=4, render_mode="ansi")
    env.reset(seed=0)
    assert len(str(env.render()).split("\n")) == 4


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_go_on_alike(clone):
    env = TextMazeEnv(max_steps=20)
    play(env, [EAST, SOUTH])
    twin = clone(env)
    for action in np.random.default_rng(0).integers(4, size=100):
        mine, its = env.step(action), twin.step(action)
        assert mine == its
        if mine[2] or mine[3]:
            assert env.reset() == twin.reset()


def test_vector_envs_agree_and_hand_over_final_texts():
    def make():
        return TextMazeEnv(size=3, max_steps=4, layout=True)

    same_step = AutoresetMode.SAME_STEP
    sync = SyncVectorEnv([make] * 2, autoreset_mode=same_step)
    processes = AsyncVectorEnv(
        [make] * 2, autoreset_mode=same_step, context="forkserver", shared_memory=False
    )
    try:
        assert sync.reset(seed=0)[0] == processes.reset(seed=0)[0]
        ends = 0
        for actions in np.random.default_rng(0).integers(4, size=(30, 2)):
            mine, its = sync.step(actions), processes.step(actions)
            assert mine[0] == its[0]
            for a, b in zip(mine[1:4], its[1:4], strict=True):
                np.testing.assert_array_equal(a, b)
            for done, final in zip(
                mine[2] | mine[3], mine[4].get("final_obs", [None] * 2), strict=True
            ):
                assert done == (final is not None)
                ends += done
            if "final_obs" in mine[4]:
                assert list(mine[4]["final_obs"]) == list(its[4]["final_obs"])
        assert ends > 10
    finally:
        sync.close()
        processes.close()


def test_importing_costs_no_torch():
    code = (
        "import sys, rl_lightning.envs.text_maze, rl_lightning.envs.describe;"
        "print([m for m in ('torch', 'transformers', 'minigrid', 'pygame') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- rendering


def test_ansi_shows_the_trail(hook):
    env = hook(render_mode="ansi")
    play(env, [EAST, EAST])
    assert env.render() == "oo@\n##.\nX.."


def test_rgb_shows_walls_trail_and_agent(hook):
    env = hook(render_mode="rgb_array")
    play(env, [EAST, WEST, EAST, EAST])
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert frame.shape == (160, 160, 3)
    assert frame.dtype == np.uint8
    corners = frame[::32, ::32]  # the agent's disc covers no corner
    assert tuple(corners[0, 0]) == tuple(corners[2, 1]) == maze.WALLS
    assert tuple(corners[1, 1]) == maze.START
    assert tuple(corners[3, 1]) == maze.EXIT
    assert tuple(corners[2, 3]) == maze.TRAIL[0]
    assert tuple(corners[1, 3]) == maze.TRAIL[1]
    assert tuple(corners[1, 2]) == maze.TRAIL[2]
    assert tuple(frame[48, 112]) == maze.AGENT


def test_human_opens_a_window_by_itself_and_survives_copying(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = TextMazeEnv(render_mode="human")
    env.reset(seed=0)
    assert env._window is not None
    assert pickle.loads(pickle.dumps(env))._window is None
    env.close()
    assert env._window is None


def test_human_without_pygame_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match="pygame-ce"):
        TextMazeEnv(render_mode="human").reset()


def test_rendering_without_a_mode_warns():
    env = TextMazeEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_exact_counts_the_steps_to_the_exit():
    assert exit_sentence(-2, 1, exact=True) == "The exit is 2 north, 1 east."
    assert exit_sentence(0, -12, exact=True) == "The exit is 12 west."
    assert exit_sentence(-2, 1) == "The exit is far north, near east."
    exact, _ = TextMazeEnv(exact=True).reset(options={"layout_seed": 1})
    coarse, _ = TextMazeEnv().reset(options={"layout_seed": 1})
    assert exact.split("The exit")[0] == coarse.split("The exit")[0]
    assert exact != coarse
    env = TextMazeEnv(size=12, exact=True)
    for seed in range(200):
        assert env.observation_space.contains(env.reset(seed=seed)[0])
    with pytest.raises(ValueError, match="exact='yes'"):
        TextMazeEnv(exact="yes")  # type: ignore[arg-type]


def test_training_and_held_out_layouts_do_not_overlap():
    """Disjoint seeds are not yet disjoint mazes: of these, none of the held-out ones was seen."""

    def mazes(seeds):
        layouts = (make_layout(6, 0.25, seed) for seed in seeds)
        return {(m.walls, m.start, m.exit) for m in layouts}

    training, held_out = mazes(range(20_000)), mazes(range(1_000_000, 1_002_000))
    assert len(held_out) > 1_990
    assert not training & held_out
