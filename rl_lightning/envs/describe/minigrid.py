"""Describer of MiniGrid and BabyAI: the agent's own view in words, by the rules of BabyAI-Text.

The rules are those of Carta et al. (2023), "Grounding Large Language Models in Interactive
Environments with Online Reinforcement Learning"; the order of the sentences is our own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
from minigrid.core.constants import COLOR_TO_IDX, IDX_TO_COLOR, IDX_TO_OBJECT, STATE_TO_IDX

Cell = tuple[int, int, int]  # type, colour, state

DOOR_STATES = {index: state for state, index in STATE_TO_IDX.items()}
NOTHING = ("unseen", "empty", "floor")
SIDES = (("forward", 0, -1), ("left", -1, 0), ("right", 1, 0))
# What cells may hold: type, colour, state (of an agent its direction).
CELLS = {
    (kind, colour, state)
    for kind, name in IDX_TO_OBJECT.items()
    for colour in COLOR_TO_IDX.values()
    for state in range(4)
    if name not in ("unseen", "empty") or colour == state == 0
}


def describe(obs: Mapping[str, Any], env: gym.Env) -> str:
    """The mission, what is carried, walls straight ahead and beside, then the objects in view.

    A wall is told only if nothing but free floor lies between. Objects come from near to far; at
    equal distance from left to right. Example: "Mission: open the red door. You carry a blue key.
    You see a wall 2 steps left. You see a locked red door 1 step left and 3 steps forward."

    Args:
        obs: `mission`, and `image` as MiniGrid gives it by default: uint8 `[width, height, 3]` with
            type, colour and state of each cell in view; the first index goes from left to right,
            the second towards the agent, which is in the middle of the last row, looking at the
            first. Its own cell holds what it carries.
        env: Not used.

    Raises:
        ValueError: If `obs` is not such a mapping, if the image holds anything else than cells
            (pixels, say, or one-hot planes), or the whole grid with the agent in it.
    """
    seen = _look(obs)
    sentences = [f"Mission: {seen.mission}."]
    if seen.carried is not None:
        sentences.append(f"You carry {_name(seen.carried)}.")
    for side, steps in seen.walls:
        sentences.append(f"You see a wall {_steps(steps, side)}.")
    for right, forward, cell in seen.objects:
        ways = [_steps(abs(right), "right" if right > 0 else "left")] if right else []
        ways += [_steps(forward, "forward")] if forward else []
        sentences.append(f"You see {_name(cell)} {' and '.join(ways)}.")
    return " ".join(sentences)


def describe_briefly(obs: Mapping[str, Any], env: gym.Env) -> str:
    """The same as `describe`, in half as many words, for models that read at each step.

    It begins with where a step would lead to free floor, or through an open door: "free: forward
    right, carrying blue key, wall: left 2, locked red door: forward 3 left 1, mission: open the red
    door". Words are lower-cased and come after a space, so that a thing has the same tokens
    wherever it is told. The mission comes last, and a place begins with a word that is also an
    action's, so that a model which goes on with a text as it went on before has something to go by.

    Args:
        obs: See `describe`.
        env: Not used.

    Raises:
        ValueError: See `describe`.
    """
    seen = _look(obs)
    parts = [f"free: {' '.join(seen.free)}"] if seen.free else []
    if seen.carried is not None:
        parts.append(f"carrying {_words(seen.carried)}")
    parts += [f"wall: {side} {steps}" for side, steps in seen.walls]
    for right, forward, cell in seen.objects:
        ways = [f" forward {forward}"] if forward else []
        ways += [f" {'right' if right > 0 else 'left'} {abs(right)}"] if right else []
        parts.append(f"{_words(cell)}:{''.join(ways)}")
    return ", ".join([*parts, f"mission: {seen.mission}"])


class _Seen(NamedTuple):
    """What an observation tells: walls as (side, steps), objects as (right, forward, cell)."""

    mission: str
    carried: Cell | None
    walls: list[tuple[str, int]]
    objects: list[tuple[int, int, Cell]]
    free: list[str]


def _look(obs: Mapping[str, Any]) -> _Seen:
    if not (isinstance(obs, Mapping) and "image" in obs and "mission" in obs):
        raise ValueError(
            "expected MiniGrid's own observation, a mapping with 'image' and 'mission': put "
            "Describe directly around the environment"
        )
    image, mission = obs["image"], obs["mission"]
    cells = (
        [[tuple(cell) for cell in column] for column in image.tolist()] if _is_view(image) else []
    )
    if not cells or not all(cell in CELLS for column in cells for cell in column):
        raise ValueError(
            "expected type, colour and state of the cells in view in obs['image'], [n, n, 3], not "
            f"what it holds, {list(image.shape)}"
        )
    if not isinstance(mission, str):
        raise ValueError(f"expected a text in obs['mission'], not {type(mission).__name__}")
    kinds = [[IDX_TO_OBJECT[cell[0]] for cell in column] for column in cells]
    if any("agent" in column for column in kinds):
        raise ValueError("expected the agent's own view in obs['image'], not the whole grid")
    middle, last = len(cells) // 2, len(cells[0]) - 1
    carried = cells[middle][last] if kinds[middle][last] not in NOTHING else None
    walls = [
        (side, steps) for side, dx, dy in SIDES if (steps := _wall(kinds, middle, last, dx, dy))
    ]
    objects = [
        (last - y + abs(x - middle), x - middle, last - y, cells[x][y])
        for x in range(len(cells))
        for y in range(last + 1)
        if kinds[x][y] not in (*NOTHING, "wall") and (x, y) != (middle, last)
    ]
    nearest = [(right, forward, cell) for _, right, forward, cell in sorted(objects)]
    free = [
        side
        for side, dx, dy in SIDES
        if kinds[middle + dx][last + dy] in ("empty", "floor")
        or (kinds[middle + dx][last + dy] == "door" and cells[middle + dx][last + dy][2] == 0)
    ]
    return _Seen(mission.rstrip("."), carried, walls, nearest, free)


def _is_view(image: Any) -> bool:
    """Whether an image has the shape of an agent's view, which is a square with a middle."""
    width, height, parts = image.shape if image.ndim == 3 else (0, 0, 0)
    return width == height and width % 2 == 1 and parts == 3


def _wall(kinds: list[list[str]], x: int, y: int, dx: int, dy: int) -> int:
    """Steps to the wall seen in one direction; 0 if something is in between or none is in view."""
    steps = 1
    while 0 <= x + steps * dx < len(kinds) and y + steps * dy >= 0:
        kind = kinds[x + steps * dx][y + steps * dy]
        if kind == "wall":
            return steps
        if kind not in ("empty", "floor"):
            return 0
        steps += 1
    return 0


def _name(cell: Cell) -> str:
    words = _words(cell)
    if IDX_TO_OBJECT[cell[0]] == "lava":
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _words(cell: Cell) -> str:
    kind, colour, state = cell
    words = f"{IDX_TO_COLOR[colour]} {IDX_TO_OBJECT[kind]}"
    return f"{DOOR_STATES[state]} {words}" if IDX_TO_OBJECT[kind] == "door" else words


def _steps(count: int, way: str) -> str:
    return f"{count} step{'s' * (count != 1)} {way}"
