"""Random mazes for TextMaze-v0, and pictures of them: pure functions.

Cells are numbered row by row on the grid *with* its border, `size + 2` cells wide. The state
of an episode is a list with one number per cell: `WALL`, or how often the agent was there.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WALL = -1
ATTEMPTS = 1000
PIXELS = 32  # per cell
WALLS, TRAIL = (52, 58, 64), ((248, 249, 250), (208, 235, 255), (165, 216, 255), (116, 192, 252))
START, EXIT, AGENT = (255, 212, 59), (81, 207, 102), (224, 49, 49)
PALETTE = np.array([WALLS, *TRAIL, START, EXIT], dtype=np.uint8)


class Layout(NamedTuple):
    """One maze.

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
    # Not NumPy's generator: Python promises never to change what `seed` and `random` give, so a
    # held-out range means the same mazes everywhere. `sample` and `shuffle` promise nothing.
    rng = random.Random(int(layout_seed))
    width = size + 2
    inside = [row * width + column for row in range(1, size + 1) for column in range(1, size + 1)]
    free = size * size - round(density * size * size)
    for attempt in range(ATTEMPTS if free >= 2 else 0):
        order = sorted(inside, key=lambda _: rng.random())
        walls = [True] * width**2
        for cell in order[:free]:
            walls[cell] = False
        shortest = shortest_path(walls, width, order[0], order[1])
        if shortest >= (2 if attempt < ATTEMPTS // 2 else 1):
            return Layout(tuple(walls), order[0], order[1], shortest)
    raise ValueError(
        f"density={density} gives no solvable maze of size={size} (layout_seed={layout_seed}, "
        f"{ATTEMPTS} draws); choose a lower density, such as 0.25"
    )


def shortest_path(walls: Sequence[bool], width: int, start: int, goal: int) -> int:
    """Steps of the shortest path between two cells, breadth first; 0 if there is none."""
    seen = list(walls)
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


def draw_map(cells: Sequence[int], size: int, exit_: int, agent: int | None = None) -> str:
    """The maze without its border, one row per line: # wall, . new, o visited, X exit, @ agent."""
    marks = ["#" if v == WALL else "o" if v else "." for v in cells]
    marks[exit_] = "X"
    if agent is not None:
        marks[agent] = "@"
    starts = range(size + 3, (size + 2) * (size + 1), size + 2)
    return "\n".join("".join(marks[i : i + size]) for i in starts)


def draw_picture(cells: Sequence[int], size: int, start: int, exit_: int, agent: int) -> np.ndarray:
    """The maze with its border, uint8 `[PIXELS (size + 2), PIXELS (size + 2), 3]`; a blue trail."""
    width = size + 2
    kinds = np.minimum(cells, len(TRAIL) - 1) + 1
    kinds[[start, exit_]] = len(TRAIL) + 1, len(TRAIL) + 2
    frame = PALETTE[kinds.reshape(width, width)].repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
    offset = np.arange(PIXELS) - (PIXELS - 1) / 2
    disc = offset[:, None] ** 2 + offset**2 < (0.35 * PIXELS) ** 2
    top, left = (PIXELS * i for i in divmod(agent, width))
    frame[top : top + PIXELS, left : left + PIXELS][disc] = AGENT
    return frame
