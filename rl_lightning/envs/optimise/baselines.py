"""What a learned policy has to be compared with, as policies of the same environments.

Each acts through the environment's own actions, so an episode costs it what it costs an agent. They
are chosen on other tasks than they are judged by, see `choose`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range
from rl_lightning.envs.optimise.parameter_tuning import ParameterTuningEnv
from rl_lightning.envs.optimise.tasks import check_positive
from rl_lightning.envs.optimise.training_control import TrainingControlEnv

KINDS = ("constant", "cosine", "step", "warmup_cosine")
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
WARMUP = 0.15
"""Share of a training that `warmup_cosine` warms up in."""


class Baseline(Protocol):
    """A policy without parameters to learn."""

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        """Forget the last episode; options for `reset`, beside the task's seed."""
        ...

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> Any:
        """An action, from what `reset` or the last `step` returned."""
        ...


def play(env: gym.Env, baseline: Baseline, task_seed: int) -> dict[str, float]:
    """Play the episode of a task.

    Args:
        env: The environment.
        baseline: Acts in it.
        task_seed: Which task; equal seeds are equal episodes.

    Returns:
        The numbers of the last `info`, and `return`.
    """
    options = baseline.begin(env, task_seed)
    obs, info = env.reset(options={"task_seed": task_seed, **options})
    total, ended = 0.0, False
    while not ended:
        obs, reward, terminated, truncated, info = env.step(baseline.act(obs, info))
        total += float(reward)
        ended = terminated or truncated
    return {"return": total, **{name: float(value) for name, value in info.items()}}


def evaluate(env: gym.Env, baseline: Baseline, task_seeds: Sequence[int]) -> dict[str, float]:
    """Means of what `play` returns over tasks, without the numbers that only name a task."""
    rows = [play(env, baseline, seed) for seed in task_seeds]
    names = [name for name in rows[0] if name not in ("task_seed", "width", "depth", "split")]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def choose(
    env: gym.Env,
    candidates: Sequence[Baseline],
    task_seeds: Sequence[int],
    score: str = "return",
) -> Baseline:
    """The candidate with the highest mean score on some tasks; the first of equals.

    Args:
        env: The environment, of training tasks: not those that it is judged by afterwards.
        candidates: Such as `schedules("cosine")`.
        task_seeds: The tasks to choose on.
        score: Which of `play`'s numbers.

    Raises:
        ConfigurationError: If there is no candidate, no task, or no such score.
    """
    if not candidates or not task_seeds:
        raise ConfigurationError("choosing a baseline needs at least one candidate and one task")
    means = [evaluate(env, candidate, task_seeds) for candidate in candidates]
    if score not in means[0]:
        raise ConfigurationError(f"score={score!r}: use one of {', '.join(means[0])}")
    return candidates[int(np.argmax([mean[score] for mean in means]))]


class Uniform:
    """Uniformly random actions: random search, where an action is a trial or a point.

    In `ParameterTuning-v0` with `moves: from_last` it is a random walk.
    """

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        self._space = env.action_space
        self._random = np.random.default_rng([task_seed, 1])
        return {}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> Any:
        space = self._space
        if isinstance(space, gym.spaces.Box):
            return self._random.uniform(space.low, space.high).astype(np.float32)
        if isinstance(space, gym.spaces.MultiDiscrete):
            return self._random.integers(space.nvec)
        assert isinstance(space, gym.spaces.Discrete)
        return int(self._random.integers(space.n))


def shape_of(kind: str, progress: float, step: float = 0.0) -> float:
    """What a schedule multiplies its rate by.

    `constant`: 1. `cosine`: ½ (1 + cos πp) (Loshchilov & Hutter 2017, without restarts). `step`: 1,
    from one half on 0.3, from three quarters on 0.09. `warmup_cosine`: rises linearly over the
    first `WARMUP` of the training, then falls by a cosine to 0.

    Args:
        kind: One of `KINDS`.
        progress: p, the share of the training that is done, in [0, 1).
        step: The share that one action steers: with it, a warm-up begins above 0.
    """
    if kind == "constant":
        return 1.0
    if kind == "step":
        return 1.0 if progress < 0.5 else 0.3 if progress < 0.75 else 0.09
    if kind == "warmup_cosine":
        if progress < WARMUP:
            return min((progress + step) / (WARMUP + step), 1.0)
        progress = (progress - WARMUP) / (1 - WARMUP)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Schedule:
    """A schedule of the learning rate in `TrainingControl-v0`, with the control `lr` alone.

    The episode starts from the schedule's first rate. Continuous actions then follow it exactly, as
    long as one step changes it by no more than `max_factor`; of discrete ones the factor is taken
    that comes nearest, on a logarithmic scale.

    Args:
        kind: One of `KINDS`.
        rate: Its highest learning rate.

    Raises:
        ConfigurationError: If an argument is wrong.
    """

    def __init__(self, kind: str, rate: float) -> None:
        check_one_of("kind", kind, KINDS)
        self.kind, self.rate = kind, check_positive("rate", rate)

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        control = env.unwrapped
        if not isinstance(control, TrainingControlEnv) or control.controls != ("lr",):
            raise ConfigurationError("Schedule needs TrainingControl-v0 with controls=['lr']")
        self._env, self._step = control, 0
        return {"lr": self.rate * shape_of(self.kind, 0.0, 1 / control.steps)}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> Any:
        env = self._env
        wanted = self.rate * shape_of(self.kind, self._step / env.steps, 1 / env.steps)
        self._step += 1
        change = math.log(max(wanted, 1e-12) / info["lr"])
        if env.actions == "continuous":
            bound = math.log(env.max_factor)
            return np.array([min(max(change / bound, -1.0), 1.0)] if bound else [0.0], np.float32)
        return int(np.argmin([abs(math.log(factor) - change) for factor in env.factors]))

    def __repr__(self) -> str:
        return f"{self.kind} {self.rate:g}"


def schedules(kind: str, rates: Sequence[float] = RATES) -> list[Baseline]:
    """Schedules of one kind, to choose the rate from."""
    return [Schedule(kind, rate) for rate in rates]


class HillClimbing:
    """Tries random moves in `ParameterTuning-v0` and takes back those that raise the loss.

    For discrete actions; taking a move back is a step of its own.
    """

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        _tuning(env, "HillClimbing", "discrete", "from_last")
        self._actions = int(env.action_space.n)  # type: ignore
        self._random = np.random.default_rng([task_seed, 2])
        self._loss, self._last = math.inf, -1
        return {}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> int:
        if self._last >= 0 and info["loss"] > self._loss:
            back, self._last = self._last ^ 1, -1
            return back
        if self._last >= 0 or self._loss == math.inf:
            self._loss = info["loss"]
        self._last = int(self._random.integers(self._actions))
        return self._last


class EvolutionStrategy:
    """The (1+1)-ES with the one-fifth rule (Rechenberg 1973) in `ParameterTuning-v0`.

    For continuous actions and `moves: from_start`: one evaluation a step. The step length grows by
    half with a success and shrinks by its fourth root without (Kern et al. 2004).

    Args:
        sigma: First standard deviation of a step, as a share of `reach`.
    """

    def __init__(self, sigma: float = 0.25) -> None:
        self.sigma = check_positive("sigma", sigma)

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        tuning = _tuning(env, "EvolutionStrategy", "continuous", "from_start")
        self._random = np.random.default_rng([task_seed, 3])
        self._best, self._loss = np.zeros(tuning.directions), math.inf
        self._tried, self._sigma = self._best, self.sigma
        return {}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        first = self._loss == math.inf
        if info["loss"] <= self._loss:
            self._best, self._loss = self._tried, info["loss"]
            self._sigma *= 1.0 if first else 1.5
        else:
            self._sigma *= 1.5**-0.25
        step = self._sigma * self._random.standard_normal(self._best.shape)
        self._tried = (self._best + step).clip(-1.0, 1.0)
        return self._tried.astype(np.float32)


class GradientDescent:
    """Gradient descent in the subspace of `ParameterTuning-v0`, for continuous `from_start`.

    It is no rival: it uses the gradient of the loss in every direction at every step, of which the
    others see a single number. It says how much there is to gain.

    Args:
        lr: Step along the negative gradient.
        momentum: Of heavy-ball momentum.
    """

    def __init__(self, lr: float = 1.0, momentum: float = 0.9) -> None:
        check_range("momentum", momentum, 0.0, 1.0)
        self.lr, self.momentum = check_positive("lr", lr), momentum

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        self._env = _tuning(env, "GradientDescent", "continuous", "from_start")
        self._velocity = np.zeros(self._env.directions)
        return {}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        point = self._env.point
        self._velocity = self.momentum * self._velocity + self._env.gradient(point)
        action = (point - self.lr * self._velocity) / self._env.reach
        return action.clip(-1.0, 1.0).astype(np.float32)


class TPE:
    """Optuna's tree-structured Parzen estimator in `HyperparameterSearch-v0`, by ask and tell.

    After Bergstra et al. (2011). Actions are its parameters: continuous ones as they are, in
    [-1, 1], on which the environment's ranges are logarithmic; discrete ones as ordered levels.

    Args:
        startup: Trials before the model of the good ones is used: uniformly random ones.
    """

    def __init__(self, startup: int = 4) -> None:
        self.startup = startup
        self._optuna = _optuna()

    def begin(self, env: gym.Env, task_seed: int) -> dict[str, Any]:
        samplers = self._optuna.samplers
        sampler = samplers.TPESampler(n_startup_trials=self.startup, seed=task_seed % 2**32)
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        self._space, self._trial = env.action_space, None
        return {}

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        if self._trial is not None:
            self._study.tell(self._trial, info["accuracy"])
        trial = self._trial = self._study.ask()
        space: Any = self._space
        if isinstance(space, gym.spaces.Box):
            count = space.shape[0]
            return np.array(
                [trial.suggest_float(f"a{i}", -1.0, 1.0) for i in range(count)], np.float32
            )
        return np.array([trial.suggest_int(f"a{i}", 0, n - 1) for i, n in enumerate(space.nvec)])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigurationError(
            "TPE needs the package optuna: pip install 'rl-lightning[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _tuning(env: gym.Env, who: str, actions: str, moves: str) -> ParameterTuningEnv:
    tuning, wanted = env.unwrapped, (actions, moves)
    if isinstance(tuning, ParameterTuningEnv) and (tuning.actions, tuning.moves) == wanted:
        return tuning
    raise ConfigurationError(
        f"{who} needs ParameterTuning-v0 with actions={actions!r} and moves={moves!r}"
    )
