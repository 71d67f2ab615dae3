"""TrainingControl-v0: a running training whose learning rate is the agent's to steer.

After Daniel, Taylor & Nowozin (2016), "Learning step size controllers for robust neural network
training", and Xu et al. (2019), "Learning an adaptive learning rate schedule": the state is what
one could plot of a training, the action a change of its settings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range, whole
from rl_lightning.envs.optimise.data import Splits, load_data
from rl_lightning.envs.optimise.flat import FlatNetwork, flat_target, initial_vector
from rl_lightning.envs.optimise.tasks import (
    LIMIT,
    TaskEnv,
    bounded,
    check_choices,
    check_positive,
    check_seeds,
    continuous_action,
    discrete_action,
)
from rl_lightning.envs.optimise.training import by_itself

CONTROLS = ("lr", "momentum", "weight_decay")
FEATURES = (
    "progress",
    "log_train_loss",
    "slope",
    "log_spread",
    "log_val_loss",
    "val_change",
    "behind_best",
    "val_accuracy",
    "log_lr",
    "log_memory",
    "log_weight_decay",
    "log_gradient",
    "log_update_ratio",
    "log_parameters",
)
DIVERGED = 100.0
"""Loss from which a training counts as diverged."""
LR = (1e-5, 10.0)
MEMORY = (1.0, 100.0)
"""Of momentum m, 1 / (1 − m): updates that the running mean of gradients looks back on."""
DECAY = (1e-6, 0.1)
_TINY = 1e-8


class TrainingControlEnv(TaskEnv):
    """Steer one training of a small network, and be rewarded for what it learns.

    An episode is `steps * updates_per_step` minibatch updates by SGD with momentum. The seed of its
    task, drawn from `seed_range`, decides the network's width, depth and initial parameters, the
    division of the data and the batches, so disjoint ranges keep training and held-out tasks apart;
    disjoint `widths` or `splits` hold out more. `reset(options={"task_seed": k})` plays a certain
    task, `{"lr": r}` starts from another rate.

    An action changes the settings first, and then `updates_per_step` updates are made under them.
    Discrete actions choose one of `factors` by which the rate is multiplied; continuous ones, in
    [-1, 1], multiply by `max_factor ** action`. Each of `controls` has an action of its own: with
    more than one, discrete actions are a `MultiDiscrete`. What is multiplied of momentum m is its
    memory 1 / (1 − m). The rate stays in [1e-5, 10], the memory in [1, 100], weight decay in
    [1e-6, 0.1].

    Observations are the `FEATURES`, each in [-10, 10] and finite whatever happens: progress; of the
    last step's training losses the logarithm of the mean, the change from its first to its second
    half, and the logarithm of the standard deviation; logarithms of validation loss, its change in
    the last step and its distance from the lowest so far; validation accuracy; logarithms (scaled)
    of the settings, the last gradient's norm, the last update's norm relative to the parameters',
    and the number of parameters.

    The reward `improvement` is the decrease of the logarithm of the validation loss in each step:
    the return is log(first / last). `final` is the validation accuracy after the last step, and 0
    before. The last step terminates the episode. A training whose loss is not finite or above 100
    has diverged: the episode terminates with the reward `-divergence_penalty`.

    `info` holds `accuracy` and `loss` on the validation part and `lr`; at both ends also
    `task_seed`, `width`, `depth` and `split`, and at the last `diverged` and, if the data have a
    test part, `test_accuracy`.

    Args:
        data: See `load_data`.
        model: See `build_target`.
        widths: Widths to draw from.
        depths: Depths to draw from.
        splits: Half-open range of seeds of the division of the data.
        seed_range: Half-open range of task seeds.
        steps: Actions of an episode.
        updates_per_step: Minibatch updates after each.
        batch_size: Rows of a minibatch, drawn with replacement.
        lr: Learning rate before the first action.
        momentum: Momentum before the first action.
        weight_decay: Weight decay before the first action, added to the gradient as SGD does.
        controls: What is steered: `lr`, `momentum`, `weight_decay`, or several of them.
        actions: `discrete` or `continuous`.
        factors: What discrete actions multiply by.
        max_factor: What the continuous action 1 multiplies by, in [1e-100, 1e100].
        reward: `improvement` or `final`.
        divergence_penalty: Subtracted where a training diverges.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    own_options = ("lr",)

    def __init__(
        self,
        data: str = "digits",
        model: str = "mlp",
        widths: Sequence[int] = (16, 32, 48),
        depths: Sequence[int] = (1, 2),
        splits: Sequence[int] = (0, 100),
        seed_range: Sequence[int] = (0, 1_000_000),
        steps: int = 20,
        updates_per_step: int = 10,
        batch_size: int = 64,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        controls: Sequence[str] = ("lr",),
        actions: Literal["discrete", "continuous"] = "discrete",
        factors: Sequence[float] = (0.5, 0.8, 1.0, 1.25, 2.0),
        max_factor: float = 4.0,
        reward: Literal["improvement", "final"] = "improvement",
        divergence_penalty: float = 5.0,
        render_mode: None = None,
    ) -> None:
        super().__init__(seed_range)
        check_one_of("actions", actions, ("discrete", "continuous"))
        check_one_of("reward", reward, ("improvement", "final"))
        self.data, self.model = data, model
        self.widths = check_choices("widths", widths, 1)
        self.depths = check_choices("depths", depths, 0)
        self.splits = check_seeds("splits", splits)
        self.steps = whole("steps", steps, 1)
        self.updates_per_step = whole("updates_per_step", updates_per_step, 1)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.lr = _within("lr", lr, LR)
        check_range("momentum", momentum, 0.0, 1 - 1 / MEMORY[1])
        check_range("weight_decay", weight_decay, 0.0, DECAY[1])
        self.momentum, self.weight_decay = float(momentum), float(weight_decay)
        self.controls = _controls(controls)
        self.actions, self.reward = actions, reward
        if not isinstance(factors, list | tuple) or len(factors) < 2:
            raise ConfigurationError(f"factors must be at least two numbers, not {factors!r}")
        self.factors = [check_positive("factors", factor) for factor in factors]
        self.max_factor = _within("max_factor", max_factor, (1e-100, 1e100))
        check_range("divergence_penalty", divergence_penalty, 0.0)
        self.divergence_penalty = float(divergence_penalty)
        self.render_mode = render_mode
        splits_now = load_data(data, self.splits[0])  # what cannot be loaded or built fails here
        for width, depth in ((w, d) for w in self.widths for d in self.depths):
            flat_target(model, splits_now.in_shape, splits_now.classes, width, depth)

        self.observation_space = gym.spaces.Box(-LIMIT, LIMIT, (len(FEATURES),), np.float32)
        count = len(self.controls)
        if actions == "continuous":
            self.action_space = gym.spaces.Box(-1.0, 1.0, (count,), np.float32)
        elif count == 1:
            self.action_space = gym.spaces.Discrete(len(self.factors))
        else:
            self.action_space = gym.spaces.MultiDiscrete([len(self.factors)] * count)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        _within("lr", options.get("lr", self.lr), LR)

    def _begin(self, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        self._batches = np.random.default_rng(self._task_seed)
        self._width = int(self._batches.choice(self.widths))
        self._depth = int(self._batches.choice(self.depths))
        self._split = int(self._batches.integers(*self.splits))
        init_seed = int(self._batches.integers(2**32))
        self._lr = _within("lr", options.get("lr", self.lr), LR)
        self._momentum, self._weight_decay = self.momentum, self.weight_decay
        self._weights = initial_vector(self.model, *self._shape(), init_seed)
        self._velocity = np.zeros_like(self._weights)
        self._step = 0
        with by_itself():
            splits, network = self._workbench()
            loss, self._accuracy = network.judge(splits.x_val, splits.y_val)
            train_loss = network.backward(
                splits.x_train[: self.batch_size], splits.y_train[: self.batch_size]
            )
            gradient = network.gradient.norm().item()
        self._log_loss = self._lowest = _log(loss)
        obs = self._observe([train_loss], self._log_loss, gradient, 0.0)
        return obs, {**self._info(), **self._task()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Change the settings and train on.

        Raises:
            ResetNeeded: If no episode is running.
            ValueError: If `action` is none of the action space.
        """
        self._check_running()
        for control, factor in zip(self.controls, self._factors(action), strict=True):
            self._change(control, factor)
        self._step += 1
        before = self._log_loss
        with by_itself():
            splits, network = self._workbench()
            losses, gradient, ratio = self._train(splits, network)
            loss, self._accuracy = network.judge(splits.x_val, splits.y_val)
            self._weights = network.vector.numpy().copy()
            diverged = not (max(losses[-1], loss) <= DIVERGED)  # NaN included
            last = diverged or self._step >= self.steps
            info: dict[str, Any] = {}
            if last:
                info = {**self._task(), "diverged": diverged}
                if splits.x_test is not None and splits.y_test is not None:
                    info["test_accuracy"] = network.judge(splits.x_test, splits.y_test)[1]
        self._log_loss = _log(loss)
        if diverged:
            reward = -self.divergence_penalty
        elif self.reward == "improvement":
            reward = before - self._log_loss
        else:
            reward = self._accuracy if last else 0.0
        self._lowest = min(self._lowest, self._log_loss)
        self._running = not last
        obs = self._observe(losses, before, gradient, ratio)
        return obs, reward, last, False, {**self._info(), **info}

    def _factors(self, action: Any) -> list[float]:
        if self.actions == "continuous":
            exponents = continuous_action(action, self.action_space).clip(-1.0, 1.0)
            return [self.max_factor**a for a in exponents.tolist()]
        return [self.factors[a] for a in discrete_action(action, self.action_space)]

    def _change(self, control: str, factor: float) -> None:
        if control == "lr":
            self._lr = _clip(self._lr * factor, LR)
        elif control == "momentum":
            self._momentum = 1 - 1 / _clip(factor / (1 - self._momentum), MEMORY)
        else:
            self._weight_decay = _clip(self._weight_decay * factor, DECAY)

    def _shape(self) -> tuple[tuple[int, ...], int, int, int]:
        splits = load_data(self.data, self._split)
        return splits.in_shape, splits.classes, self._width, self._depth

    def _workbench(self) -> tuple[Splits, FlatNetwork]:
        """Data and network, shared by all environments of the process, with these parameters."""
        network = flat_target(self.model, *self._shape())
        network.load(self._weights)
        return load_data(self.data, self._split), network

    def _train(self, splits: Splits, network: FlatNetwork) -> tuple[list[float], float, float]:
        """Losses of the updates; norms of the last gradient and, relatively, the last update."""
        shape = (self.updates_per_step, self.batch_size)
        rows = torch.from_numpy(self._batches.integers(len(splits.x_train), size=shape))
        velocity = torch.from_numpy(self._velocity)
        losses = []
        for batch in rows:
            losses.append(network.backward(splits.x_train[batch], splits.y_train[batch]))
            if not losses[-1] <= DIVERGED:
                break
            network.update(velocity, self._lr, self._momentum, self._weight_decay)
        size = network.vector.norm().item() + _TINY
        return losses, network.gradient.norm().item(), self._lr * velocity.norm().item() / size

    def _observe(
        self, losses: list[float], before: float, gradient: float, ratio: float
    ) -> np.ndarray:
        half = max(len(losses) // 2, 1)
        first, second = (np.mean(part) for part in (losses[:half], losses[-half:]))
        return bounded(
            [
                self._step / self.steps,
                _log(float(np.mean(losses))),
                _log(float(second)) - _log(float(first)),
                _log(float(np.std(losses))) / 2,
                self._log_loss,
                5 * (self._log_loss - before),
                5 * (self._log_loss - self._lowest),
                self._accuracy,
                math.log(self._lr / 0.05),
                -math.log(1 - self._momentum),
                math.log(max(self._weight_decay, DECAY[0]) / 1e-4) / 2,
                _log(gradient),
                _log(ratio) / 2,
                math.log(len(self._weights) / 1000),
            ]
        )

    def _info(self) -> dict[str, Any]:
        return {"accuracy": self._accuracy, "loss": math.exp(self._log_loss), "lr": self._lr}

    def _task(self) -> dict[str, Any]:
        return {
            "task_seed": self._task_seed,
            "width": self._width,
            "depth": self._depth,
            "split": self._split,
        }


def _controls(controls: Any) -> tuple[str, ...]:
    if not isinstance(controls, list | tuple) or not controls or len(set(controls)) < len(controls):
        raise ConfigurationError(
            f"controls must be a list of different ones of {', '.join(CONTROLS)}, not {controls!r}"
        )
    for control in controls:
        check_one_of("controls", control, CONTROLS)
    return tuple(controls)


def _within(name: str, value: Any, bounds: tuple[float, float]) -> float:
    check_positive(name, value)
    check_range(name, value, *bounds)
    return float(value)


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _log(x: float) -> float:
    """The logarithm of a loss or a norm; what is not finite counts as very large."""
    return math.log(max(x, _TINY)) if math.isfinite(x) else math.log(1 / _TINY)
