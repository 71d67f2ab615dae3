"""HyperparameterSearch-v0: a search for hyper-parameters, one trial a step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, check_one_of, whole
from rl_lightning.envs.optimise.data import Splits, load_data
from rl_lightning.envs.optimise.flat import FlatNetwork, flat_target, initial_vector
from rl_lightning.envs.optimise.tasks import (
    LIMIT,
    TaskEnv,
    bounded,
    check_seeds,
    continuous_action,
    discrete_action,
)
from rl_lightning.envs.optimise.training import by_itself

RANGES = {
    "lr": (1e-3, 1.0),
    "width": (4.0, 64.0),
    "weight_decay": (1e-6, 1e-1),
    "batch_size": (8.0, 128.0),
}
"""What an action of −1 and of 1 stands for; in between, on a logarithmic scale."""
MOMENTUM = 0.9
GENERAL = ("progress", "trials_left", "best", "last", "mean", "improvement")
_DATA_NUMBERS = 3


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a trial."""

    lr: float
    width: int
    weight_decay: float
    batch_size: int


class HyperparameterSearchEnv(TaskEnv):
    """Find good hyper-parameters in few trials.

    A step is a trial: a network with `depth` hidden layers is trained from its initial
    parameters for `epochs` passes by SGD with momentum 0.9, under the learning rate, width, weight
    decay and batch size that the action stands for, and its accuracy on the validation part is the
    trial's score. The seed of an episode's task, drawn from `seed_range`, decides the data set
    among `data`, its division, and initial parameters and batches: within an episode, equal
    settings have equal scores. Disjoint `seed_range`, `splits` or `data` keep training and held-out
    tasks apart. `reset(options={"task_seed": k})` plays a certain task.

    Continuous actions are four numbers in [-1, 1], see `settings_of`; discrete ones choose among
    `levels` of each, evenly spaced (`MultiDiscrete`).

    Observations, all finite and in [-10, 10]: the `GENERAL` ones (progress, logarithm of the number
    of trials left, scores: best, last, mean of all, and the last improvement of the best), the last
    trial's and the best trial's action in [-1, 1], and logarithms of the data's rows, numbers of an
    input, and classes.

    The reward is the improvement of the best score by the trial; before the first, the best is the
    share of the commonest class. The last trial terminates the episode. `info` holds the trial's
    `accuracy`, `lr`, `width`, `weight_decay` and `batch_size`; at both ends `task_seed`, `data` (as
    its place in the list) and `split`; at the last `best_accuracy` and, if the data have a test
    part, `test_accuracy` of the best trial's network.

    Args:
        data: Data sets to draw from, see `load_data`.
        model: See `build_target`.
        depth: Hidden layers.
        splits: Half-open range of seeds of the division of the data.
        seed_range: Half-open range of task seeds.
        trials: Of an episode.
        epochs: Passes over the training part in a trial.
        actions: `continuous` or `discrete`.
        levels: Of each hyper-parameter, with discrete actions.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    def __init__(
        self,
        data: Sequence[str] = ("digits", "wine", "breast-cancer"),
        model: str = "mlp",
        depth: int = 1,
        splits: Sequence[int] = (0, 100),
        seed_range: Sequence[int] = (0, 1_000_000),
        trials: int = 10,
        epochs: int = 3,
        actions: Literal["continuous", "discrete"] = "continuous",
        levels: int = 5,
        render_mode: None = None,
    ) -> None:
        super().__init__(seed_range)
        check_one_of("actions", actions, ("continuous", "discrete"))
        if not isinstance(data, list | tuple) or not data or len(set(data)) < len(data):
            raise ConfigurationError(f"data must be a list of different data sets, not {data!r}")
        self.data, self.model = tuple(data), model
        self.depth = whole("depth", depth, 0)
        self.splits = check_seeds("splits", splits)
        self.trials, self.epochs = whole("trials", trials, 1), whole("epochs", epochs, 1)
        self.actions, self.levels = actions, whole("levels", levels, 2)
        self.render_mode = render_mode
        for name in self.data:  # what cannot be loaded or built fails here
            splits_now = load_data(name, self.splits[0])
            width = int(RANGES["width"][0])
            flat_target(model, splits_now.in_shape, splits_now.classes, width, self.depth)

        count = len(GENERAL) + 2 * len(RANGES) + _DATA_NUMBERS
        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, (count,), np.float32)
        if actions == "continuous":
            self.action_space = gym.spaces.Box(-1.0, 1.0, (len(RANGES),), np.float32)
        else:
            self.action_space = gym.spaces.MultiDiscrete([self.levels] * len(RANGES))

    def _begin(self, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        drawn = np.random.default_rng(self._task_seed)
        self._which = int(drawn.integers(len(self.data)))
        self._split = int(drawn.integers(*self.splits))
        splits = self._splits()
        self._best = float(splits.y_val.bincount().max()) / len(splits.y_val)
        self._best_score = -1.0  # of a trial, whatever the commonest class's share is
        self._best_weights = np.zeros(0, np.float32)
        self._best_width = 0
        self._best_action = np.zeros(len(RANGES))
        self._scores: list[float] = []
        return self._observe(np.zeros(len(RANGES)), 0.0), self._task()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Make a trial.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If `action` is none of the action space.
        """
        self._check_running()
        numbers = self._numbers(action)
        settings = settings_of(numbers)
        with by_itself():
            network, score = self._try(settings)
        self._scores.append(score)
        reward = max(score - self._best, 0.0)
        self._best = max(score, self._best)
        if score > self._best_score:
            self._best_score, self._best_action = score, numbers
            self._best_weights, self._best_width = network.vector.numpy().copy(), settings.width
        last = len(self._scores) >= self.trials
        self._running = not last
        info = {"accuracy": score, **asdict(settings)}
        if last:
            info |= {**self._task(), **self._judged()}
        return self._observe(numbers, reward), reward, last, False, info

    def _numbers(self, action: Any) -> np.ndarray:
        if self.actions == "continuous":
            return continuous_action(action, self.action_space).clip(-1.0, 1.0)
        return 2.0 * np.array(discrete_action(action, self.action_space)) / (self.levels - 1) - 1.0

    def _splits(self) -> Splits:
        return load_data(self.data[self._which], self._split)

    def _try(self, settings: Settings) -> tuple[FlatNetwork, float]:
        splits = self._splits()
        shape = (splits.in_shape, splits.classes, settings.width, self.depth)
        network = flat_target(self.model, *shape)
        network.load(initial_vector(self.model, *shape, self._task_seed))
        order = torch.Generator().manual_seed(self._task_seed)
        velocity = torch.zeros_like(network.vector)
        for _ in range(self.epochs):
            rows = torch.randperm(len(splits.x_train), generator=order)
            for batch in rows.split(settings.batch_size):
                loss = network.backward(splits.x_train[batch], splits.y_train[batch])
                if not math.isfinite(loss):
                    return network, 0.0
                network.update(velocity, settings.lr, MOMENTUM, settings.weight_decay)
        return network, network.judge(splits.x_val, splits.y_val)[1]

    def _judged(self) -> dict[str, float]:
        splits = self._splits()
        found = {"best_accuracy": self._best_score}
        if splits.x_test is not None and splits.y_test is not None:
            shape = (splits.in_shape, splits.classes, self._best_width, self.depth)
            with by_itself():
                network = flat_target(self.model, *shape)
                network.load(self._best_weights)
                found["test_accuracy"] = network.judge(splits.x_test, splits.y_test)[1]
        return found

    def _observe(self, numbers: np.ndarray, improvement: float) -> np.ndarray:
        splits, done = self._splits(), len(self._scores)
        general = [
            done / self.trials,
            math.log(self.trials - done + 1),
            self._best,
            self._scores[-1] if done else 0.0,
            sum(self._scores) / done if done else 0.0,
            improvement,
        ]
        sizes = [len(splits.x_train) / 1000, math.prod(splits.in_shape) / 30, splits.classes / 5]
        described = [math.log(size) for size in sizes]
        return bounded([*general, *numbers.tolist(), *self._best_action.tolist(), *described])

    def _task(self) -> dict[str, Any]:
        return {"task_seed": self._task_seed, "data": self._which, "split": self._split}


def settings_of(numbers: Sequence[float] | np.ndarray) -> Settings:
    """Hyper-parameters for four numbers in [-1, 1], each on the logarithmic scale of `RANGES`.

    −1 is the lower end, 0 the geometric mean, 1 the upper end; width and batch size are rounded.
    """
    found = []
    for number, (low, high) in zip(numbers, RANGES.values(), strict=True):
        found.append(low * (high / low) ** ((float(number) + 1) / 2))
    lr, width, weight_decay, batch_size = found
    return Settings(lr, round(width), weight_decay, round(batch_size))
