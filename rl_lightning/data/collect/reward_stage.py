"""What is learned from, in the place of what environments pay."""

import warnings
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.data.collect.raw import copied, plain, restored
from rl_lightning.envs.failures import told
from rl_lightning.rewards import Reward, Step
from rl_lightning.rewards.make import ENVIRONMENT, name_of
from rl_lightning.rewards.reward import as_numbers

if TYPE_CHECKING:
    from rl_lightning.data.collect.stepper import Taken

WINDOW = 100  # episodes that the average of judged returns runs over, as true ones'


class RewardStage:
    """Turns a step into the reward that is learned from: w_env · r_env + Σ wᵢ · rᵢ.

    It stands in the stepper of training environments only, and remembers of raw observations the
    last one. True returns are counted before it.

    Args:
        rewards: By name.
        num_envs: B.
        device: Where they compute.
        env_weight: w_env.
        env: The environment's name, for messages.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        num_envs: int,
        device: torch.device,
        env_weight: float = 1.0,
        env: str = "the environment",
    ) -> None:
        self.rewards, self.env_weight, self.env, self.device = rewards, env_weight, env, device
        self.judged: deque[float] = deque(maxlen=WINDOW)
        self.steps = 0
        self._obs: Any = None
        self._started = np.ones(num_envs, bool)
        self._judged = np.zeros(num_envs)
        self._sums = dict.fromkeys([ENVIRONMENT, *rewards], 0.0)
        self._count = 0

    def begin(self, obs: Any) -> None:
        """All episodes begin anew, with observations `[B, ...]`.

        Raises:
            ConfigurationError: If they are of a kind that no checkpoint can keep.
        """
        plain(obs, self.env)
        self._obs = copied(obs)
        self._started[:] = True
        self._judged[:] = 0.0

    def __call__(
        self,
        action: np.ndarray,
        took: "Taken",
        led_to: tuple[Any, Mapping[str, Any]],
        next_obs: Any,
        restarts: bool,
    ) -> np.ndarray:
        """Judge a step of every environment.

        Args:
            action: What the environments were given, `[B, ...]`.
            took: What they told.
            led_to: Where the step led to: observations `[B, ...]`, final ones where an episode
                ended, and their info.
            next_obs: Where the next step begins, `[B, ...]`.
            restarts: Whether that is a new episode's first observation where one has ended.

        Returns:
            What is learned from, float64 `[B]`; 0 where the step was a reset.

        Raises:
            RunError: If a reward is not finite, or if there is not one for each environment.
        """
        self.steps += 1
        reward, valid = took.reward, ~took.reset
        step = Step(
            self._obs,
            action,
            led_to[0],
            reward,
            took.terminated,
            took.truncated,
            self._started,
            valid,
            led_to[1],
        )
        total = np.where(valid, reward, 0.0).astype(np.float64)
        self._sums[ENVIRONMENT] += float(total.sum())
        total *= self.env_weight
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for name, judge in self.rewards.items():
                part = self._numbers(name, judge, self._asked(name, judge, step), valid)
                self._sums[name] += float(part.sum())
                total += judge.weight * part
        self._count += int(valid.sum())
        self._judged += total
        self.judged.extend(self._judged[took.done].tolist())
        self._judged[took.done] = 0.0
        self._obs = copied(next_obs)
        self._started = took.done if restarts else took.reset
        return total

    def _asked(self, name: str, judge: Reward, step: Step) -> Any:
        """What a reward says of a step; what a stranger's code raises is told in a sentence."""
        try:
            return judge(step)
        except (ConfigurationError, RunError, OSError, MemoryError, torch.OutOfMemoryError):
            raise  # explains itself, or is the machine's
        except Exception as error:
            raise RunError(
                f"data.rewards: {self._called(name, judge)} failed at step {self.steps} of this "
                f"run in {self.env}: {told(error)}"
            ) from error

    def _called(self, name: str, judge: Reward) -> str:
        return judge.label if name == name_of(type(judge)) else f"{judge.label} ({name})"

    def _numbers(self, name: str, judge: Reward, values: Any, valid: np.ndarray) -> np.ndarray:
        """What a reward returned, `[B]`, with 0 where nothing happened."""
        who = self._called(name, judge)
        try:
            part = as_numbers(values)
        except (TypeError, ValueError):
            raise RunError(
                f"data.rewards: {who} returned {shortened(repr(values), 80)} in {self.env}, which "
                "is no array of numbers"
            ) from None
        if part.shape != valid.shape:
            raise RunError(
                f"data.rewards: {who} returned numbers of the shape {list(part.shape)} for "
                f"{len(valid)} environments of {self.env}; return one for each, [{len(valid)}]"
            )
        part = np.where(valid, part, 0.0)
        if not np.isfinite(part).all():
            b = int(np.argmin(np.isfinite(part)))
            raise RunError(
                f"data.rewards: {who} is {part[b]:g} at step {self.steps} of this run, in "
                f"environment {b} of {len(valid)} (counted from 0) of {self.env}; nothing is "
                "learned from it, and checkpoints written before are good: mend the reward, or "
                "leave it out"
            )
        return part

    def synchronize(self) -> None:
        """Make what rewards have learned equal on all ranks."""
        for reward in self.rewards.values():
            reward.synchronize()

    def metrics(self) -> dict[str, float]:
        """Means per step since the last call, and the judged return of the last episodes."""
        out: dict[str, float] = {}
        if self.judged:
            out["train/judged_return"] = float(np.mean(self.judged))
        if self._count:
            out |= {f"reward/{name}": total / self._count for name, total in self._sums.items()}
            self._sums, self._count = dict.fromkeys(self._sums, 0.0), 0
        for name, reward in self.rewards.items():
            out |= {f"reward/{name}/{key}": value for key, value in reward.metrics().items()}
        return out

    # --- going on -------------------------------------------------------------------------------

    def learned_state(self) -> dict[str, Any]:
        """What rewards have learned, by name: the same on all ranks."""
        return {name: reward.state_dict() for name, reward in self.rewards.items()}

    def load_learned_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `learned_state`; rewards that were not there then begin anew."""
        for name, reward in self.rewards.items():
            if state is not None and name in state:
                reward.load_state_dict(state[name])
            else:
                warnings.warn(
                    f"data.rewards: the checkpoint knows nothing of {name!r}: it begins anew",
                    stacklevel=2,
                )

    def state_dict(self) -> dict[str, Any]:
        """What belongs to the running episodes of this rank."""
        return {
            "obs": plain(self._obs, self.env),
            "started": torch.from_numpy(self._started.copy()),
            "judged": torch.from_numpy(self._judged.copy()),
            "last": list(self.judged),
            "sums": dict(self._sums),
            "count": self._count,
            "rewards": {name: reward.episode_state() for name, reward in self.rewards.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._obs = restored(state["obs"])
        self._started = state["started"].numpy().copy()
        self._judged = state["judged"].numpy().copy()
        self.judged.clear()
        self.judged.extend(state["last"])
        self._sums |= {k: v for k, v in state["sums"].items() if k in self._sums}
        self._count = state["count"]
        for name, reward in self.rewards.items():
            if name in state["rewards"]:
                reward.load_episode_state(state["rewards"][name])
