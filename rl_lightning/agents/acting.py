"""What an agent does for whoever collects: `rl_lightning.core.protocols.Actor` says what."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rl_lightning.agents import prediction
from rl_lightning.agents.masks import reported_mask
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.tree import to_device
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.exploration import uniform_action
from rl_lightning.policies.policy import Policy


class ActingModule(L.LightningModule):
    """A module that acts: by its policy, on what its encoders make of observations."""

    spec: EnvSpec
    policy: Any
    """What acts, a `Policy`."""
    progress: float = 0.0
    """Share of the frame budget that is used up."""
    learns_from: tuple[str, ...] = ("rollouts",)
    """The kinds of experience its loss is right for: `rollouts`, `replay` (recorded data included),
    or `recordings` alone. Unless these are rollouts alone, it reads raw observations, and its
    networks normalise them."""
    learns_from_rewards: bool = True
    """Whether steps are worth something to its loss: `data.rewards` would do nothing otherwise."""

    # --- acting -------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The encoder that preprocesses observations.

        Raises:
            ConfigurationError: If the policy has none.
        """
        encoder = getattr(self.policy, "encoder", None)
        if encoder is None:  # or torch would say that the agent has none
            raise ConfigurationError(
                f"{type(self.policy).__name__} has no encoder; set self.encoder = encoder(spec)"
            )
        return encoder

    @property
    def encoders(self) -> Sequence[Encoder]:
        """All encoders that read observations: the critic may have one of its own."""
        return self.policy.encoders

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Choose actions for preprocessed observations `[B, ...]`.

        Args:
            x: What `preprocess` returned.
            explore: Act as while training; otherwise greedily.
            state: Recurrent state, see `initial_state`.
            mask: Allowed actions, bool `[B, A]`.

        Returns:
            `action` `[B, ...]` for the environment, what the loss needs later, and `next_state` of
            a recurrent policy. A plain dict: building a TensorDict at every step costs as much as
            a small network's forward pass.
        """
        return self.policy.act(x, explore, state, mask)

    predict = prediction.predict

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the policy thinks of preprocessed observations: `probabilities`, `value` …"""
        return self.policy.inspect(x, state, mask)

    def act_uniformly(self, num_envs: int, mask: Tensor | None = None) -> Tensor:
        """Actions drawn uniformly from all allowed ones, `[B, ...]`."""
        return uniform_action(self.spec.action_space, num_envs, mask, self.device)

    def initial_state(self, num_envs: int) -> Tensor | None:
        """Recurrent state of fresh episodes, `[B, H]`; None for a policy without memory."""
        width = self.policy.state_dim
        return torch.zeros(num_envs, width, device=self.device) if width else None

    # --- observations -------------------------------------------------------------------------

    def preprocess(self, obs: Any) -> Stored:
        """Raw vector-env observations `[B, ...]` → what `act` takes, on this agent's device."""
        encoder = self.encoder
        raw = self.learns_from != ("rollouts",)
        return to_device(
            encoder.preprocess_raw(obs) if raw else encoder.preprocess(obs), self.device
        )

    def read_mask(self, info: Mapping[str, Any]) -> Tensor | None:
        """The action mask a vector env reports in `info["action_mask"]`, bool `[B, A]`, or None.

        Raises:
            ConfigurationError: If it has another width than this policy's action head.
            RunError: If it holds anything but 0 and 1.
        """
        mask = reported_mask(info, self.mask_dim, self.spec)
        return None if mask is None else torch.from_numpy(mask).to(self.device)

    @property
    def unread(self) -> set[tuple[Any, ...]]:
        """Entries of observations that none of its encoders looks at, see `Encoder.unread`."""
        return set.intersection(*(encoder.unread() for encoder in self.encoders))

    def observe(self, obs: Any) -> None:
        """Show a raw training observation to the running statistics."""
        for encoder in self.encoders:
            encoder.observe(obs)

    @property
    def mask_dim(self) -> int:
        """Width of the action masks it takes; 0 for none."""
        return self.policy.mask_dim

    # --- encoders, as whoever collects sees them ----------------------------------------------

    def begin_rollout(self) -> None:
        """Called before collecting: until the next call only updates may change features."""
        for encoder in self.encoders:
            encoder.begin_rollout()
            encoder.anneal(self.progress)
        if isinstance(policy := getattr(self, "policy", None), Policy):
            policy.begin_rollout()

    def synchronize(self) -> None:
        """Make running statistics equal on all ranks; called after collecting."""
        for encoder in self.encoders:
            encoder.synchronize()

    def repeats(self) -> bool | Mapping[str, Any]:
        """Whether few different observations come many times, see `Encoder.repeats`."""
        return self.encoder.repeats()

    def encoder_metrics(self) -> Mapping[str, float]:
        """What encoder and policy have to log since the last call."""
        policy = getattr(self, "policy", None)  # a reward model has none
        own = policy.metrics() if isinstance(policy, Policy) else {}
        return {**self.encoder.metrics(), **own}

    def collection_state(self) -> dict[str, Any]:
        """What exact resuming needs beyond weights, e.g. a cache."""
        return self.encoder.collection_state()

    def load_collection_state(self, state: dict[str, Any]) -> None:
        """Restore what `collection_state` returned."""
        self.encoder.load_collection_state(state)
