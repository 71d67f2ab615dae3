"""The clipped policy gradient over tokens, of a batch as agents are given it."""

from typing import Any

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.token_batches import flat, shared
from rl_lightning.core.loss import Loss
from rl_lightning.llm.reading import Reading
from rl_lightning.maths import losses
from rl_lightning.maths.token_losses import token_policy_loss


def policy_loss(batch: TensorDict, read: Reading, **terms: Any) -> Loss:
    """The loss of some rows `[P]`, and what explains it.

    Args:
        batch: What `prepare_completions` returned; `advantage` is `[P, G]` or `[P, G, T]`.
        read: What the model says of it, with gradient.
        **terms: Of `token_policy_loss`.
    """
    value, found = token_policy_loss(
        flat(read.log_prob),
        flat(batch["advantage"]),
        flat(batch["own"]),
        flat(batch.get("log_prob", None)),
        flat(batch.get("reference_log_prob", None)),
        normalizer=shared(batch, "normalizer"),
        **terms,
    )

    def metrics() -> dict[str, Any]:
        told = {
            "loss/policy": value,
            "policy/entropy": losses.mean(read.entropy, batch["own"]),
            "policy/clip_low": found.clip_low,
            "policy/clip_high": found.clip_high,
            "policy/ratio": found.ratio,
            "policy/kl": found.kl_old,
        }
        if found.kl_reference is not None:
            told["policy/kl_reference"] = found.kl_reference
        if batch.get("log_prob", None) is None:
            told["policy/sampler_gap"] = sampler_gap(batch, read.log_prob)
        return told

    return Loss(value, metrics)


def sampler_gap(batch: TensorDict, log_prob: Tensor) -> Tensor:
    """Mean distance of the sampler's log-probabilities from the learner's `[P, G, T]`, in nats."""
    return losses.mean((batch["said"] - log_prob.detach()).abs(), batch["own"])
