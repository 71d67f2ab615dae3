"""An environment of which every part can be replaced, to hand over what environments should not."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)


class Strange(gym.Env):
    """Episodes of `length` steps; everything else is what the arguments say.

    Args:
        space: Of observations.
        obs: Makes an observation of the environment; None: a sample of the space's.
        reward: Reward, or makes one of the environment.
        info: Makes an info of the environment.
        act: Action space.
        length: Steps of an episode, which is truncated, or terminated with `terminate`.
        terminate: See `length`.
        final: Makes the final observation of an episode; None: as any other.

    Attributes:
        steps: Taken since the environment was made.
        t: Taken in this episode.
    """

    def __init__(
        self,
        space: gym.Space = BOX,
        obs: Callable[["Strange"], Any] | None = None,
        reward: Any = 1.0,
        info: Callable[["Strange"], Any] | None = None,
        act: gym.Space | None = None,
        length: int = 4,
        terminate: bool = False,
        final: Callable[["Strange"], Any] | None = None,
    ) -> None:
        self.observation_space, self.action_space = space, act or gym.spaces.Discrete(2)
        self.obs, self.reward, self.info, self.final = obs, reward, info, final
        self.length, self.terminate = length, terminate
        self.steps = self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._look(), self.info(self) if self.info else {}

    def step(self, action: Any) -> Any:
        self.t, self.steps = self.t + 1, self.steps + 1
        over = self.t == self.length
        obs = self.final(self) if over and self.final else self._look()
        reward = self.reward(self) if callable(self.reward) else self.reward
        flags = over and self.terminate, over and not self.terminate
        return obs, reward, *flags, self.info(self) if self.info else {}

    def _look(self) -> Any:
        return self.obs(self) if self.obs else self.observation_space.sample()


class Reusing(gym.Env):
    """Counts to 3 in arrays of its own, which it hands out again and again and resets in place.

    Its mask is a list of the same kind, which allows everything but in final observations.
    """

    action_space = gym.spaces.Discrete(2)

    def __init__(self, kind: str = "box", mask: bool = False) -> None:
        box = gym.spaces.Box(-9, 9, (2,), np.float32)
        self.kind, self.mask = kind, mask
        self.observation_space = {
            "box": box,
            "dict": gym.spaces.Dict(a=box, deep=gym.spaces.Dict(b=box)),
            "tuple": gym.spaces.Tuple((box, box)),
            "text": gym.spaces.Dict(a=box, text=gym.spaces.Text(9)),
        }[kind]
        self.count, self.allowed = np.zeros(2, np.float32), [1, 1]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count[:] = 0
        self.allowed[:] = [1, 1]
        return self._look()

    def step(self, action: Any) -> Any:
        self.count += 1
        over = bool(self.count[0] == 3)
        self.allowed[:] = [0, 1] if over else [1, 1]
        obs, info = self._look()
        return obs, 1.0, False, over, info

    def _look(self) -> Any:
        x = self.count
        obs = {"box": x, "dict": {"a": x, "deep": {"b": x}}, "tuple": (x, x)}.get(self.kind)
        obs = {"a": x, "text": f"{x[0]:g}"} if self.kind == "text" else obs
        return obs, {"action_mask": self.allowed} if self.mask else {}


class StrangeVector(gym.vector.VectorEnv):
    """Two rows, as a native vector env that restarts a step late; each part may be replaced.

    Args:
        obs: Makes observations `[2, 3]` of the count of steps.
        reward: Makes rewards `[2]` of the count of steps, and of which rows only reset.
        length: Steps of an episode.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 2,
        obs: Callable[[int], Any] = lambda n: np.zeros((2, 3), np.float32),
        reward: Callable[[int, np.ndarray], Any] = lambda n, resets: np.ones(2),
        length: int = 3,
    ) -> None:
        self.num_envs, self.obs, self.reward, self.length = 2, obs, reward, length
        self.single_observation_space, self.single_action_space = BOX, gym.spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(BOX, 2)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.n = self.t = 0
        return self.obs(0), {}

    def step(self, actions: Any) -> Any:
        self.n += 1
        resets = np.full(2, self.t == self.length)
        self.t = 0 if resets[0] else self.t + 1
        over = np.full(2, self.t == self.length)
        return self.obs(self.n), self.reward(self.n, resets), over, np.zeros(2, bool), {}


def register() -> None:
    if "Strange-v0" not in gym.registry:
        gym.register(
            "Strange-v0", entry_point="strange:Strange", vector_entry_point="strange:StrangeVector"
        )
        gym.register("Reusing-v0", entry_point="strange:Reusing")


register()
