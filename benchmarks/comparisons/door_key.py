"""MiniGrid's DoorKey for many runs: its own observations computed quickly, and in a few words.

Most of a step of MiniGrid goes into cutting out the agent's view, cell by cell. `QuickView` gives
exactly the same view in a fifth of the time, where nothing changes but in front of the agent.
"""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, IDX_TO_OBJECT, OBJECT_TO_IDX, STATE_TO_IDX

WALL, DOOR, UNSEEN = OBJECT_TO_IDX["wall"], OBJECT_TO_IDX["door"], OBJECT_TO_IDX["unseen"]
EMPTY = (OBJECT_TO_IDX["empty"], 0, 0)
OUTSIDE = (WALL, COLOR_TO_IDX["grey"], 0)
DOORS = {index: state for state, index in STATE_TO_IDX.items()}


class QuickView(gym.Wrapper):
    """The observations of a MiniGrid environment, bit for bit, by arrays instead of objects.

    Args:
        env: A MiniGrid environment where cells change only in front of the agent, by its action.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.grid: Any = env.unwrapped
        self.size = self.grid.agent_view_size
        self._of: Any = None  # the grid whose cells these are
        self._seen: dict[bytes, np.ndarray] = {}
        self.grid.gen_obs = self._observe
        # An attribute of an enumeration costs a search, seven times a step.
        self.grid.actions = SimpleNamespace(**{a.name: int(a) for a in self.grid.actions})

    def _observe(self) -> dict[str, Any]:
        grid, size = self.grid, self.size
        if self._of is not grid.grid:
            self._of = grid.grid
            inner = grid.grid.encode()
            self._cells = np.empty((*(n + 2 * size for n in inner.shape[:2]), 3), np.uint8)
            self._cells[:] = OUTSIDE
            self._cells[size:-size, size:-size] = inner
        x, y = map(int, grid.front_pos)
        if 0 <= x < grid.width and 0 <= y < grid.height:
            self._cells[x + size, y + size] = _code(grid.grid.get(x, y))
        left, top, _, _ = grid.get_view_exts()
        part = self._cells[left + size :, top + size :][:size, :size]
        key = part.tobytes() + bytes([grid.agent_dir])
        view = self._seen.get(key)
        if view is None:
            view = self._seen[key] = self._view(part, grid.agent_dir)
        image = view.copy()
        image[size // 2, size - 1] = _code(grid.carrying)
        return {"image": image, "direction": grid.agent_dir, "mission": grid.mission}

    def _view(self, part: np.ndarray, direction: int) -> np.ndarray:
        """The square around the agent as it sees it, looking up."""
        view = np.rot90(part, -1 - direction).copy()
        if not self.grid.see_through_walls:
            kind, state = view[..., 0], view[..., 2]
            opaque = (kind == WALL) | ((kind == DOOR) & (state != STATE_TO_IDX["open"]))
            view[~_visible(opaque.tolist())] = UNSEEN
        return view


def _code(cell: Any) -> tuple[int, int, int]:
    return EMPTY if cell is None else cell.encode()


def _visible(opaque: list[list[bool]]) -> np.ndarray:
    """What light reaches from the middle of the last row, by MiniGrid's rule, bool `[n, n]`."""
    n = len(opaque)
    mask = [[False] * n for _ in range(n)]
    mask[n // 2][n - 1] = True
    for y in reversed(range(n)):
        for order, way in ((range(n - 1), 1), (range(n - 1, 0, -1), -1)):
            for x in order:
                if mask[x][y] and not opaque[x][y]:
                    mask[x + way][y] = True
                    if y:
                        mask[x + way][y - 1] = mask[x][y - 1] = True
    return np.array(mask)


class Cells(gym.ObservationWrapper):
    """The view as one of eight kinds for each cell, as numbers that a small network reads easily:
    uint8 `[n · n · (8 + lights)]`, in place of the entry `observation`.

    Args:
        env: Its observations are a Dict with the view, uint8 `[n, n, 3]`, as `observation`.
        lights: So many kinds of light flicker on free cells, drawn at every look: they mean
            nothing, and no view is seen twice (the "noisy television" of Burda et al. 2019).
    """

    def __init__(self, env: gym.Env, lights: int = 0) -> None:
        super().__init__(env)
        self.lights = lights
        self._each = np.eye(lights, dtype=np.uint8)
        spaces = dict(env.observation_space.spaces)  # type: ignore[attr-defined]
        width, height, _ = spaces["observation"].shape
        kinds = len(KINDS) + lights
        spaces["observation"] = gym.spaces.Box(0, 1, (width * height * kinds,), np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)

    def observation(self, observation: Any) -> Any:
        kind, state = observation["observation"][..., 0], observation["observation"][..., 2]
        cells = _ONE_HOT[kind, state]
        if self.lights:
            drawn = self._each[self.unwrapped.np_random.integers(self.lights, size=kind.shape)]
            cells = np.concatenate([cells, drawn * cells[..., EMPTY_KIND, None]], axis=-1)
        return {**observation, "observation": cells.ravel()}


KINDS = ("unseen", "empty", "wall", "key", "goal", "open door", "closed door", "locked door")
EMPTY_KIND = KINDS.index("empty")
_ONE_HOT = np.zeros((len(IDX_TO_OBJECT), len(DOORS), len(KINDS)), np.uint8)
for _kind, _object in IDX_TO_OBJECT.items():
    for _state, _word in DOORS.items():
        _said = f"{_word} door" if _object == "door" else _object
        if _said in KINDS:
            _ONE_HOT[_kind, _state, KINDS.index(_said)] = 1


def describe(obs: np.ndarray, env: gym.Env) -> str:
    """What is carried and what stands straight ahead: what there is to act on.

    Example: "You carry a key. Ahead is a locked door."

    Args:
        obs: The agent's view, uint8 `[n, n, 3]`.
        env: Not used.
    """
    middle, last = len(obs) // 2, len(obs) - 1
    own, ahead = (_name(obs[middle, y]) or "nothing" for y in (last, last - 1))
    return f"You carry {own}. Ahead is {ahead}."


def _name(cell: np.ndarray) -> str:
    kind = IDX_TO_OBJECT[int(cell[0])]
    if kind in ("unseen", "empty", "floor"):
        return ""
    name = f"{DOORS[int(cell[2])]} door" if kind == "door" else kind
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
