"""Probe environments: tiny tasks whose values and best policies are known by hand.

A probe has a few states, each shown in one of several disguises (vector, image, text, dict …), and
asks for a target action in one of several action spaces. So one task exercises every combination of
encoder and action head.
"""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

Task = Literal[
    "constant", "observation", "delayed", "action", "match", "policy", "recall", "truncated"
]
PRINTABLE = "".join(map(chr, range(32, 127)))

SENTENCES = ("You see a red ball", "There is a green key", "It is dark")

OBSERVATIONS: dict[str, gym.Space] = {
    "vector": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
    "discrete": gym.spaces.Discrete(3, start=1),
    "image": gym.spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "small_image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "text": gym.spaces.Text(40, charset=PRINTABLE),
    "dict": gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "vector": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        }
    ),
    "mixed": gym.spaces.Dict(
        {
            "text": gym.spaces.Text(40, charset=PRINTABLE),
            "vector": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        }
    ),
    "tuple": gym.spaces.Tuple(
        (gym.spaces.Discrete(3), gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
    ),
}
ACTIONS: dict[str, gym.Space] = {
    "discrete": gym.spaces.Discrete(2),
    "multi_discrete": gym.spaces.MultiDiscrete([2, 3]),
    "multi_binary": gym.spaces.MultiBinary(2),
    "box": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
}
# Allowed actions on even and on odd steps of an episode, as action heads understand them.
MASKS: dict[str, tuple[list[int], list[int]]] = {
    "discrete": ([1, 0], [0, 1]),
    "multi_discrete": ([1, 1, 0, 1, 1], [1, 0, 1, 1, 0]),
    "multi_binary": ([1, 0], [0, 1]),
}
NONSENSE = -100.0  # what a native vector env pays for the step it spends on a reset


def show(kind: str, state: int) -> Any:
    """State 0, 1 or 2 in the disguise `kind`."""
    vector = np.array([(-1.0, 0.0), (1.0, 0.0), (0.0, 1.0)][state], np.float32)
    image, small = np.zeros((36, 36, 1), np.uint8), np.zeros((8, 8, 3), np.uint8)
    image[12 * state : 12 * state + 12] = 255
    small[..., state] = 255
    return {
        "vector": vector,
        "discrete": state + 1,
        "image": image,
        "small_image": small,
        "text": SENTENCES[state],
        "dict": {"image": small, "vector": np.zeros(2, np.float32)},
        "mixed": {"text": SENTENCES[state], "vector": np.zeros(2, np.float32)},
        "tuple": (state, np.zeros(2, np.float32)),
    }[kind]


def batch(kind: str, *states: int) -> Any:
    """Several states as a vector env would return them."""
    return stack(OBSERVATIONS[kind], [show(kind, s) for s in states])


def stack(space: gym.Space, items: list[Any]) -> Any:
    """Elements of a space as a vector env batches them."""
    from gymnasium.vector.utils import concatenate, create_empty_array

    return concatenate(space, items, create_empty_array(space, n=len(items), fn=np.zeros))


def goodness(kind: str, action: Any, bit: int) -> float:
    """1 for the right action, −1 for the most wrong one; the right one depends on `bit`."""
    if kind == "discrete":
        return 1.0 if action == bit else -1.0
    if kind == "multi_discrete":
        return float(action[0] == bit) + float(action[1] == 2 * bit) - 1.0
    if kind == "multi_binary":
        return float(action[0] == bit) + float(action[1] == 1 - bit) - 1.0
    target = 0.5 if bit else -0.5
    return 1.0 - 2.0 * min(abs(float(action[0]) - target), 1.0)


def allowed(kind: str, action: Any, mask: Any) -> bool:
    """Whether an action keeps to its mask."""
    if kind == "discrete":
        return bool(mask[action])
    if kind == "multi_discrete":
        return bool(mask[action[0]] and mask[2 + action[1]])
    return bool((np.asarray(action) <= mask).all())


class Probe(gym.Env):
    """One of the tasks; see the tests for their known answers.

    Args:
        task: Which.
        observation: Disguise of the state.
        action: Kind of action space.
        horizon: Steps of a `truncated` episode.
        mask: Report one of `MASKS` in turn, and raise if it is not kept to.
        terminate: Let `truncated` episodes claim to be over for good.
    """

    def __init__(
        self,
        task: Task = "constant",
        observation: str = "vector",
        action: str = "discrete",
        horizon: int = 5,
        mask: bool = False,
        terminate: bool = False,
    ) -> None:
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[action]
        self.task, self.observation, self.action = task, observation, action
        self.horizon, self.mask, self.terminate = horizon, mask, terminate

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        random = self.task in ("observation", "match", "policy", "recall")
        self.state = int(self.np_random.integers(2)) if random else 0
        return show(self.observation, self.state), self._info()

    def step(self, action: Any) -> Any:
        if self.mask and not allowed(self.action, action, MASKS[self.action][self.steps % 2]):
            raise ValueError(f"forbidden action {action} at step {self.steps}")
        self.steps += 1
        reward, terminated, truncated = 0.0, False, False
        match self.task:
            case "constant":
                reward, terminated = 1.0, True
            case "observation":
                reward, terminated = float(2 * self.state - 1), True
            case "action":
                reward, terminated = goodness(self.action, action, 1), True
            case "match":
                reward, terminated = goodness(self.action, action, self.state), True
            case "delayed":
                reward, terminated = float(self.steps == 2), self.steps == 2
                self.state = 1
            case "policy":  # the action is judged one step later
                if self.steps == 1:
                    self.judgement = goodness(self.action, action, self.state)
                    self.state = 2
                else:
                    reward, terminated = self.judgement, True
            case "recall":  # the first observation says what will be right when it is dark
                if self.steps == 1:
                    self.target, self.state = self.state, 2
                else:
                    reward, terminated = goodness(self.action, action, self.target), True
            case "truncated":
                reward, truncated = 1.0, self.steps == self.horizon
                if self.terminate:
                    terminated, truncated = truncated, False
        return show(self.observation, self.state), reward, terminated, truncated, self._info()

    def _info(self) -> dict[str, Any]:
        if not self.mask:
            return {}
        return {"action_mask": np.array(MASKS[self.action][self.steps % 2], np.int8)}


class ProbeVector(gym.vector.VectorEnv):
    """Probes as a native vector env: the step after an episode's end is a reset and pays nonsense.

    Args:
        num_envs: Probes.
        **kwargs: Of each `Probe`.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        self.probes = [Probe(**kwargs) for _ in range(num_envs)]
        self.num_envs = num_envs
        self.single_observation_space = self.probes[0].observation_space
        self.single_action_space = self.probes[0].action_space
        batched = gym.vector.utils.batch_space
        self.observation_space = batched(self.single_observation_space, num_envs)
        self.action_space = batched(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.over = np.zeros(self.num_envs, bool)
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        obs, infos = zip(
            *(p.reset(seed=s) for p, s in zip(self.probes, seeds, strict=True)), strict=True
        )
        return stack(self.single_observation_space, list(obs)), self._info(infos)

    def step(self, actions: Any) -> Any:
        rows = []
        for probe, over, action in zip(
            self.probes,
            self.over,
            gym.vector.utils.iterate(self.action_space, actions),
            strict=True,
        ):
            if over:
                obs, info = probe.reset()
                rows.append((obs, NONSENSE, False, False, info))
            else:
                rows.append(probe.step(action))
        obs, reward, terminated, truncated, infos = zip(*rows, strict=True)
        self.over = np.array(terminated) | np.array(truncated)
        return (
            stack(self.single_observation_space, list(obs)),
            np.array(reward),
            np.array(terminated),
            np.array(truncated),
            self._info(infos),
        )

    @staticmethod
    def _info(infos: Any) -> dict[str, Any]:
        masks = [info["action_mask"] for info in infos if info]
        return {"action_mask": np.stack(masks)} if masks else {}


class Counter(gym.Env):
    """Counts its steps: the observation says how many, rewards are the count; nothing is random.

    Episodes last `length` steps and then terminate, or are truncated with `truncate`.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 3, truncate: bool = False) -> None:
        self.length, self.truncate = length, truncate

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        over = self.count == self.length
        obs = np.array([self.count], np.float32)
        info = {"success": bool(action == 1)} if over else {}
        return obs, float(self.count), over and not self.truncate, over and self.truncate, info


class Uneven(Counter):
    """Environments whose seed is a multiple of 4 have short episodes, the others long ones."""

    def __init__(self, short: int = 2, long: int = 20) -> None:
        super().__init__()
        self.lengths = short, long

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.length = self.lengths[seed % 4 > 0]
        return super().reset(seed=seed, options=options)


class Moody(Counter):
    """A counter of which one, whose seed is odd, does something nasty at its third step.

    Args:
        mood: What: `raise` an error, or an `odd` one that cannot be pickled, return something
            `unpicklable`, `die` of a signal, `leave a child` behind and end, `exit`, or raise in
            its `reset`, or be `born` only in the main process, or `wait` for ever.
        slow: The others take a minute for their third step meanwhile.
        mark: A file to be made before waiting.
        waits_in: What it waits in, if not the `step`: `make` or `reset`.
        render_mode: As Gymnasium's.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        mood: str = "raise",
        slow: bool = False,
        mark: str = "",
        waits_in: str = "step",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(length=50)
        self.render_mode = render_mode
        self.mood, self.slow, self.mark, self.chosen = mood, slow, mark, True
        self.waits_in = waits_in
        if waits_in == "make":
            self.wait()
        if mood == "born" and multiprocessing.parent_process() is not None:
            raise RuntimeError("the licence server is gone")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.chosen = seed % 2 == 1
        if self.waits_in == "reset":
            self.wait()
        if self.mood == "reset" and self.chosen:
            raise RuntimeError("the licence server is gone")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.count == 3:
            if self.chosen:
                info = self.be_moody()
            elif self.slow:
                time.sleep(60)
        return obs, reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def wait(self) -> None:
        Path(self.mark).touch()
        time.sleep(600)

    def be_moody(self) -> dict[str, Any]:
        class OddError(Exception):
            pass

        if self.mood == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mood == "wait":
            self.wait()
        if self.mood == "leave a child":  # which inherits whatever this process has open
            subprocess.Popen(["sleep", "30"], close_fds=False)
            os._exit(3)
        if self.mood == "exit":
            raise SystemExit(3)
        if self.mood in ("raise", "odd"):
            raise {"raise": RuntimeError, "odd": OddError}[self.mood]("the licence server is gone")
        return {"what": lambda: 0} if self.mood == "unpicklable" else {}


class CounterVector(gym.vector.VectorEnv):
    """The same as a native vector env, which restarts on the step after an episode's end."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, length: int = 3, truncate: bool = False) -> None:
        self.num_envs, self.length, self.truncate = num_envs, length, truncate
        self.single_observation_space = Counter.observation_space
        self.single_action_space = Counter.action_space
        batched = gym.vector.utils.batch_space
        self.observation_space = batched(self.single_observation_space, num_envs)
        self.action_space = batched(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.count = np.zeros(self.num_envs, np.int64)
        self.done = np.zeros(self.num_envs, bool)
        return self._obs(), {}

    def step(self, actions: Any) -> Any:
        self.count = np.where(self.done, 0, self.count + 1)
        reward = np.where(self.done, 0.0, self.count)
        self.done = ~self.done & (self.count == self.length)
        none = np.zeros(self.num_envs, bool)
        ended = (none, self.done.copy()) if self.truncate else (self.done.copy(), none)
        return self._obs(), reward, *ended, {}

    def _obs(self) -> np.ndarray:
        return self.count[:, None].astype(np.float32)


def exact_spaces() -> dict[str, gym.Space]:
    """Action spaces that do not contain what a policy computes in float32 and int64."""
    s = gym.spaces
    return {
        "float64 0.1": s.Box(-0.1, 0.1, (3,), np.float64),
        "float64 0.3": s.Box(0.1, 0.3, (2,), np.float64),
        "float32 1.1": s.Box(0.05, 1.1, (2,), np.float32),
        "float16": s.Box(-1, 1, (1,), np.float16),
        "float16 unbounded": s.Box(-np.inf, np.inf, (1,), np.float16),
        "half unbounded": s.Box(0.1, np.inf, (2,), np.float64),
        "no axis": s.Box(-0.1, 0.1, (), np.float64),
        "matrix": s.Box(-0.1, 0.1, (2, 2), np.float64),
        "int64": s.Discrete(3, start=-1),
        "int32": s.Discrete(3, start=-1, dtype=np.int32),
        "uint8": s.Discrete(3, dtype=np.uint8),
        "multi int32": s.MultiDiscrete([2, 3], dtype=np.int32),
        "binary": s.MultiBinary(3),
    }


class Exact(gym.Env):
    """Refuses actions that its action space does not contain, or that have another dtype.

    Pays for large ones, so that policies go to the bounds; and spoils what it was given, as an
    environment that computes in place does.
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, action: str = "int64", length: int = 3, render_mode: str | None = None):
        self.action_space = exact_spaces()[action]
        self.length, self.render_mode = length, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action) or action.dtype != self.action_space.dtype:
            raise ValueError(f"{action!r} is not in {self.action_space}")
        self.steps += 1
        reward = float(np.tanh(np.sum(action, dtype=np.float64)))
        if isinstance(action, np.ndarray):
            action[...] = 0
        return np.zeros(2, np.float32), reward, False, self.steps >= self.length, {}

    def render(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


class ExactVector(gym.vector.VectorEnv):
    """The same as a native vector env."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, action: str = "int64", length: int = 3) -> None:
        self.num_envs, self.length = num_envs, length
        self.single_observation_space = Exact.observation_space
        self.single_action_space = exact_spaces()[action]
        batched = gym.vector.utils.batch_space
        self.observation_space = batched(self.single_observation_space, num_envs)
        self.action_space = batched(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions: Any) -> Any:
        if not self.action_space.contains(actions) or actions.dtype != self.action_space.dtype:
            raise ValueError(f"{actions!r} is not in {self.action_space}")
        actions[...] = 0
        self.steps = (self.steps + 1) % (self.length + 1)
        no, over = (np.full(self.num_envs, x) for x in (False, self.steps == self.length))
        return np.zeros((self.num_envs, 2), np.float32), np.ones(self.num_envs), no, over, {}


class TextAction(gym.Env):
    """Wants words for actions, which no head emits."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Text(5)


def register() -> None:
    if "Probe-v0" not in gym.registry:
        gym.register(
            "Probe-v0", entry_point="probes:Probe", vector_entry_point="probes:ProbeVector"
        )
        gym.register("TextAction-v0", entry_point="probes:TextAction")
        gym.register(
            "Exact-v0", entry_point="probes:Exact", vector_entry_point="probes:ExactVector"
        )
        gym.register("Uneven-v0", entry_point="probes:Uneven")
        gym.register("Moody-v0", entry_point="probes:Moody")
        gym.register(
            "Counter-v0", entry_point="probes:Counter", vector_entry_point="probes:CounterVector"
        )


register()
