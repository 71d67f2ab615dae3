"""Functions of a goal environment, for many goals at once, or one by one where that is wrong."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.failures import told

GoalFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
PROBES = 8
_ANSWERS = {"compute_reward": ("reward", np.float32), "compute_terminated": ("flag", bool)}


def goal_function(env: gym.Env, name: str, space: gym.Space) -> GoalFunction | None:
    """`compute_reward` or `compute_terminated`, for batches of achieved and desired goals.

    Some environments compute whole batches; others, like those of Gymnasium-Robotics, define these
    functions for one goal and answer a batch wrongly: with a single answer, or with one made of all
    its goals. So it is tried out which is meant. One by one takes a Python call for each goal.

    Args:
        env: The environment.
        name: Of the function, which takes `(achieved, desired, info)`.
        space: Of goals.

    Returns:
        A function of `[n, ...]` achieved and desired goals that gives `[n]` rewards or flags; None
        if the environment has none of that name.

    Raises:
        ConfigurationError: If it gives one answer for each goal neither way. An answer that is the
            same for whatever goal, and for a batch a single one, tells nothing and is none, unless
            the environment has `compute_truncated` too: this is how GoalEnv of Gymnasium-Robotics
            says that a task goes on.
    """
    function = find_method(env, name)
    if function is None:
        return None
    word, kind = _ANSWERS[name]

    def batched(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        answers = np.asarray(function(achieved, desired, {}), kind)
        if answers.shape != (len(achieved),):
            raise ConfigurationError(
                f"data.her_goals: {name} must give one {word} for each goal; for {len(achieved)} "
                f"goals it gave shape {list(answers.shape)}"
            )
        return answers

    def one_by_one(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        pairs = zip(achieved, desired, strict=True)
        answers = [np.asarray(function(a, d, {}), kind) for a, d in pairs]
        return np.array([answer.item() for answer in answers], kind)

    achieved, desired = _probes(space)
    together, said = _try(batched, achieved, desired)
    singly, objected = _try(one_by_one, achieved, desired)
    if together is not None and (singly is None or np.allclose(together, singly, equal_nan=True)):
        return batched
    differ = singly is not None and len(set(singly.tolist())) > 1
    if differ or (singly is not None and find_method(env, "compute_truncated") is not None):
        return one_by_one
    if singly is not None:
        objected = f"for each of them alone {singly[0]}"
    raise ConfigurationError(
        f"data.her_goals: {name} must give one {word} for each goal of a batch, or for a single "
        f"goal; {said or 'for a batch it gave others than for single ones'}, and {objected}"
    )


def find_method(env: gym.Env, name: str) -> Any:
    """A method of an environment or one of its wrappers; None if there is none."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None


def _probes(space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    """Achieved and desired goals: a reached one, random pairs, and the two ends of the space."""
    space = copy.deepcopy(space)
    space.seed(0)
    goals = np.stack([space.sample() for _ in range(PROBES + 1)])
    achieved, desired = np.delete(goals, 1, 0), np.repeat(goals[:1], PROBES, 0)
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        achieved[-1], desired[-1] = space.low, space.high
    return achieved, desired


def _try(function: GoalFunction, *goals: np.ndarray) -> tuple[np.ndarray | None, str]:
    """What it gives, or why nothing."""
    try:
        return function(*goals), ""
    except ConfigurationError as error:
        return None, str(error).partition("; ")[2]
    except (Exception, SystemExit) as error:  # a stranger's function may do anything
        return None, f"it raised {told(error)}"
