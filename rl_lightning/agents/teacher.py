"""A trained agent that another one learns from: frozen, and no part of it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.lesson import Form, choices
from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.tree import clone, to_device
from rl_lightning.core.types import EnvSpec, Stored, space_from_data, space_to_data
from rl_lightning.maths.distillation import soften
from rl_lightning.maths.distributions import Categorical, mask_logits
from rl_lightning.policies.continuous import ContinuousNetwork
from rl_lightning.rewards.observations import same_kind


class Teacher:
    """The agent of a checkpoint, which says of raw observations what a student is to say of them.

    No module, so that its weights get into no optimizer and no checkpoint of who asks it.

    Args:
        path: Checkpoint of an agent with a policy, read as plain data: no code of the file's runs.
        spec: The spaces that the student acts in.
        form: What it is asked for.
        temperature: Its π is π^(1/τ), normalised; of values, π ∝ exp(Q / τ).
        squashed: Whether the student's Gaussian is one before tanh; it must be one of the same.
        needs_value: Whether V(s) is asked for, too.

    Raises:
        ConfigurationError: If there is no such file, or if it holds who cannot teach this.
    """

    def __init__(
        self,
        path: str,
        spec: EnvSpec,
        form: Form,
        temperature: float = 1.0,
        squashed: bool = False,
        needs_value: bool = False,
    ) -> None:
        self.path, self.spec, self.form = path, spec, form
        self.temperature, self.squashed, self.needs_value = temperature, squashed, needs_value
        self.agent: Any = Agent.load_from_checkpoint(path)
        self.digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
        self._check_spaces()
        self.agent.requires_grad_(False)
        self.agent.eval()
        self.seen: Stored | None = None
        """What it made of the last observations it was shown."""

    # --- what it is asked ---------------------------------------------------------------------

    def look(self, obs: Any) -> None:
        """Read raw observations `[B, ...]` through its own encoder."""
        self.seen = self.agent.preprocess(obs)

    def answer(self, mask: Tensor | None) -> dict[str, Tensor]:
        """What it says of the observations it has seen last: one forward pass.

        Args:
            mask: Allowed actions, bool `[B, A]`.

        Returns:
            By form `probabilities` `[B, ..., A]`; `values` and which of them are `allowed`
            `[B, A]`; `mean` and `std`, or `action` `[B, A]`. And `value` `[B]` where it is needed.
        """
        seen: Any = self.seen
        said = self.agent.inspect(seen, None, mask)
        match self.form:
            case "values":
                what = "Q-values that it acts by, as DQN does: use loss: kl"
                told = {
                    "values": self._get({} if "probabilities" in said else said, "values", what)
                }
                allowed = self._allowed(mask)
                every = torch.ones_like(told["values"], dtype=torch.bool)
                told["allowed"] = every if allowed is None else allowed
            case "probabilities":
                told = {"probabilities": self._choices(said, mask)}
            case "gaussian":
                told = self._gaussian(said)
            case "action":
                mean = self._get(said, "mean", "a mean of its actions")
                told = {"action": self._to_env(mean).flatten(1)}
        if self.needs_value:
            told["value"] = self._get(said, "value", "V(s): set value_coef: 0")
        return told

    def act(self, told: Mapping[str, Tensor], explore: bool) -> Tensor:
        """The actions `[B, ...]` of an answer: drawn from it, or the likeliest.

        A mean action is all there is of it, so that is taken whether or not it is to explore.
        """
        if self.form == "action":
            return told["action"].view(-1, *(self.spec.action_space.shape or ()))
        if self.form == "gaussian":
            mean, std = told["mean"], told["std"]
            return self._to_env(mean + std * torch.randn_like(mean) if explore else mean)
        if self.form == "values":
            logits = mask_logits(told["values"] / self.temperature, told["allowed"])
        else:
            logits = told["probabilities"].log()
        choice = Categorical(logits).sample() if explore else logits.argmax(-1)
        start = getattr(self.spec.action_space, "start", 0)  # MultiBinary has none
        return choice + torch.as_tensor(start, device=choice.device)

    # --- what exact resuming needs ------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What it has seen last, and what its encoder remembers of texts."""
        seen = None if self.seen is None else clone(self.seen)
        return {"seen": seen, "encoder": self.agent.collection_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.agent.load_collection_state(state["encoder"])
        self.seen = None if state["seen"] is None else to_device(state["seen"], self.agent.device)

    # --- how it says it -----------------------------------------------------------------------

    def _choices(self, said: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        if "probabilities" not in said and "values" in said:
            logits = mask_logits(said["values"] / self.temperature, self._allowed(mask))
            return logits.softmax(-1)
        chances = choices(self.spec, self._get(said, "probabilities", "probabilities of actions"))
        return chances if self.temperature == 1.0 else soften(chances, self.temperature)

    def _gaussian(self, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = "a mean and a standard deviation of its actions: use loss: mse"
        mean, std = self._get(said, "mean", out), self._get(said, "std", out)
        policy = self.agent.policy
        own = isinstance(policy, ContinuousNetwork) or bool(policy.action_head.squash)
        if own != self.squashed:
            raise ConfigurationError(
                f"model.teacher: actions of {self.path} are {'' if own else 'not '}squashed by "
                f"tanh, and the student's are{' not' if own else ''}: give model.network squash: "
                f"{str(own).lower()}, or use loss: mse, which compares actions"
            )
        return {"mean": mean, "std": std * self.temperature**0.5}

    def _to_env(self, latent: Tensor) -> Tensor:
        policy = self.agent.policy
        if isinstance(policy, ContinuousNetwork):  # a deterministic actor's mean is behind its tanh
            return policy.to_env(latent.tanh() if policy.stochastic else latent)
        return policy.action_head.to_action(latent)

    def _allowed(self, mask: Tensor | None) -> Tensor | None:
        seen: Any = self.seen
        return self.agent.policy.allowed(seen, mask)

    def _get(self, said: Mapping[str, Tensor], name: str, what: str) -> Tensor:
        if name not in said:
            raise ConfigurationError(
                f"model.teacher: {type(self.agent).__name__} in {self.path} does not say {what}"
            )
        return said[name]

    def _check_spaces(self) -> None:
        agent, path, spec = self.agent, self.path, self.spec
        policy, name = getattr(agent, "policy", None), type(agent).__name__
        if policy is None:
            raise ConfigurationError(
                f"model.teacher: {path} holds a {name}, which has no policy to learn from: give a "
                "checkpoint of an agent that acts"
            )
        if policy.state_dim:
            raise ConfigurationError(
                f"model.teacher: {name} in {path} remembers earlier steps, which a student that "
                "reads one observation at a time cannot follow; give a teacher without memory"
            )
        if not same_kind(agent.spec.observation_space, spec.observation_space):
            raise ConfigurationError(
                f"model.teacher: {name} in {path} reads observations of "
                f"{shortened(agent.spec.observation_space)}, and {spec.id} has "
                f"{shortened(spec.observation_space)}: give data.env and data.wrappers of the "
                "teacher's, or another teacher"
            )
        plain = space_from_data(space_to_data(spec.action_space))  # as a checkpoint keeps it
        if agent.spec.action_space != plain:
            raise ConfigurationError(
                f"model.teacher: {name} in {path} acts in {shortened(agent.spec.action_space)}, "
                f"and {spec.id} takes {shortened(spec.action_space)}: give another teacher"
            )
