"""What agents of tokens share whose rewards are less the farther they go from a reference."""

from typing import Any

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.credit import scores
from rl_lightning.agents.token_agent import TokenAgent
from rl_lightning.agents.token_batches import flat
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.token_advantages import token_rewards


class PenalizedAgent(TokenAgent):
    """An agent whose rewards have the penalty −β (log π − log π_ref) of each token in them (Ouyang
    et al. 2022, eq. 2), instead of a KL in the loss.

    Args:
        spec: Of texts to texts.
        model: See `TokenAgent`.
        kl_coef: β, in units of reward per nat; 0 needs no reference.
        **shared: Arguments of `TokenAgent`.
    """

    def __init__(self, spec: EnvSpec, model: str, *, kl_coef: float = 0.05, **shared: Any) -> None:
        super().__init__(spec, model, kl_coef=kl_coef, **shared)

    @property
    def needs_log_prob(self) -> bool:
        return self.needs_reference

    def penalized(self, batch: TensorDict) -> Tensor:
        """Rewards of tokens, float32 `[P · G, T]`, of a batch as `advantages` is given it."""
        return token_rewards(
            scores(batch),
            flat(batch["own"]),
            flat(batch.get("log_prob", None)),
            flat(batch.get("reference_log_prob", None)),
            self.kl_coef,
        )
