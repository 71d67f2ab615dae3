"""The seam between what acts and learns, and what collects and stores.

`rl_lightning.agents` stands on one side, `rl_lightning.data` on the other, and neither imports the
other. Whoever collects somewhere else (in another process, on another machine) needs an `Actor` and
no more.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.types import EnvSpec, Rollout, Stored


class Actor(Protocol):
    """What steps environments: observations in, actions out, and what it remembers in between."""

    spec: EnvSpec

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def unread(self) -> set[tuple[Any, ...]]:
        """Entries of observations that it never looks at: what they hold need not be finite."""
        ...

    @property
    def mask_dim(self) -> int:
        """Width of the action masks it takes, A; 0 for none."""
        ...

    def preprocess(self, obs: Any) -> Stored:
        """Raw vector-env observations `[B, ...]` → what `act` takes and storage keeps."""
        ...

    def observe(self, obs: Any) -> None:
        """Show a raw training observation to the running statistics."""
        ...

    def read_mask(self, info: Mapping[str, Any]) -> Tensor | None:
        """The action mask that a vector env reports, bool `[B, A]`, or None."""
        ...

    def initial_state(self, num_envs: int) -> Tensor | None:
        """Recurrent state of fresh episodes, `[B, H]`; None without memory."""
        ...

    def act(
        self,
        x: Any,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`action` `[B, ...]`, what the loss needs later, and `next_state` with memory."""
        ...

    def act_uniformly(self, num_envs: int, mask: Tensor | None = None) -> Tensor:
        """Actions drawn uniformly from all allowed ones, `[B, ...]`."""
        ...

    def inspect(
        self, x: Any, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the policy thinks of observations, for transcripts."""
        ...

    def begin_rollout(self) -> None:
        """Called before collecting: until the next call only updates may change what it says."""
        ...

    def synchronize(self) -> None:
        """Make running statistics equal on all ranks; called after collecting."""
        ...

    def repeats(self) -> bool | Mapping[str, Any]:
        """Whether few different observations come many times, see `Encoder.repeats`."""
        ...

    def encoder_metrics(self) -> dict[str, float]:
        """What encoders have to log since the last call."""
        ...

    def collection_state(self) -> dict[str, Any]:
        """What exact resuming needs beyond weights."""
        ...

    def load_collection_state(self, state: dict[str, Any]) -> None:
        """Restore what `collection_state` returned."""
        ...


class Learner(Protocol):
    """What is trained on experience: how it wants it, and what it is told."""

    frames: int
    gamma: float
    learns_from: tuple[str, ...]
    learns_from_rewards: bool
    reuses_rollouts: bool
    sequence_length: int | None
    tells_priorities: bool

    def prepare(self, rollout: Rollout) -> TensorDict:
        """A rollout → the batch `[T, B]` that minibatches come from."""
        ...

    def tick(
        self, frames: int, progress: float, measure: Callable[[], Mapping[str, float]]
    ) -> None:
        """Tell it the time."""
        ...

    def plan_updates(self) -> bool:
        """Whether a step of the trainer is to be a run of updates, see `UpdateRun`."""
        ...

    def stop_passes(self) -> bool:
        """Whether to skip the remaining passes over the current rollout."""
        ...

    def check_loss(self) -> None:
        """Raise if the last loss was not finite."""
        ...

    def explain(self, error: Exception) -> None:
        """Raise if lost numbers are the reason for an error."""
        ...


class Trainee(Actor, Learner, Protocol):
    """Both, in one module: what a trainer trains."""

    training: bool

    def train(self, mode: bool = True) -> Any:
        """Switch to the mode in which it is trained, see `torch.nn.Module.train`."""
        ...

    def eval(self) -> Any:
        """Switch to the mode in which it acts."""
        ...


class PreferenceLearner(Trainee, Protocol):
    """What learns a reward from labels: which of two steps is better, or what one is worth."""

    inputs: str
    """`next_obs` or `transition`: what it judges, and so what is asked about."""
    objective: str
    """`preferences`, of pairs, or `regression` or `classification` of single ones."""

    def measure_over(self, rows: Callable[[], Iterable[TensorDict]]) -> None:
        """Told where the training observations are, `[n]` of each batch, for its statistics."""
        ...


class TokenLearner(Trainee, Protocol):
    """A language model that is tuned by what its completions of prompts are worth."""

    backbone: Any
    """The model, a `rl_lightning.llm.backbone.Backbone` with its head."""
    max_length: int
    """Most tokens of prompt and completion together."""
    updates: int
    smallest_group: int
    """Completions of each prompt that it needs."""
    min_reward: float | None
    """Reward from which it learns from a completion; None: whatever it is."""

    def prepare_completions(self, batch: TensorDict, rows: int, once: bool) -> TensorDict:
        """What minibatches of so many rows come from, see `rl_lightning.agents.TokenAgent`.

        Args:
            batch: Completions with their rewards, `[P]`.
            rows: Prompts of one minibatch.
            once: Whether a single update learns from them.
        """
        ...


class Measuring:
    """A callback with something to log beside the losses, whenever they are logged."""

    def measures(self) -> Mapping[str, float]:
        """Name → value, as it stands."""
        raise NotImplementedError
