"""Environments that are spoken with, for tests: all that they say is in the alphabet of
`token_tools.characters`."""

from typing import Any

import gymnasium as gym

from rl_lightning.envs.text import text_space


class Copying(gym.Env):
    """A letter, a or b, is to be named; the right one pays 1, a wrong one 0. An episode has
    `turns` turns, or where `ragged` as many as its seed says, 1 to 4."""

    def __init__(self, turns: int = 2, ragged: bool = False, text: bool = False) -> None:
        self.observation_space = text_space(10)
        self.action_space = text_space(10) if text else gym.spaces.Discrete(2)
        self.turns, self.ragged, self.text = turns, ragged, text
        self.heard: list[Any] = []
        self.closed = False

    def _say(self) -> str:
        self.right = int(self.np_random.integers(2))
        return "ab"[self.right]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        self.seed_given = seed
        self.left = int(self.np_random.integers(1, 5)) if self.ragged else self.turns
        return self._say(), {}

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict]:
        self.heard.append(action)
        paid = float(action == ("ab"[self.right] if self.text else self.right))
        self.left -= 1
        over = self.left == 0
        return self._say(), paid, over, False, {"success": paid > 0} if over else {}

    def close(self) -> None:
        self.closed = True


class Unseeded(Copying):
    """Begins as it likes, whatever its seed."""

    begun = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict]:
        Unseeded.begun += 1
        return super().reset(seed=Unseeded.begun)


class Masked(gym.Env):
    """Lists what may be done, of which not all is allowed."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {"observation": text_space(10), "actions": text_space(20), "n": gym.spaces.Discrete(2)}
        )
        self.action_space = gym.spaces.Discrete(4)
        self.heard: list[int] = []

    def _told(self) -> tuple[dict, dict]:
        return {"observation": "c", "actions": "d\ne\nf", "n": 0}, {"action_mask": [0, 1, 1, 0]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        return self._told()

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        self.heard.append(action)
        told, info = self._told()
        return told, 0.0, False, False, info


class Seldom(gym.Env):
    """One turn; says that it was a success where its seed leaves 3 by `every`, and else nothing."""

    def __init__(self, every: int = 4) -> None:
        self.observation_space, self.action_space = text_space(10), text_space(10)
        self.every = every

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        self.told = {"success": True} if self.every and (seed or 0) % self.every == 3 else {}
        return "a", {}

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict]:
        return "b", 1.0, True, False, self.told


class Alike:
    """Always begins alike: its `reset` takes no seed."""

    def reset(self) -> str:
        return "a"

    def step(self, action: str) -> Any:
        return "b", 1.0, True, {}


def copying(**kwargs: Any) -> Copying:
    return Copying(**kwargs)


def unseeded(**kwargs: Any) -> Copying:
    return Unseeded(**kwargs)


def masked() -> Masked:
    return Masked()


def failing(where: str = "step", **kwargs: Any) -> Copying:
    env = Copying(**kwargs)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("lost")

    setattr(env, where, fail)
    return env


class Guess:
    """Neither Gymnasium's nor anybody's: `reset` and `step` with results that are objects."""

    class Found:
        def __init__(self, observation: Any, reward: float | None, done: bool) -> None:
            self.observation, self.reward, self.done = observation, reward, done

    def reset(self, seed: int = 0) -> Any:
        self.secret = seed % 10
        return self.Found("ask", None, False)

    def step(self, action: str) -> Any:
        right = action == str(self.secret)
        return self.Found("yes" if right else "no", float(right), right)


class Tools:
    """As TRL's `environment_factory` makes them."""

    def reset(self, **row: Any) -> str:
        self.reward, self.done = 0.0, False
        return "raise the counter to 3"

    def add(self, count: int) -> str:
        """Add to the counter."""
        self.reward += count
        self.done = self.reward >= 3
        return f"now {self.reward:g}"

    def _private(self) -> None:
        raise AssertionError


class Arena:
    """As TextArena's games are."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 1
        self.told, self.left = [(-1, f"game {seed}", "prompt")], 2

    def get_observation(self) -> tuple[int, list]:
        told, self.told = self.told, []
        return 0, told

    def step(self, action: str) -> tuple[bool, dict]:
        self.left -= 1
        self.told = [(0, action, "player"), (-1, f"{self.left} left", "game")]
        return self.left == 0, {}

    def close(self) -> tuple[dict, dict]:
        return {0: 1.0}, {}


def seldom(**kwargs: Any) -> Seldom:
    return Seldom(**kwargs)


def alike() -> Alike:
    return Alike()


ONE = Guess()


def one() -> Guess:
    return ONE


def guess() -> Guess:
    return Guess()


def broken() -> object:
    return object()
