"""What the tasks of this room have in common: a task is what one number draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from rl_lightning.core.arguments import check_arguments, check_names
from rl_lightning.core.errors import ConfigurationError, check_range, shortened, whole, whole_seed
from rl_lightning.core.signatures import Signature, signature_of

LIMIT = 10.0
"""Bound of every entry of an observation."""


def check_seeds(name: str, value: Any) -> tuple[int, int]:
    """A half-open range of seeds as two ints.

    Raises:
        ConfigurationError: If it is none.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigurationError(f"{name} must be two whole numbers [low, high), not {value!r}")
    low = whole_seed(f"{name}[0]", value[0])
    return low, whole(f"{name}[1]", value[1], low + 1, 2**32)


def check_choices(name: str, value: Any, least: int) -> tuple[int, ...]:
    """A list of different whole numbers to draw from.

    Raises:
        ConfigurationError: If it is empty, or one of them is too small or there twice.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ConfigurationError(f"{name} must be a list of whole numbers, not {value!r}")
    found = tuple(whole(name, one, least) for one in value)
    if len(set(found)) < len(found):
        raise ConfigurationError(f"{name} must be different numbers, not {list(value)}")
    return found


def check_positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        ConfigurationError: If it is none.
    """
    if value is None or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number above 0, not {value!r}")
    check_range(name, value, 0.0)
    if value == 0:
        raise ConfigurationError(f"{name} must be above 0, not {value}")
    return float(value)


def task_option(options: Mapping[str, Any] | None, others: Sequence[str] = ()) -> int | None:
    """The task that the options of `reset` name; None if one is to be drawn.

    Args:
        options: `task_seed` names a certain task, which may lie outside the range.
        others: Options that somebody else reads.

    Raises:
        ConfigurationError: If there are other options, or the seed is none.
    """
    options = options or {}
    unknown = sorted(set(options) - {"task_seed", *others}, key=str)
    if unknown:
        known = ", ".join(["task_seed", *others])
        raise ConfigurationError(f"reset has no option {unknown[0]!r}: there is {known}")
    if options.get("task_seed") is None:
        return None
    return whole_seed("task_seed", options["task_seed"])


def draw_task(random: np.random.Generator, seed_range: tuple[int, int], named: int | None) -> int:
    """The seed of the next episode's task.

    Args:
        random: The environment's generator.
        seed_range: Half-open range to draw from.
        named: See `task_option`.
    """
    return int(random.integers(*seed_range)) if named is None else named


class TaskEnv(gym.Env[np.ndarray, Any]):
    """An environment whose episode is a task, which one number draws.

    Args:
        seed_range: Half-open range of task seeds.

    Attributes:
        own_options: Options of `reset` beside `task_seed`.
    """

    __signature__ = Signature()
    metadata = {"render_modes": []}  # noqa: RUF012
    own_options: tuple[str, ...] = ()
    _task_seed: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_names(cls, kwargs)
        check_arguments(cls, signature_of(cls).bind_partial(*args, **kwargs).arguments)
        return super().__new__(cls)

    def __init__(self, seed_range: Sequence[int]) -> None:
        self.seed_range = check_seeds("seed_range", seed_range)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next task.

        Args:
            seed: Seed of the generator that draws task seeds.
            options: Nothing, or `{"task_seed": k}` for a certain task; `own_options`.

        Raises:
            ConfigurationError: If `options` holds anything else. Nothing has changed then, but that
                no episode is running.
        """
        self._running = False  # nor is it if this fails
        options = options or {}
        named = task_option(options, self.own_options)
        self._check_options(options)
        super().reset(seed=seed)
        self._task_seed = draw_task(self.np_random, self.seed_range, named)
        begun = self._begin(options)
        self._running = True
        return begun

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse values of `own_options` before anything has changed."""

    def _begin(self, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Forget the episode before, begin the task of `_task_seed`; what `reset` returns."""
        raise NotImplementedError

    def _check_running(self) -> None:
        if not self._running:
            raise ResetNeeded("no episode is running: call reset() before step()")


def discrete_action(action: Any, space: gym.Space[Any]) -> list[int]:
    """The whole numbers of an action, one for each that its space has.

    Args:
        action: As many numbers; of one number alone, the shape does not matter.
        space: `Discrete` or `MultiDiscrete`.

    Raises:
        ValueError: If it is no action of the space.
    """
    if isinstance(space, gym.spaces.MultiDiscrete):
        choices = space.nvec
    else:
        assert isinstance(space, gym.spaces.Discrete)
        choices = np.array([space.n])
    chosen = _numbers(action, space, choices.shape)
    if not ((chosen >= 0) & (chosen < choices) & (chosen == np.floor(chosen))).all():
        raise _no_action(action, space)
    return [int(number) for number in chosen]


def continuous_action(action: Any, space: gym.Space[Any]) -> np.ndarray:
    """The numbers of an action, float64 `[n]`; whoever asks clips them.

    Args:
        action: As many numbers; of one number alone, the shape does not matter.
        space: A `Box` of one dimension.

    Raises:
        ValueError: If they are no finite numbers, or not as many.
    """
    assert space.shape is not None
    return _numbers(action, space, space.shape).astype(np.float64)


def _numbers(action: Any, space: gym.Space[Any], shape: tuple[int, ...]) -> np.ndarray:
    try:
        chosen = np.asarray(action)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_action(action, space) from error
    if chosen.dtype.kind not in "biuf" or not np.isfinite(chosen).all():
        raise _no_action(action, space)
    if chosen.size == 1 and shape == (1,):
        return chosen.reshape(1)
    if chosen.shape != shape:
        raise _no_action(action, space)
    return chosen


def _no_action(action: Any, space: gym.Space[Any]) -> ValueError:
    return ValueError(f"action={shortened(repr(action), 80)}: expected one of {space}")


def bounded(values: Sequence[float]) -> np.ndarray:
    """An observation within `[-LIMIT, LIMIT]`, float32; what is no number becomes the bound."""
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=LIMIT, posinf=LIMIT, neginf=-LIMIT)
    return finite.clip(-LIMIT, LIMIT).astype(np.float32)


def check_disjoint(
    training: Mapping[str, Any], held_out: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Refuse held-out tasks that training could have seen.

    Args:
        training: Arguments of the environment that is trained, or chosen, on.
        held_out: Arguments of the one that is judged by.
        names: Arguments that must have nothing in common: `seed_range` and `splits` are half-open
            ranges, `widths`, `depths` and `data` lists.

    Raises:
        ConfigurationError: That names the first argument whose values overlap.
    """
    for name in names:
        first, second = training.get(name), held_out.get(name)
        if first is None or second is None:
            raise ConfigurationError(
                f"{name} must be given for training and held-out tasks, to tell them apart"
            )
        if name in ("seed_range", "splits"):
            one, other = check_seeds(name, first), check_seeds(name, second)
            overlap = one[0] < other[1] and other[0] < one[1]
        else:
            overlap = bool(set(first) & set(second))
        if overlap:
            raise ConfigurationError(
                f"{name} of training, {list(first)}, overlaps with that of held-out tasks, "
                f"{list(second)}: choose values that have nothing in common"
            )
