"""What a student learns of states from a teacher: its form, and how far apart the two are."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths import distillation
from rl_lightning.maths.distributions import mask_logits
from rl_lightning.policies.generating import GeneratingPolicy

Objective = Literal["kl", "cross_entropy", "mse"]
Form = Literal["probabilities", "values", "gaussian", "action"]
"""What is said of a state: π(·|s) of choices, Q(s, ·), μ and σ of Box actions, or the mean action
in the environment's units."""


def form_of(space: gym.Space, loss: Objective, temperature: float, value_coef: float) -> Form:
    """What a loss asks of states, by the kind of action.

    Raises:
        ConfigurationError: If such actions have no such loss, or an argument would do nothing.
    """
    if isinstance(space, gym.spaces.Box):
        if loss == "cross_entropy":
            raise ConfigurationError(
                "model.loss: cross_entropy takes the likeliest of several actions for a label, and "
                "Box actions are not several; use kl or mse"
            )
        if loss == "mse" and temperature != 1.0:
            raise ConfigurationError(
                f"model.temperature: {temperature} does nothing to a mean action; leave it out, or "
                "use loss: kl"
            )
        return "gaussian" if loss == "kl" else "action"
    if loss != "mse":
        return "probabilities"
    if not isinstance(space, gym.spaces.Discrete):
        raise ConfigurationError(
            "model.loss: mse compares Q-values of Discrete actions or the mean of Box actions, and "
            f"actions are {type(space).__name__}; use kl or cross_entropy"
        )
    if value_coef:
        raise ConfigurationError(
            f"model.value_coef: {value_coef} needs a critic, which a Q-network does not have; set "
            "it to 0"
        )
    return "values"


def check_student(policy: Any) -> None:
    """Refuse a policy that cannot learn this way.

    Raises:
        ConfigurationError: If it remembers, writes its actions, or pays for straying from a prior.
    """
    if isinstance(policy, GeneratingPolicy):
        raise ConfigurationError(
            "model.network: Distill compares what is said of all actions, and a GeneratingPolicy "
            "writes one; give ScoringPolicy, or ActorCritic"
        )
    if policy.state_dim:
        raise ConfigurationError(
            "model.network: Distill learns from single observations, which no memory can be "
            "trained on; leave out recurrent, or give observations a history "
            "(gymnasium.wrappers.FrameStackObservation)"
        )
    if policy.guide is not None and policy.guide.pays:
        raise ConfigurationError(
            "model.encoder: kl_coef of a GuidedEncoder is paid in rewards, of which Distill knows "
            "nothing; leave out kl_coef and kl_coef_end"
        )


def choices(spec: EnvSpec, probabilities: Tensor) -> Tensor:
    """What policies say of actions that are no Box, as probabilities `[N, ..., A]`: of bits, they
    say the probability of a one, `[N, K]`."""
    if isinstance(spec.action_space, gym.spaces.MultiBinary):
        return torch.stack([1.0 - probabilities, probabilities], dim=-1)
    return probabilities


def compare(
    form: Form,
    objective: Objective,
    spec: EnvSpec,
    told: Any,
    said: Mapping[str, Tensor],
    head: Any,
) -> tuple[Tensor, Callable[[], tuple[str, Tensor]]]:
    """How far a student is from its teacher.

    Args:
        form: What both say.
        objective: The loss.
        spec: The environment's spaces.
        told: What the teacher said, `[N, ...]` each, see `Teacher.answer`.
        said: What the student says, with gradient, see `Agent.inspect`.
        head: The student's head of Box actions, for `form: action`.

    Returns:
        The loss of each row, `[N]`, and what gives a metric's name and rows.
    """
    if form == "probabilities":
        theirs, own = told["probabilities"], choices(spec, said["probabilities"])
        kl = objective == "kl"
        rows = (distillation.categorical_kl if kl else distillation.label_cross_entropy)(
            theirs, own
        )
        return rows, lambda: ("policy/agreement", distillation.agreement(theirs, own))
    if form == "values":
        allowed = told["allowed"]
        rows = distillation.squared_error(told["values"], said["values"], allowed)
        theirs, own = (mask_logits(one["values"], allowed) for one in (told, said))
        return rows, lambda: ("policy/agreement", distillation.agreement(theirs, own))
    own = said["mean"]
    if form == "gaussian":
        theirs = told["mean"]
        rows = distillation.gaussian_kl(theirs, told["std"], own, said["std"])
    else:  # not clipped: beyond its bounds a mean would have no gradient
        theirs = told["action"]
        own = head.to_action(own).flatten(1) if head.squash else own
        rows = distillation.squared_error(theirs, own)
    return rows, lambda: ("policy/error", (theirs - own).abs().mean(-1))
