"""The contract between observations and agents."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec, Stored


class Encoder(nn.Module):
    """Observation → features, in two halves: preprocess once, forward many times.

    A subclass takes an `EnvSpec` as its first constructor argument, checks that it can read
    `spec.observation_space` (raising `ValueError` with the way out if not), and sets `out_dim`.
    """

    out_dim: int

    def preprocess(self, obs: Any) -> Stored:
        """Turn one raw vector-env observation into what storage keeps.

        Runs once per environment step, without gradient. It must not depend on anything that an
        update changes: a tuned model tokenises here, a frozen one may run its backbone.

        Args:
            obs: What the vector env returned: an array `[B, ...]`, a tuple of `B` strings, or a
                dict or tuple of those. It may be overwritten by the next step: copy what you keep.

        Returns:
            A tensor `[B, ...]`, or a (nested) dict of such tensors; shapes after `B` never change.
        """
        raise NotImplementedError

    def forward(self, x: Any) -> Tensor:
        """Features of stored observations: `[N, ...]` → `[N, out_dim]`; gradient flows."""
        raise NotImplementedError

    def preprocess_raw(self, obs: Any) -> Stored:
        """`preprocess` without what `standardized` does: what a replay buffer stores.

        Statistics that move while data are collected would make old rows lie: a rollout holds
        observations as they were normalised when acting, a replay buffer holds them raw.
        `preprocess(obs)` equals `standardized(preprocess_raw(obs))`.
        """
        return self.preprocess(obs)

    def standardized(self, x: Any) -> Any:
        """Apply today's running statistics to what `preprocess_raw` returned."""
        return x

    def repeats(self) -> bool | Mapping[str, Any]:
        """Whether few different rows come many times (texts): replay then keeps each once.

        An encoder of a dictionary says it of each of its entries.
        """
        return False

    def unread(self) -> set[tuple[Any, ...]]:
        """Entries of a Dict or Tuple observation that are never looked at, as paths: what they hold
        need not be finite."""
        return set()

    def observe(self, obs: Any) -> None:
        """Update running statistics with a raw observation; called once per training step only."""

    def begin_rollout(self) -> None:
        """Called before each rollout: until the next call only updates may change `forward`."""

    def anneal(self, progress: float) -> None:
        """Told, before new experience, which share of the frame budget is used up, in [0, 1]: an
        agent that learns from rollouts says it before each of them, one from replay at each step.
        """

    def synchronize(self) -> None:
        """Make running statistics equal on all ranks; called at the end of each rollout."""

    def metrics(self) -> dict[str, float]:
        """Values to log since the last call, e.g. `llm/cache_hit_rate`."""
        return {}

    def collection_state(self) -> dict[str, Any]:
        """What exact resuming needs beyond weights (plain data and tensors), e.g. a cache."""
        return {}

    def load_collection_state(self, state: dict[str, Any]) -> None:
        """Restore what `collection_state` returned."""


def check_reads_text(encoder: str, spec: EnvSpec) -> None:
    """Refuse, in the name of an encoder, observations that are no text.

    Raises:
        ConfigurationError: That names the way out.
    """
    space = spec.observation_space
    if not is_text(space):
        raise ConfigurationError(
            f"{encoder} reads text, but observations of {spec.id} are {shortened(space)}: wrap the "
            "environment in `Describe`, which puts observations into words, or use `MLPEncoder` "
            "for vectors and `DictEncoder` for dictionaries with a text in them"
        )
