"""What a policy says of observations, by the names of an exported file's outputs."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from rl_lightning.agents import DQN, SAC, Agent, QTable, TokenAgent
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.encoders.guided import guide_of
from rl_lightning.exploration import greedy_action
from rl_lightning.maths.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution
from rl_lightning.policies import (
    ActorCritic,
    ContinuousNetwork,
    DiscreteNetwork,
    GeneratingPolicy,
    OfflineNetwork,
    ScoringPolicy,
    ScoringQNetwork,
)

Decide = Callable[[Any, Tensor | None, Tensor | None], dict[str, Tensor]]

MEANINGS = {
    "action": "the greedy action, as the environment takes it",
    "logits": "log-probabilities of the actions; of MultiBinary ones the log-odds of a one",
    "q_values": "expected returns of the actions, whatever the mask",
    "mean": "middle of the policy before clipping or squashing to the action space",
    "action_mean": "the action in [-1, 1] between the action space's bounds",
    "next_state": "memory for the next step of the same episode",
}


def check_exportable(agent: Any) -> None:
    """Refuse agents whose decisions are no graph of tensors.

    Raises:
        ConfigurationError: That names the class and the way out.
    """
    name = type(agent).__name__
    if isinstance(agent, TokenAgent):
        raise ConfigurationError(
            f"{name} tunes a language model that writes, one token after the other; use "
            "--format huggingface"
        )
    policy = getattr(agent, "policy", None)
    if not isinstance(agent, Agent) or policy is None:
        raise ConfigurationError(f"{name} does not act, so there is no policy to export")
    if isinstance(policy, ScoringPolicy | ScoringQNetwork | GeneratingPolicy):
        raise ConfigurationError(
            f"{type(policy).__name__} acts by texts that a language model scores or writes, which "
            "is no graph of tensors; use --format huggingface, which writes that model"
        )
    guide = guide_of(agent.encoder)
    if guide is not None and bool(guide.weight_now != 0) and not isinstance(agent, DQN):
        raise ConfigurationError(
            f"GuidedEncoder's prior still counts {float(guide.weight_now):g} in this policy, and "
            "what a language model says of actions is no graph of tensors; train until its weight "
            "is 0 (weight_end: 0), after which the policy is exported without it"
        )


def state_width(agent: Any) -> int:
    """Width of the memory that acting needs, 0 without: a critic's own stays behind."""
    policy = agent.policy
    if isinstance(policy, ActorCritic):
        return 0 if policy.memory is None else policy.memory.state_dim
    return int(policy.state_dim)


def reading(agent: Any, obs: Any) -> Any:
    """Raw observations `[B, ...]` → what replay would store of them, for `decider`'s function."""
    encoder = agent.encoder
    guide = guide_of(encoder)
    if guide is None:
        return encoder.preprocess_raw(obs)
    own = guide.own.preprocess_raw(obs)
    rows = own
    while not isinstance(rows, Tensor):
        rows = next(iter(rows.values()))
    return {"own": own, "prior": torch.zeros(rows.shape[0], guide.actions)}


def decider(agent: Any) -> Decide:
    """A function of stored raw observations, memory and mask, each `[N, ...]`.

    It gives `action` of the action space (not yet in its dtype), what it is the best of (`logits`,
    `q_values` or `mean`), and `next_state` with memory. An agent with a policy of a class of its
    own is asked to `act` and to `inspect`.
    """
    policy = agent.policy
    start = int(getattr(agent.spec.action_space, "start", 0)) if _discrete(agent) else 0

    def actor_critic(x: Any, state: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        x = policy.encoder.standardized(x)
        features, more = policy.encoder(x), {}
        if policy.memory is not None:
            assert state is not None
            features, more["next_state"] = policy.memory.step(features, state)
        distribution = policy.distribution(features, x, mask)
        return {**_said(distribution, policy.action_head, agent.spec.action_space), **more}

    def offline(x: Any, state: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        distribution = policy.policy(policy.features(x), mask)
        return _said(distribution, policy.action_head, agent.spec.action_space)

    def continuous(x: Any, state: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        features = policy.features(x)
        if isinstance(agent, SAC):
            mean = policy.policy(features).mean
            return {"mean": mean, "action": policy.to_env(mean.tanh())}
        action = policy.action(features)
        return {"action_mean": action, "action": policy.to_env(action)}

    def soft(x: Any, state: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        distribution = policy.policy(policy.features(x), mask, x)
        return {"logits": distribution.log_probs, "action": distribution.mode() + start}

    def values(x: Any, state: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        out = policy(x)
        q = agent.values(out) if isinstance(agent, DQN) else out
        allowed = policy.allowed(x, mask)
        return {"q_values": q, "action": greedy_action(q, allowed) + start}

    def other(x: Any, state: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        if agent.learns_from == ("rollouts",):
            x = policy.encoder.standardized(x)
        out = agent.act(x, explore=False, state=state, mask=mask)
        said = agent.inspect(x, state=state, mask=mask)
        kept = {name: out[name] for name in ("action", "next_state") if name in out}
        return {**said, **kept}

    if isinstance(agent, DQN | QTable):
        if isinstance(agent, DQN):
            policy.silence()
        return values
    for kind, function in (
        (ActorCritic, actor_critic),
        (OfflineNetwork, offline),
        (ContinuousNetwork, continuous),
        (DiscreteNetwork, soft),
    ):
        if isinstance(policy, kind):
            return function
    return other


def _said(distribution: Distribution, head: Any, space: gym.Space) -> dict[str, Tensor]:
    action = head.to_action(distribution.mode())
    if isinstance(distribution, DiagonalGaussian):
        return {"mean": distribution.mean, "action": action}
    if isinstance(distribution, Bernoulli):
        return {"logits": distribution.logits, "action": action}
    if isinstance(distribution, Categorical):
        return {"logits": distribution.log_probs, "action": action}
    assert isinstance(space, gym.spaces.MultiDiscrete)
    parts = distribution.parts.log_probs.unbind(1)
    logits = {f"logits_{k}": parts[k][:, : int(n)] for k, n in enumerate(space.nvec)}
    return {**logits, "action": action}


def _discrete(agent: Any) -> bool:
    return isinstance(agent.spec.action_space, gym.spaces.Discrete)
