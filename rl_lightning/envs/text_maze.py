"""TextMaze-v0: a random maze that the agent knows only through short English sentences.

Every episode draws a new maze, so a policy must read instead of remembering one map, and a held-out
range of layouts measures what it has understood. The sentences are short and few, so a frozen
language model encodes each of them once.
"""

import math
from functools import cache
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled, ResetNeeded

from rl_lightning.envs.maze import WALL, draw_map, draw_picture, make_layout
from rl_lightning.envs.text import text_space

# Indexed by the visits to a cell: none, one, two, at least three; WALL is -1 and takes the last.
WITH_MEMORY = ("new", "once", "twice", "often", "wall")
WITHOUT_MEMORY = ("open", "open", "open", "open", "wall")
OFTEN = 3


def neighbour_table(memory: bool) -> tuple[tuple[str, ...], ...]:
    """What a text says of a neighbour: first index direction, second min(visits, OFTEN) or WALL."""
    words = WITH_MEMORY if memory else WITHOUT_MEMORY
    return (
        tuple(f"{word.capitalize()} north, " for word in words),
        tuple(f"{word} east, " for word in words),
        tuple(f"{word} south, " for word in words),
        tuple(f"{word} west. " for word in words),
    )


@cache
def exit_sentence(south: int, east: int, exact: bool = False) -> str:
    """Where the exit lies: `south` rows and `east` columns from the agent, or minus as many.

    Args:
        south: Rows.
        east: Columns.
        exact: Give the numbers, instead of near for 1 and far for more.
    """
    parts = []
    for steps, ahead, behind in ((south, "south", "north"), (east, "east", "west")):
        if steps:
            word = abs(steps) if exact else "near" if abs(steps) == 1 else "far"
            parts.append(f"{word} {ahead if steps > 0 else behind}")
    return f"The exit is {', '.join(parts) or 'here'}."


def place_sentence(row: int, column: int, exit_row: int, exit_column: int, size: int) -> str:
    """Absolute positions, from 1, and the legend of the map that follows."""
    return (
        f" You are in row {row}, column {column} of {size}; the exit is in row {exit_row}, "
        f"column {exit_column}. The map, north up, # wall, . open, X exit, @ you:\n"
    )


class TextMazeEnv(gym.Env[str, Any]):
    """Find the exit of a maze by reading.

    Observations look like "Wall north, new east, once south, often west. The exit is near north,
    far east.": what each neighbour is (new, or visited once, twice or more often in this episode,
    or a wall), then where it stands relative to the exit: near is one row or column away, far is
    more. So the number of texts hardly grows with the maze; `exact` gives the numbers, for about
    twice as many texts.

    Actions are 0 north, 1 east, 2 south, 3 west; a move into a wall stays in place and costs a
    step. Reaching the exit terminates, the time limit truncates. At the beginning and the end of an
    episode `info` holds `layout_seed`, `shortest` (steps from start to exit), `position` (row and
    column, from 1) and `success`; in between it is empty, because vector environments spend more
    time on four entries than the maze on a step.

    `reset(options={"layout_seed": k})` plays one certain maze; otherwise the seed of the layout is
    drawn from `seed_range`, so disjoint ranges keep training and held-out mazes apart.

    Args:
        size: Rows and columns of the maze.
        density: Fraction of cells that are obstacles.
        seed_range: Half-open range of layout seeds.
        max_steps: Time limit in steps; None is `2 * size²`.
        step_reward: Reward of every step that does not reach the exit.
        exit_reward: Reward of the step that reaches it.
        memory: Whether the text counts visits, or calls every cell open that is no wall. Without
            it, a policy that sees one text at a time runs in circles.
        exact: Whether the text counts the rows and columns to the exit.
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
        exact: bool = False,
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
        _check("exact", exact, isinstance(exact, bool), "True or False")
        _check("layout", layout, isinstance(layout, bool), "True or False")
        _check("render_mode", render_mode, render_mode in modes, f"one of {modes}")
        self.size, self.density = int(size), float(density)
        self.seed_range = (int(seed_range[0]), int(seed_range[1]))
        make_layout(self.size, self.density, self.seed_range[0])  # a hopeless density fails here
        self.max_steps = 2 * self.size**2 if max_steps is None else int(max_steps)
        self.step_reward, self.exit_reward = float(step_reward), float(exit_reward)
        self.memory, self.exact, self.layout = memory, exact, layout
        self.render_mode = render_mode

        self._width = self.size + 2
        self._moves = (-self._width, 1, self._width, -1)
        self._neighbours = neighbour_table(memory)
        self.action_space = gym.spaces.Discrete(4)
        where = {len(exit_sentence(-n, -n, exact)) for n in (1, self.size)}
        longest = max(where) + sum(max(map(len, t)) for t in self._neighbours)
        if layout:
            longest += len(place_sentence(*[self.size] * 5)) + self.size * (self.size + 1) - 1
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
        unknown = sorted(set(options) - {"layout_seed"})
        _check("options", options, not unknown, "no other key than 'layout_seed'")
        layout_seed = options.get("layout_seed")
        if layout_seed is None:
            layout_seed = self.np_random.integers(*self.seed_range)
        _check("layout_seed", layout_seed, _is_int(layout_seed, 0), "an integer of at least 0")
        self._layout_seed = int(layout_seed)
        self._maze = make_layout(self.size, self.density, self._layout_seed)
        self._cells = [WALL if wall else 0 for wall in self._maze.walls]
        self._exit_at = divmod(self._maze.exit, self._width)
        self._position = self._maze.start
        self._steps = 0
        self._map = draw_map(self._cells, self.size, self._maze.exit) if self.layout else ""
        self._cells[self._position] = 1
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
        info = {} if self._running else self._info(success)
        return self._observe(), reward, success, truncated, info

    def _observe(self) -> str:
        north, east, south, west = self._neighbours
        cells, here, width = self._cells, self._position, self._width
        row, column = divmod(here, width)
        exit_row, exit_column = self._exit_at
        text = (
            north[min(cells[here - width], OFTEN)]
            + east[min(cells[here + 1], OFTEN)]
            + south[min(cells[here + width], OFTEN)]
            + west[min(cells[here - 1], OFTEN)]
            + exit_sentence(exit_row - row, exit_column - column, self.exact)
        )
        if not self.layout:
            return text
        at = (row - 1) * (self.size + 1) + column - 1
        place = place_sentence(row, column, exit_row, exit_column, self.size)
        return f"{text}{place}{self._map[:at]}@{self._map[at + 1 :]}"

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            "layout_seed": self._layout_seed,
            "shortest": self._maze.shortest,
            "position": divmod(self._position, self._width),
            "success": success,
        }

    def render(self) -> np.ndarray | str | None:  # type: ignore[override]
        """Show the maze with the agent and its trail, darker where it went more often.

        Returns:
            A picture for "rgb_array" (see `draw_picture`), a map for "ansi" (see `draw_map`), None
            for "human", which shows the picture in a window.

        Raises:
            DependencyNotInstalled: If "human" finds no pygame.
        """
        maze = self._maze
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode: pass one to the constructor")
            return None
        if self.render_mode == "ansi":
            return draw_map(self._cells, self.size, maze.exit, self._position)
        frame = draw_picture(self._cells, self.size, maze.start, maze.exit, self._position)
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
        """Close the window of "human"."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = self._clock = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_window": None, "_clock": None}  # a window cannot be copied


def _check(name: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{name}={value!r}: expected {expected}")


def _is_int(value: Any, least: int) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and bool(value >= least)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(_is_int(v, 0) for v in value) and value[0] < value[1]
