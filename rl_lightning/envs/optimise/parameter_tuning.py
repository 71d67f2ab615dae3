"""ParameterTuning-v0: a network's parameters changed by an agent instead of by gradients.

The parameters move in a random subspace of few dimensions (Li et al. 2018, "Measuring the intrinsic
dimension of objective landscapes"): one action per direction and sign, or a vector.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, check_one_of, whole, whole_seed
from rl_lightning.envs.optimise.data import Splits, load_data
from rl_lightning.envs.optimise.flat import FlatNetwork, flat_target, initial_vector
from rl_lightning.envs.optimise.tasks import (
    LIMIT,
    TaskEnv,
    bounded,
    check_positive,
    continuous_action,
    discrete_action,
)
from rl_lightning.envs.optimise.training import by_itself

GENERAL = ("progress", "log_loss", "loss_change", "accuracy", "accuracy_change", "behind_best")
_TINY = 1e-8


class ParameterTuningEnv(TaskEnv):
    """Raise a network's accuracy by moving its parameters along random directions.

    The parameters are θ = θ₀ + D z: D holds `directions` random unit vectors as columns, the same
    in every episode (`direction_seed`); θ₀, the initial parameters, is drawn by the seed of the
    episode's task, from `seed_range`, so disjoint ranges keep training and held-out tasks apart.
    `reset(options={"task_seed": k})` plays a certain task. Every step evaluates the new parameters
    once on the training part of the data, and that is all an agent gets: no gradient.

    Discrete action 2i is a move of `step_size` along direction i, 2i + 1 one against it. A softmax
    actor over them is the Boltzmann policy, with its logits as energies over the temperature.
    Continuous actions in `[-1, 1]`, one number a direction, move by `step_size * action`
    (`moves: from_last`), or choose the point `reach * action` (`from_start`, for search methods
    that jump). Every z_i stays in `[-reach, reach]`.

    Observations begin with the `GENERAL` ones: progress, logarithm of the loss and its change in
    the last step (×5), accuracy, its change, and its distance from the best so far. Then come, with
    `features: projection`, the projections Dᵀθ of the parameters, `[directions]`, or with
    `statistics` mean and logarithm of the standard deviation of each parameter tensor; and the last
    move, in units of `step_size`, `[directions]`. All are finite and in [-10, 10].

    The reward is the `accuracy` after a step, or its `improvement` in the step. The episode
    terminates after `steps`. `info` holds `accuracy` and `loss` on the training part; at both ends
    also `task_seed`, and at the last what the best parameters of the episode have (by accuracy,
    then by loss): `best_accuracy`, `val_accuracy` and, if the data have a test part,
    `test_accuracy`.

    Args:
        data: See `load_data`.
        model: See `build_target`.
        width: Units of a hidden layer.
        depth: Hidden layers.
        split: Seed of the division of the data.
        seed_range: Half-open range of task seeds.
        directions: Dimensions of the subspace.
        direction_seed: Of its random directions.
        steps: Evaluations of an episode.
        step_size: Longest move along a direction.
        reach: Farthest point along a direction.
        actions: `discrete` or `continuous`.
        moves: `from_last` or, only with continuous actions, `from_start`.
        features: `projection` or `statistics`.
        reward: `improvement` or `accuracy`.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    def __init__(
        self,
        data: str = "wine",
        model: str = "mlp",
        width: int = 8,
        depth: int = 1,
        split: int = 0,
        seed_range: Sequence[int] = (0, 1_000_000),
        directions: int = 16,
        direction_seed: int = 0,
        steps: int = 100,
        step_size: float = 0.5,
        reach: float = 4.0,
        actions: Literal["discrete", "continuous"] = "discrete",
        moves: Literal["from_last", "from_start"] = "from_last",
        features: Literal["projection", "statistics"] = "projection",
        reward: Literal["improvement", "accuracy"] = "improvement",
        render_mode: None = None,
    ) -> None:
        super().__init__(seed_range)
        check_one_of("actions", actions, ("discrete", "continuous"))
        check_one_of("moves", moves, ("from_last", "from_start"))
        check_one_of("features", features, ("projection", "statistics"))
        check_one_of("reward", reward, ("improvement", "accuracy"))
        if moves == "from_start" and actions == "discrete":
            raise ConfigurationError(
                "moves='from_start' chooses a point, which needs actions='continuous'"
            )
        self.data, self.model = data, model
        self.width, self.depth = whole("width", width, 1), whole("depth", depth, 0)
        self.split = whole_seed("split", split)
        self.steps = whole("steps", steps, 1)
        self.step_size = check_positive("step_size", step_size)
        self.reach = check_positive("reach", reach)
        self.actions, self.moves = actions, moves
        self.features, self.reward = features, reward
        self.render_mode = render_mode
        _, network = self._workbench()
        size = int(network.trained.sum())
        self.directions = whole("directions", directions, 1, size)
        self.direction_seed = whole_seed("direction_seed", direction_seed)

        numbers = self.directions if features == "projection" else 2 * len(network.sizes)
        count = len(GENERAL) + numbers + self.directions
        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, (count,), np.float32)
        if actions == "discrete":
            self.action_space = gym.spaces.Discrete(2 * self.directions)
        else:
            self.action_space = gym.spaces.Box(-1.0, 1.0, (self.directions,), np.float32)

    def _begin(self, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        self._start = initial_vector(self.model, *self._shape(), self._task_seed)
        self._point = np.zeros(self.directions)
        self._step = 0
        self._loss, self._accuracy = self.objective(self._point)
        self._best, self._best_point = (self._accuracy, -self._loss), self._point.copy()
        obs = self._observe(self._loss, self._accuracy, np.zeros(self.directions))
        return obs, {**self._info(), "task_seed": self._task_seed}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the parameters and evaluate them.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If `action` is none of the action space.
        """
        self._check_running()
        before, loss, accuracy = self._point, self._loss, self._accuracy
        self._point = self._moved(action)
        self._step += 1
        self._loss, self._accuracy = self.objective(self._point)
        if (self._accuracy, -self._loss) > self._best:
            self._best, self._best_point = (self._accuracy, -self._loss), self._point.copy()
        last = self._step >= self.steps
        self._running = not last
        reward = self._accuracy - (accuracy if self.reward == "improvement" else 0.0)
        info = self._info()
        if last:
            info |= {"task_seed": self._task_seed, **self._judged()}
        obs = self._observe(loss, accuracy, (self._point - before) / self.step_size)
        return obs, reward, last, False, info

    def objective(self, point: np.ndarray) -> tuple[float, float]:
        """Loss and accuracy on the training part at z = `point`, `[directions]`."""
        with by_itself():
            splits, network = self._workbench()
            network.load(self._parameters(point))
            return network.judge(splits.x_train, splits.y_train)

    def gradient(self, point: np.ndarray) -> np.ndarray:
        """The gradient of that loss in z, `[directions]`: for comparison, no agent sees it."""
        with by_itself():
            splits, network = self._workbench()
            network.load(self._parameters(point))
            network.backward(splits.x_train, splits.y_train)
            return np.einsum("p,pd->d", network.gradient.numpy(), self._subspace())

    @property
    def point(self) -> np.ndarray:
        """Where the parameters are, z `[directions]`."""
        return self._point.copy()

    def _moved(self, action: Any) -> np.ndarray:
        if self.actions == "discrete":
            (chosen,) = discrete_action(action, self.action_space)
            move = np.zeros(self.directions)
            move[chosen // 2] = -self.step_size if chosen % 2 else self.step_size
            wanted = self._point + move
        else:
            inside = continuous_action(action, self.action_space).clip(-1.0, 1.0)
            if self.moves == "from_start":
                return self.reach * inside
            wanted = self._point + self.step_size * inside
        return wanted.clip(-self.reach, self.reach)

    def _shape(self) -> tuple[tuple[int, ...], int, int, int]:
        splits = load_data(self.data, self.split)
        return splits.in_shape, splits.classes, self.width, self.depth

    def _workbench(self) -> tuple[Splits, FlatNetwork]:
        return load_data(self.data, self.split), flat_target(self.model, *self._shape())

    def _subspace(self) -> np.ndarray:
        _, network = self._workbench()
        trained = network.trained.numpy()
        drawn = random_directions(int(trained.sum()), self.directions, self.direction_seed)
        if trained.all():
            return drawn
        subspace = np.zeros((len(trained), self.directions))
        subspace[trained] = drawn
        return subspace

    def _parameters(self, point: np.ndarray) -> np.ndarray:
        # Not by `@`: BLAS sums in another order on more threads.
        moved = np.einsum("pd,d->p", self._subspace(), point)
        return self._start + moved.astype(np.float32)

    def _judged(self) -> dict[str, float]:
        with by_itself():
            splits, network = self._workbench()
            network.load(self._parameters(self._best_point))
            found = {"val_accuracy": network.judge(splits.x_val, splits.y_val)[1]}
            if splits.x_test is not None and splits.y_test is not None:
                found["test_accuracy"] = network.judge(splits.x_test, splits.y_test)[1]
        return {"best_accuracy": self._best[0], **found}

    def _observe(self, loss: float, accuracy: float, move: np.ndarray) -> np.ndarray:
        log_loss = math.log(self._loss + _TINY)
        general = [
            self._step / self.steps,
            log_loss,
            5 * (log_loss - math.log(loss + _TINY)),
            self._accuracy,
            self._accuracy - accuracy,
            self._best[0] - self._accuracy,
        ]
        parameters = self._parameters(self._point)
        if self.features == "projection":
            features = np.einsum("p,pd->d", parameters, self._subspace()).tolist()
        else:
            _, network = self._workbench()
            tensors = np.split(parameters, np.cumsum(network.sizes)[:-1])
            features = [float(t.mean()) for t in tensors]
            features += [math.log(float(t.std()) + _TINY) / 2 for t in tensors]
        return bounded([*general, *features, *move.tolist()])

    def _info(self) -> dict[str, Any]:
        return {"accuracy": self._accuracy, "loss": self._loss}


@lru_cache(maxsize=16)
def random_directions(size: int, count: int, seed: int) -> np.ndarray:
    """Random unit vectors as the columns of a matrix `[size, count]`; nothing may change it."""
    drawn = np.random.default_rng([seed, size, count]).standard_normal((size, count))
    drawn /= np.linalg.norm(drawn, axis=0)
    drawn.flags.writeable = False
    return drawn
