"""The contract between what happens in environments and what is paid for it."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, check_finite
from rl_lightning.core.types import EnvSpec

Shaping = Literal["none", "potential"]


class Step(NamedTuple):
    """One step of B environments, as the environments tell it: nothing is preprocessed.

    Observations and info are the environments' own memory and may be overwritten by the next step:
    copy what you keep.
    """

    obs: Any
    """Where the step began, batched as a vector env batches `[B, ...]`: arrays, tuples of B texts,
    dicts and tuples of those."""
    action: np.ndarray
    """What the environments were given, `[B, ...]`."""
    next_obs: Any
    """What the step led to; where an episode ended its *final* observation, never the first one of
    the episode after it."""
    reward: np.ndarray
    """What the environments paid, `[B]`."""
    terminated: np.ndarray
    """bool `[B]`."""
    truncated: np.ndarray
    """bool `[B]`."""
    started: np.ndarray
    """Where `obs` is the first of its episode, bool `[B]`."""
    valid: np.ndarray
    """False where a NEXT_STEP env spent the step on a reset: nothing happened there, whatever is
    paid there is dropped, and nothing may be learned from it. bool `[B]`."""
    info: Mapping[str, Any]
    """What belongs to `next_obs`; where an episode ended, its final info."""


class Reward:
    """What steps are worth, beside what the environment pays for them.

    Learned from is `env_reward_weight · r_env + Σ weightᵢ · rᵢ`. All returns that are logged stay
    the environment's; `train/judged_return` is what was learned from, and `reward/<name>` the mean
    of rᵢ per step, before its weight.

    A subclass takes an `EnvSpec` as its first constructor argument, checks that it can read what it
    is to judge, hands `weight` and `name` on (`**shared`), and implements `__call__`. One that
    remembers says so in two parts: what it has learned (`state_dict`), which is the same on all
    ranks, and what belongs to the episodes that are being played (`episode_state`).

    Rewards that move (a bonus for what is new) are paid once, when the step is taken. A replay
    buffer keeps what was paid, so a row drawn uniformly was paid half a buffer ago on average: a
    smaller `buffer_frames` is what makes bonuses fresher. What they came to over time is in
    `reward/<name>`; no sample says more.

    Args:
        spec: The environment's spaces.
        weight: Its weight in the sum; 0 only has it logged.
        name: What it is called in logs and checkpoints; None: its class's name, in lower case.

    Raises:
        ConfigurationError: If the weight is not finite or the name no name.

    Attributes:
        num_envs: B, from `setup` on.
        gamma: The agent's discount γ, likewise.
        device: The agent's device, likewise.
    """

    num_envs: int
    gamma: float
    device: torch.device

    def __init__(self, spec: EnvSpec, weight: float = 1.0, name: str | None = None) -> None:
        if weight is None:
            raise ConfigurationError("data.rewards: weight must be a finite number, not None")
        check_finite("data.rewards: weight", weight)
        if name is not None and not (isinstance(name, str) and name.strip() and "/" not in name):
            raise ConfigurationError(
                f"data.rewards: name must be a word without '/', not {name!r}; it names a curve"
            )
        self.spec, self.weight, self.name = spec, float(weight), name

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        """Called once, before the first step: for how many environments, and where to compute."""
        self.num_envs, self.gamma, self.device = num_envs, gamma, device

    def __call__(self, step: Step) -> Any:
        """What a step is worth, before its weight.

        Runs once a step, in order, without gradient and in float32, whatever the precision of
        training; evaluation never asks.

        Returns:
            An array or tensor of finite numbers `[B]`; what stands where `valid` is False is
            dropped.
        """
        raise NotImplementedError

    def synchronize(self) -> None:
        """Make what was learned equal on all ranks; called at the end of each rollout, from replay
        at the end of each epoch."""

    def metrics(self) -> dict[str, float]:
        """Values to log since the last call, each as `reward/<name>/<key>`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, as plain data and tensors: the same on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""

    def episode_state(self) -> dict[str, Any]:
        """What belongs to this rank's running episodes `[B]`; lost where these cannot go on."""
        return {}

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `episode_state`."""


class StateReward(Reward):
    """A reward for being in a state: r = Φ(s′), or potential-based shaping by Φ.

    With `shaping: potential` a step from s to s′ is worth γ Φ(s′) − Φ(s), with Φ = 0 where an
    episode has terminated. Its discounted sum over an episode depends on the first state alone, so
    it changes how fast is learned and not which policy is best (Ng, Harada & Russell 1999). γ is
    the agent's. A truncated episode goes on as far as values are concerned: Φ of its final
    observation stays. Φ(s) is what it was when s was reached, so the same holds for a Φ that is
    learned meanwhile (Devlin & Kudenko 2012).

    Because Φ is 0 at the end, a Φ that is positive takes all it has paid back in the step that
    arrives, and one that is negative pays for it: the best policy is the same, how soon it is found
    is not (a potential is where values begin, Wiewiora 2003). An `offset` that brings the best
    states to 0 makes arriving the last step upward: −1 for a cosine.

    A subclass implements `value`.

    Args:
        spec: See `Reward`, as for
        weight: this
        name: and this.
        shaping: `none` or `potential`.
        offset: Added to Φ, for `potential` alone.

    Raises:
        ConfigurationError: See `Reward`; also for another `shaping`, or for an `offset` that is not
            finite or has no potential to shift.
    """

    def __init__(
        self,
        spec: EnvSpec,
        weight: float = 1.0,
        name: str | None = None,
        shaping: Shaping = "none",
        offset: float = 0.0,
    ) -> None:
        super().__init__(spec, weight, name)
        check_finite("data.rewards: offset", offset)
        self.offset = float(offset)
        if shaping not in get_args(Shaping):
            raise ConfigurationError(
                f"data.rewards: shaping must be 'none' or 'potential', not {shaping!r}"
            )
        if offset and shaping != "potential":
            raise ConfigurationError(
                f"data.rewards: offset={offset} shifts a potential; set shaping: potential, or "
                "leave it out"
            )
        self.shaping: Shaping = shaping
        self._before: np.ndarray | None = None  # Φ of where the next step begins, [B]

    def value(self, obs: Any) -> Any:
        """Φ of observations `[B, ...]`, `[B]`."""
        raise NotImplementedError

    def __call__(self, step: Step) -> Any:
        if self.shaping == "none":
            return as_numbers(self.value(step.next_obs))
        after = self._potential(step.next_obs)
        before = self._before
        if before is None:
            before = self._potential(step.obs)
        elif step.started.any():
            before = np.where(step.started, self._potential(step.obs), before)
        self._before = after
        return self.gamma * np.where(step.terminated, 0.0, after) - before

    def _potential(self, obs: Any) -> np.ndarray:
        return as_numbers(self.value(obs)) + self.offset

    def episode_state(self) -> dict[str, Any]:
        before = self._before
        return {"before": None if before is None else torch.from_numpy(before.copy())}

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        before = state["before"]
        self._before = None if before is None else before.numpy().copy()


def as_numbers(values: Any) -> np.ndarray:
    """What a reward returned, as float64; of any shape."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
