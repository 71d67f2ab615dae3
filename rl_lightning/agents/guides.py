"""Priors over actions: whether an agent makes anything of the one that its encoder brings along."""

from typing import Any

from torch import nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.encoders.guided import GuidedEncoder, guide_of
from rl_lightning.exploration import ValueExploration
from rl_lightning.policies.policy import Policy

TAKERS = (
    "PPO, A2C or REINFORCE with an ActorCritic, DQN with a QNetwork, or DiscreteSAC with a "
    "DiscreteNetwork"
)


def check_guides(agent: Any) -> None:
    """Refuse a `GuidedEncoder` that would have no effect.

    Args:
        agent: An `Agent`, whose policy is built.

    Raises:
        ConfigurationError: If agent or policy takes no prior, or if it is not the policy's own
            encoder but a part of that.
    """
    inside = {id(part) for part in agent.modules() if isinstance(part, GuidedEncoder)}
    if not inside:
        return
    policy, name = getattr(agent, "policy", None), type(agent).__name__
    if not {"rollouts", "replay"} & set(agent.learns_from) or not isinstance(policy, Policy):
        raise ConfigurationError(
            f"model.encoder: {name} takes no prior, so GuidedEncoder would have no effect; give "
            f"the encoder inside it by itself, or use {TAKERS}"
        )
    if not policy.takes_prior:
        raise ConfigurationError(
            f"model.network: {type(policy).__name__} takes no prior, so GuidedEncoder would have "
            f"no effect; use {TAKERS}, or in a policy of your own put logits through "
            "self.guided_logits and set takes_prior = True"
        )
    guides = [guide_of(encoder) for encoder in _all_encoders(agent)]
    if inside - {id(guide) for guide in guides}:
        raise ConfigurationError(
            "model.encoder: a GuidedEncoder is a part of another encoder, where no policy finds "
            "its prior; make it model.encoder, and the other one its encoder"
        )
    guide = policy.guide
    if guide is not None and guide.pays and "rollouts" not in agent.learns_from:
        raise ConfigurationError(
            f"model.encoder: kl_coef is paid in the rewards of rollouts, and {name} learns from "
            "replay; leave out kl_coef and kl_coef_end (DiscreteSAC weighs the prior by its own "
            "temperature)"
        )


def _all_encoders(agent: nn.Module) -> list[Any]:
    """Those of the policy, and of its target, if any."""
    return [
        encoder
        for owner in (agent.policy, getattr(agent, "target", None))
        if isinstance(owner, Policy)
        for encoder in owner.encoders
    ]


def check_explores(exploration: ValueExploration | None) -> None:
    """Refuse to guide DQN where nothing draws from the prior.

    Raises:
        ConfigurationError: If nothing explores, or something does that asks values alone.
    """
    if exploration is None:
        raise ConfigurationError(
            "model.exploration: null leaves nothing that a GuidedEncoder's prior could guide: its "
            "place is in exploration; use rl_lightning.exploration.EpsilonGreedy or Boltzmann"
        )
    if type(exploration).choose is ValueExploration.choose:
        raise ConfigurationError(
            f"model.exploration: {type(exploration).__name__} takes no prior; use EpsilonGreedy "
            "or Boltzmann, or implement `choose`, whose logits are the prior's"
        )
