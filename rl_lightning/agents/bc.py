"""Behaviour cloning."""

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.networks import build
from rl_lightning.agents.replay_agent import ReplayAgent
from rl_lightning.core.errors import ConfigurationError, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.policies.actor_critic import ActorCritic
from rl_lightning.policies.generating import GeneratingPolicy
from rl_lightning.policies.policy import RolloutPolicy


class BC(ReplayAgent):
    """Imitation by maximum likelihood (Pomerleau 1991): −E[log π(a|s)] over what was recorded.

    It becomes as good as what it imitates and knows nothing of rewards. For Box actions, a squashed
    policy takes actions on their bounds for ones just inside them, and no policy becomes more
    certain than log σ = −5.

    Args:
        spec: The environment's spaces.
        encoder: Builds the encoder of observations.
        network: Builds the policy over the encoder; without memory, and its critic is left out. A
            ScoringPolicy has a language model learn to say what was done.
        entropy_coef: Weight of the entropy bonus, against too much certainty where data are few.
        **shared: Arguments of `ReplayAgent`.
    """

    learns_from = ("recordings",)

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], RolloutPolicy] = ActorCritic,
        *,
        entropy_coef: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(spec, gamma=0.99, **shared)
        check_range("entropy_coef", entropy_coef, 0.0)
        self.policy = build(
            "BC", network, spec, encoder, critic=False,
            needs=("evaluate",), instead="ActorCritic, or ScoringPolicy for a language model",
        )  # fmt: skip
        if isinstance(self.policy, GeneratingPolicy):
            raise ConfigurationError(
                "BC cannot train a GeneratingPolicy: it learns from what it wrote itself, and "
                "recordings hold actions; give ScoringPolicy, which raises the action's log p"
            )
        if self.policy.state_dim:
            raise ConfigurationError(
                "BC learns from single transitions, which no memory can be trained on; leave out "
                "model.network's recurrent, or give observations a history "
                "(gymnasium.wrappers.FrameStackObservation)"
            )
        self.entropy_coef = entropy_coef

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return super().act(self.encoder.standardized(x), explore, state, mask)

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        return super().inspect(self.encoder.standardized(x), state, mask)

    # --- learning -----------------------------------------------------------------------------

    def loss(self, batch: TensorDict) -> Loss:
        seen = {"obs": self.encoder.standardized(batch["obs"]), "action": batch["action"]}
        if self._head is not None:
            seen["latent"] = self._head.to_latent(batch["action"])
        if "action_mask" in batch:
            seen["action_mask"] = batch["action_mask"]
        log_prob, entropy, _ = self.policy.evaluate(TensorDict(seen, batch.batch_size))
        policy_loss, mean_entropy = -log_prob.mean(), entropy.mean()
        loss = policy_loss - self.entropy_coef * mean_entropy
        return Loss(loss, {"loss/policy": policy_loss, "policy/entropy": mean_entropy})

    def after_update(self) -> None:
        if self._head is not None:
            self._head.keep_spread()

    @property
    def _head(self) -> Any:
        """What turns an ActorCritic's numbers into actions."""
        return getattr(self.policy, "action_head", None)
