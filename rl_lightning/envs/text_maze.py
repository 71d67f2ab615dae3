"""TextMaze-v0: a random maze that the agent knows only through short English sentences.

Every episode draws a new maze, so a policy must read instead of remembering one map, and a held-out
range of layouts measures what it has understood. The sentences are short and few, so a frozen
language model encodes each of them once.
"""

import math
import random
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled, ResetNeeded

from rl_lightning.envs.text import text_space

DIRECTIONS = ("north", "east", "south", "west")
WALL = -1  # in the list of cells, where every other value counts visits
# Indexed by such a value: new, visited once, twice, at least three times; WALL takes the last.
WITH_MEMORY = ("new", "once", "twice", "often", "wall")
WITHOUT_MEMORY = ("open", "open", "open", "open", "wall")
OFTEN = 3
ATTEMPTS = 1000

PIXELS = 32  # per cell
WALLS, TRAIL = (52, 58, 64), ((248, 249, 250), (208, 235, 255), (165, 216, 255), (116, 192, 252))
START, EXIT, AGENT = (255, 212, 59), (81, 207, 102), (224, 49, 49)
PALETTE = np.array([WALLS, *TRAIL, START, EXIT], dtype=np.uint8)


class Layout(NamedTuple):
    """One maze. Cells are numbered row by row on the grid *with* its border, `size + 2` cells wide.

    Attributes:
        walls: Whether each of the `(size + 2)²` cells is blocked; the border is.
        start: Cell in which the agent starts.
        exit: Cell to reach.
        shortest: Steps on the shortest path from start to exit.
    """

    walls: tuple[bool, ...]
    start: int
    exit: int
    shortest: int


def make_layout(size: int, density: float, layout_seed: int) -> Layout:
    """Draw a solvable maze: a pure function of its three arguments.

    Start, exit and `round(density * size²)` obstacles are drawn uniformly, and drawn again until a
    path of at least two steps joins start and exit; of one step after half of the attempts.

    Args:
        size: Rows and columns, without the border.
        density: Fraction of cells that are obstacles, in [0, 1).
        layout_seed: Seed of the drawing, not negative.

    Raises:
        ValueError: If no solvable maze turns up in `ATTEMPTS` draws.
    """
    # Not NumPy's generator: of Python's, `seed` and `random` are promised never to change, so
    # a held-out range means the same mazes everywhere. `sample` and `shuffle` promise nothing.
    rng = random.Random(int(layout_seed))
    width = size + 2
    inside = [row * width + column for row in range(1, size + 1) for column in range(1, size + 1)]
    free = size * size - round(density * size * size)
    for attempt in range(ATTEMPTS if free >= 2 else 0):
        order = sorted(inside, key=lambda _: rng.random())
        walls = [True] * width**2
        for cell in order[:free]:
            walls[cell] = False
        shortest = _shortest_path(walls, width, order[0], order[1])
        if shortest >= (2 if attempt < ATTEMPTS // 2 else 1):
            return Layout(tuple(walls), order[0], order[1], shortest)
    raise ValueError(
        f"density={density} gives no solvable maze of size={size} (layout_seed={layout_seed}, "
        f"{ATTEMPTS} draws); choose a lower density, such as 0.25"
    )


def _shortest_path(walls: list[bool], width: int, start: int, goal: int) -> int:
    """Steps of the shortest path, by breadth-first search; 0 if there is none."""
    seen = walls.copy()
    seen[start] = True
    frontier, steps = [start], 0
    while frontier:
        steps += 1
        reached = []
        for cell in frontier:
            for nearby in (cell - width, cell + 1, cell + width, cell - 1):
                if nearby == goal:
                    return steps
                if not seen[nearby]:
                    seen[nearby] = True
                    reached.append(nearby)
        frontier = reached
    return 0


def _neighbour_table(memory: bool) -> tuple[tuple[str, ...], ...]:
    """What the text says of each neighbour, indexed by direction and by its visits or WALL."""
    words = WITH_MEMORY if memory else WITHOUT_MEMORY
    north, east, south, west = DIRECTIONS
    return (
        tuple(f"{word.capitalize()} {north}, " for word in words),
        tuple(f"{word} {east}, " for word in words),
        tuple(f"{word} {south}, " for word in words),
        tuple(f"{word} {west}. " for word in words),
    )


@cache
def _exit_sentence(south: int, east: int) -> str:
    """Where the exit lies, `south` rows and `east` columns from the agent (both may be negative)."""
    parts = []
    if south:
        parts.append(f"{_distance(south)} {'south' if south > 0 else 'north'}")
    if east:
        parts.append(f"{_distance(east)} {'east' if east > 0 else 'west'}")
    return f"The exit is {', '.join(parts) or 'here'}."


def _distance(steps: int) -> str:
    return "near" if abs(steps) == 1 else "far"


def _place(row: int, column: int, exit_row: int, exit_column: int, size: int) -> str:
    return (
        f" You are in row {row}, column {column} of {size}; the exit is in row {exit_row}, "
        f"column {exit_column}. The map, north up, # wall, . open, X exit, @ you:\n"
    )


class TextMazeEnv(gym.Env[str, Any]):
    """Find the exit of a maze by reading.

    Observations look like "Wall north, new east, once south, often west. The exit is near north, far
    east.": what each neighbour is (new, visited once, twice or often in this episode, or a wall), then
    where the exit lies; near is one row or column, far is more. So their number does not grow with the
    size of the maze. Actions are 0 north, 1 east, 2 south, 3 west; a move into a wall stays in place
    and costs a step. Reaching the exit terminates, the time limit truncates. `info` always holds
    `layout_seed`, `shortest` (steps from start to exit), `position` (row and column, from 1) and
    `success`.

    `reset(options={"layout_seed": k})` plays one certain maze; otherwise a layout seed is drawn from
    `seed_range`, so disjoint ranges keep training and held-out mazes disjoint.

    Args:
        size: Rows and columns of the maze.
        density: Fraction of cells that are obstacles.
        seed_range: Half-open range of layout seeds.
        max_steps: Time limit in steps; None is `2 * size²`.
        step_reward: Reward of every step that does not reach the exit.
        exit_reward: Reward of the step that reaches it.
        memory: Whether the text tells new cells from visited ones, or calls all of them open. Without
            it, a policy that sees one text at a time runs in circles.
        layout: Whether the text goes on with absolute positions and the whole map.
        render_mode: "human", "rgb_array", "ansi" or None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    metadata = {"render_modes": ["human", "rgb_array", "ansi"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        size: int = 6,
        density: float = 0.25,
        seed_range: tuple[int, int] | list[int] = (0, 1_000_000),
        max_steps: int | None = None,
        step_reward: float = -1.0,
        exit_reward: float = 1.0,
        memory: bool = True,
        layout: bool = False,
        render_mode: str | None = None,
    ) -> None:
        modes = (None, *self.metadata["render_modes"])
        limit = max_steps is None or _is_int(max_steps, 1)
        _check("size", size, _is_int(size, 2), "an integer of at least 2")
        _check("density", density, _is_real(density) and 0 <= density < 1, "a number in [0, 1)")
        _check("seed_range", seed_range, _is_range(seed_range), "two integers, 0 <= low < high")
        _check("max_steps", max_steps, limit, "None or an integer of at least 1")
        _check("step_reward", step_reward, _is_real(step_reward), "a finite number")
        _check("exit_reward", exit_reward, _is_real(exit_reward), "a finite number")
        _check("memory", memory, isinstance(memory, bool), "True or False")
        _check("layout", layout, isinstance(layout, bool), "True or False")
        _check("render_mode", render_mode, render_mode in modes, f"one of {modes}")
        self.size, self.density = int(size), float(density)
        self.seed_range = (int(seed_range[0]), int(seed_range[1]))
        make_layout(self.size, self.density, self.seed_range[0])  # a hopeless density fails here
        self.max_steps = 2 * self.size**2 if max_steps is None else int(max_steps)
        self.step_reward, self.exit_reward = float(step_reward), float(exit_reward)
        self.memory, self.layout, self.render_mode = memory, layout, render_mode

        self._width = self.size + 2
        self._moves = (-self._width, 1, self._width, -1)
        self._neighbours = _neighbour_table(memory)
        self.action_space = gym.spaces.Discrete(4)
        longest = len(_exit_sentence(-1, -1)) + sum(max(map(len, t)) for t in self._neighbours)
        if layout:
            longest += len(_place(*[self.size] * 5)) + self.size * (self.size + 1) - 1
        # Tight, because `AsyncVectorEnv` copies the longest possible text at every step.
        self.observation_space = text_space(longest)
        self._running = False
        self._window: Any = None
        self._clock: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode in a new maze.

        Args:
            seed: Seed of the generator that draws layout seeds.
            options: Nothing, or `{"layout_seed": k}`.

        Raises:
            ValueError: If `options` holds anything else.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"layout_seed"}:
            raise ValueError(
                f"unknown reset options {sorted(unknown)}: only 'layout_seed' is known"
            )
        self._layout_seed = options.get("layout_seed")
        if self._layout_seed is None:
            self._layout_seed = int(self.np_random.integers(*self.seed_range))
        seed_ok = _is_int(self._layout_seed, 0)
        _check("layout_seed", self._layout_seed, seed_ok, "an integer of at least 0")
        self._maze = make_layout(self.size, self.density, self._layout_seed)
        self._cells = [WALL if wall else 0 for wall in self._maze.walls]
        self._exit_at = divmod(self._maze.exit, self._width)
        self._map = self._draw_map() if self.layout else ""
        self._position = self._maze.start
        self._cells[self._position] = 1
        self._steps = 0
        self._running = True
        if self.render_mode == "human":
            self.render()
        return self._observe(), self._info(False)

    def step(self, action: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move one cell.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If `action` is not 0, 1, 2 or 3.
        """
        if not self._running:
            raise ResetNeeded("no episode is running: call reset() before step()")
        if not 0 <= action <= 3:
            raise ValueError(f"action={action!r}: expected 0 north, 1 east, 2 south or 3 west")
        target = self._position + self._moves[action]
        if self._cells[target] != WALL:
            self._position = target
            self._cells[target] += 1
        self._steps += 1
        success = self._position == self._maze.exit
        truncated = not success and self._steps >= self.max_steps
        self._running = not (success or truncated)
        if self.render_mode == "human":
            self.render()
        reward = self.exit_reward if success else self.step_reward
        return self._observe(), reward, success, truncated, self._info(success)

    def _observe(self) -> str:
        north, east, south, west = self._neighbours
        cells, here, width = self._cells, self._position, self._width
        row, column = divmod(here, width)
        text = (
            north[min(cells[here - width], OFTEN)]
            + east[min(cells[here + 1], OFTEN)]
            + south[min(cells[here + width], OFTEN)]
            + west[min(cells[here - 1], OFTEN)]
            + _exit_sentence(self._exit_at[0] - row, self._exit_at[1] - column)
        )
        if not self.layout:
            return text
        exit_row, exit_column = self._exit_at
        place = _place(row, column, exit_row, exit_column, self.size)
        return text + place + self._put_agent(self._map)

    def _draw_map(self) -> str:
        marks = ["#" if v == WALL else "o" if v else "." for v in self._cells]
        marks[self._maze.exit] = "X"
        rows = range(self._width, self._width * (self.size + 1), self._width)
        return "\n".join("".join(marks[r + 1 : r + 1 + self.size]) for r in rows)

    def _put_agent(self, drawn: str) -> str:
        row, column = divmod(self._position, self._width)
        place = (row - 1) * (self.size + 1) + column - 1
        return f"{drawn[:place]}@{drawn[place + 1 :]}"

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            "layout_seed": self._layout_seed,
            "shortest": self._maze.shortest,
            "position": divmod(self._position, self._width),
            "success": success,
        }

    def render(self) -> np.ndarray | str | None:  # type: ignore[override]
        """The maze: border, start, exit, agent and its trail, darker where it went more often.

        Returns:
            For "rgb_array" a uint8 array `[32 (size + 2), 32 (size + 2), 3]`; for "ansi" a map
            (# wall, . unvisited, o visited, X exit, @ agent); for "human" None, after showing it.

        Raises:
            DependencyNotInstalled: If "human" finds no pygame.
        """
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: pass one to the constructor")
            return None
        if self.render_mode == "ansi":
            return self._put_agent(self._draw_map())
        kinds = np.minimum(self._cells, OFTEN) + 1
        kinds[[self._maze.start, self._maze.exit]] = 5, 6
        picture = PALETTE[kinds.reshape(self._width, self._width)]
        frame = picture.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
        offset = np.arange(PIXELS) - (PIXELS - 1) / 2
        disc = offset[:, None] ** 2 + offset**2 < (0.35 * PIXELS) ** 2
        top, left = (PIXELS * i for i in divmod(self._position, self._width))
        frame[top : top + PIXELS, left : left + PIXELS][disc] = AGENT
        return frame if self.render_mode == "rgb_array" else self._show(frame)

    def _show(self, frame: np.ndarray) -> None:
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                "render_mode='human' opens a pygame window: install pygame-ce, or use 'rgb_array'"
            ) from error
        if self._window is None:
            pygame.display.init()
            pygame.display.set_caption("TextMaze")
            self._window = pygame.display.set_mode(frame.shape[1::-1])
            self._clock = pygame.time.Clock()
        pygame.event.pump()
        self._window.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._clock.tick(self.metadata["render_fps"])

    def close(self) -> None:
        """Close the window of `render_mode="human"`."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = self._clock = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_window": None, "_clock": None}  # windows cannot be copied


def _check(name: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{name}={value!r}: expected {expected}")


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(_is_int(v, 0) for v in value) and value[0] < value[1]


def register() -> None:
    """Make `TextMaze-v0` known to Gymnasium; more than once does no harm."""
    if "TextMaze-v0" not in gym.registry:
        gym.register(id="TextMaze-v0", entry_point="rl_lightning.envs.text_maze:TextMazeEnv")
