"""Describers of Gymnasium's toy text: one sentence for each state.

Rows and columns count from 1, from the top left.
"""

from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym

ACROSS = (("up", -1, 0), ("right", 0, 1), ("down", 1, 0), ("left", 0, -1))
COMPASS = (("north", -1, 0), ("east", 0, 1), ("south", 1, 0), ("west", 0, -1))
UNDER = {"S": "on the start", "F": "on ice", "H": "in a hole", "G": "on the goal"}
BESIDE = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}
STOPS = ("red", "green", "yellow", "blue")


def describe_frozen_lake(obs: int, env: gym.Env) -> str:
    """FrozenLake: place, the four neighbours and the way to the goal, the nearest if several.

    Args:
        obs: `row * columns + column`.
        env: Supplies the map.
    """
    lake: Any = env.unwrapped
    row, column = divmod(int(obs), lake.ncol)
    tiles = [[cell.decode() for cell in line] for line in lake.desc]
    goals = [(r, c) for r, line in enumerate(tiles) for c, t in enumerate(line) if t == "G"]
    offsets = [(r - row, c - column) for r, c in goals]
    way = min(offsets, key=lambda o: abs(o[0]) + abs(o[1]), default=None)
    around = _around(row, column, lake.nrow, lake.ncol, lambda r, c: BESIDE[tiles[r][c]])
    goal = f"The goal is {_way(*way)}." if way else "There is no goal."
    return f"You are {UNDER[tiles[row][column]]} in {_at(row, column)}. {around} {goal}"


def describe_cliff_walking(obs: int, env: gym.Env) -> str:
    """CliffWalking: place, the four neighbours and the way to the goal in the lower right corner.

    Args:
        obs: `row * columns + column`.
        env: Supplies the shape.
    """
    rows, columns = env.unwrapped.shape  # type: ignore[attr-defined]
    row, column = divmod(int(obs), columns)

    def tile(r: int, c: int) -> str:
        if r < rows - 1 or c == 0:
            return "ground"
        return "goal" if c == columns - 1 else "cliff"

    around = _around(row, column, rows, columns, tile)
    way = _way(rows - 1 - row, columns - 1 - column)
    return f"You are in {_at(row, column)}. {around} The goal is {way}."


def describe_taxi(obs: int, env: gym.Env) -> str:
    """Taxi: its place, walls, where the passenger is and wants to go, seen from the taxi.

    Args:
        obs: `((row * 5 + column) * 5 + passenger) * 4 + destination`; passenger 4 is in the taxi.
        env: Supplies map and stops.
    """
    taxi: Any = env.unwrapped
    row, column, passenger, destination = taxi.decode(int(obs))
    sides = taxi.desc[1 + row, 2 * column + 2], taxi.desc[1 + row, 2 * column]
    free = (row > 0, sides[0] == b":", row < taxi.max_row, sides[1] == b":")
    words = ", ".join(
        f"{'road' if open_ else 'wall'} {word}"
        for open_, (word, _, _) in zip(free, COMPASS, strict=True)
    )

    def stop(index: int) -> str:
        r, c = taxi.locs[index]
        return f"{STOPS[index]}, {_way(r - row, c - column, COMPASS)}"

    waits = "is in the taxi" if passenger == len(STOPS) else f"waits at {stop(passenger)}"
    return (
        f"The taxi is in {_at(row, column)}. {words.capitalize()}. The passenger {waits}. "
        f"The destination is {stop(destination)}."
    )


def describe_blackjack(obs: tuple[int, int, int], env: gym.Env) -> str:
    """Blackjack: the player's sum, whether an ace counts 11, and the dealer's card.

    Args:
        obs: Sum, dealer's card with 1 for the ace, usable ace.
        env: Not used.
    """
    total, dealer, ace = map(int, obs)
    shows = "an ace" if dealer == 1 else str(dealer)
    return (
        f"You hold {total} {'with a' if ace else 'without'} usable ace. The dealer shows {shows}."
    )


def _around(row: int, column: int, rows: int, columns: int, tile: Callable[[int, int], str]) -> str:
    words = []
    for word, down, right in ACROSS:
        r, c = row + down, column + right
        words.append(f"{tile(r, c) if 0 <= r < rows and 0 <= c < columns else 'edge'} {word}")
    return ", ".join(words).capitalize() + "."


def _at(row: int, column: int) -> str:
    return f"row {row + 1}, column {column + 1}"


def _way(down: int, right: int, words: Iterable[tuple[str, int, int]] = ACROSS) -> str:
    up_word, right_word, down_word, left_word = (word for word, _, _ in words)
    parts = []
    if down:
        parts.append(f"{abs(down)} {down_word if down > 0 else up_word}")
    if right:
        parts.append(f"{abs(right)} {right_word if right > 0 else left_word}")
    return ", ".join(parts) or "here"
