"""A prior over actions, said by a frozen language model, for whatever else learns to act."""

from collections.abc import Callable
from typing import Any, get_args

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range, shortened
from rl_lightning.core.schedules import anneal
from rl_lightning.core.sharing import sharing
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.actions import (
    Normalize,
    TextActionEncoder,
    normalized,
)
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.maths.distributions import mask_logits
from rl_lightning.nn.compiled import WRAPPED
from rl_lightning.nn.insides import children

LOWEST = -100.0
"""Least log prior: no action is forbidden for ever, and no reward of it is without bounds."""


class GuidedEncoder(Encoder):
    """Reads observations with one encoder, and has a language model say what it would do.

    Features are the encoder's. Beside them each observation keeps log prior(a|s), the softmax of
    what a frozen `TextActionEncoder` gives the texts of the actions. The policy over this encoder
    (an `ActorCritic`, a `QNetwork` of DQN, a `DiscreteNetwork`, or any whose logits go through
    `Policy.guided_logits`) adds it to its own logits,

        π(a|s) ∝ exp(logits(s)ₐ) · prior(a|s)^weight

    (a product of experts, Hinton 2002), and while `kl_coef` is not 0, rewards of rollouts pay for
    straying from it: see `RolloutPolicy.rewards`. Both are annealed; once they are 0 for good, the
    policy is the plain one to the bit, and the model is not asked any more. Until then the mixed
    policy is the one that learns, and the one that is evaluated. What DQN and DiscreteSAC make of
    a prior, they say.

    The weight changes between rollouts only, so that the first ratio of PPO is 1.

    Args:
        spec: Of an environment with texts in its observations and Discrete actions. `Describe`
            with `keep: true` puts a text beside any observation.
        encoder: Builds what reads observations for the policy: for a Dict, a `DictEncoder` that
            ignores the texts.
        prior: Builds the `TextActionEncoder`, with `tune: frozen`.
        normalize_scores: What the language model's log p of an action is divided by: nothing
            (`sum`), its tokens or its words.
        prior_temperature: Scores are divided by it: higher is more even.
        weight: Of the prior, in the beginning; 1 takes the language model at its word.
        weight_end: From `fraction` of training on.
        kl_coef: What a nat of straying costs, in units of reward, in the beginning.
        kl_coef_end: From `fraction` of training on.
        fraction: Share of the frame budget over which both are annealed, linearly. Below 1, or the
            last rollouts, which begin before the end of the budget, still have some weight.

    Raises:
        ConfigurationError: If there is no text, if actions are not Discrete, if the prior is of
            another kind or is tuned, or if an argument makes no sense.
    """

    _now: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder],
        prior: Callable[[EnvSpec], Encoder],
        normalize_scores: Normalize = "token",
        prior_temperature: float = 1.0,
        weight: float = 1.0,
        weight_end: float = 0.0,
        kl_coef: float = 0.0,
        kl_coef_end: float = 0.0,
        fraction: float = 0.5,
    ) -> None:
        super().__init__()
        check_one_of("normalize_scores", normalize_scores, get_args(Normalize))
        check_range("prior_temperature", prior_temperature, 1e-6)
        for name, value in (("weight", weight), ("weight_end", weight_end),
                            ("kl_coef", kl_coef), ("kl_coef_end", kl_coef_end)):  # fmt: skip
            check_range(name, value, 0.0)
        check_range("fraction", fraction, 0.0, 1.0)
        _check_spaces(spec)
        with sharing():
            self.own = encoder(spec)
            self.prior = _prior(spec, prior)
        self.out_dim = self.own.out_dim
        self.actions = self.prior.choices.count
        self.normalize: Normalize = normalize_scores
        self.temperature = prior_temperature
        self.begin, self.end, self.fraction = (weight, kl_coef), (weight_end, kl_coef_end), fraction
        # With the weights in a checkpoint: a loaded policy acts as it did.
        self.register_buffer("_now", torch.zeros(2))
        self.anneal(0.0)

    # --- the guide ----------------------------------------------------------------------------

    @property
    def weight_now(self) -> Tensor:
        """What log prior counts now, `[]`."""
        return self._now[0]

    @property
    def kl_now(self) -> Tensor:
        """What a nat of straying from the prior costs now, `[]`."""
        return self._now[1]

    @property
    def pays(self) -> bool:
        """Whether straying from the prior ever costs."""
        return self.begin[1] > 0.0 or self.end[1] > 0.0

    def mix(self, x: Any, logits: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """logits + scale · weight · log prior, `[N, A]`.

        Args:
            x: What `preprocess` or `preprocess_raw` returned, or a TensorDict of it.
            logits: `[N, A]`.
            scale: Of the prior, beside its weight.
        """
        return logits + scale * self.weight_now * x["prior"]

    def log_prior(self, x: Any, mask: Tensor | None = None) -> Tensor:
        """log prior(a|s) among allowed actions, `[..., A]`."""
        prior = x["prior"]
        if mask is None:
            return prior
        return mask_logits(prior, mask).log_softmax(-1).clamp(min=LOWEST)

    def anneal(self, progress: float) -> None:
        self.own.anneal(progress)
        for i, (start, end) in enumerate(zip(self.begin, self.end, strict=True)):
            self._now[i] = anneal(start, end, self.fraction, progress)

    def _says(self, obs: Any) -> Tensor:
        """log prior of raw observations, float32 `[B, A]`; zeros where nobody asks any more."""
        if not any(self.end) and not bool(self._now.any()):
            return torch.zeros(self._count(obs), self.actions, device=self._now.device)
        scored = self.prior.score(self.prior.preprocess_raw(obs))
        scores = normalized(scored, self.normalize) / self.temperature
        return mask_logits(scores, scored.exists).log_softmax(-1).clamp(min=LOWEST)

    def _count(self, obs: Any) -> int:
        choices = self.prior.choices
        return len(obs[choices.entries[0]] if choices.is_dict else obs)

    # --- an encoder ---------------------------------------------------------------------------

    def preprocess(self, obs: Any) -> Stored:
        return {"own": self.own.preprocess(obs), "prior": self._says(obs)}

    def preprocess_raw(self, obs: Any) -> Stored:
        return {"own": self.own.preprocess_raw(obs), "prior": self._says(obs)}

    def standardized(self, x: Any) -> Any:
        return {"own": self.own.standardized(x["own"]), "prior": x["prior"]}

    def repeats(self) -> dict[str, Any]:
        return {"own": self.own.repeats(), "prior": True}

    def unread(self) -> set[tuple[Any, ...]]:
        return self.own.unread() & self.prior.unread()

    def forward(self, x: Any) -> Tensor:
        return self.own(x["own"])

    def observe(self, obs: Any) -> None:
        self.own.observe(obs)  # nobody reads the prior's features

    def begin_rollout(self) -> None:
        self.own.begin_rollout()
        self.prior.begin_rollout()

    def synchronize(self) -> None:
        self.own.synchronize()

    def metrics(self) -> dict[str, float]:
        """Of both, the prior's as `llm/prior/…`, and `guide/weight`, `guide/kl_coef`."""
        asked = {k.replace("llm/", "llm/prior/", 1): v for k, v in self.prior.metrics().items()}
        weight, kl = self._now.tolist()
        paid = {"guide/kl_coef": kl} if self.pays else {}
        return {**self.own.metrics(), **asked, "guide/weight": weight, **paid}

    def collection_state(self) -> dict[str, Any]:
        return {"own": self.own.collection_state(), "prior": self.prior.collection_state()}

    def load_collection_state(self, state: dict[str, Any]) -> None:
        self.own.load_collection_state(state.get("own", {}))
        self.prior.load_collection_state(state.get("prior", {}))


def guide_of(encoder: Any) -> GuidedEncoder | None:
    """The encoder, compiled or not, if it brings a prior along."""
    if isinstance(encoder, nn.Module):  # asked at every step, where a missing attribute costs more
        encoder = children(encoder).get(WRAPPED, encoder)
    return encoder if isinstance(encoder, GuidedEncoder) else None


def _check_spaces(spec: EnvSpec) -> None:
    if not isinstance(spec.action_space, gym.spaces.Discrete):
        raise ConfigurationError(
            f"GuidedEncoder: a language model scores a number of texts, and actions of {spec.id} "
            f"are {shortened(spec.action_space)}: a prior is for Discrete actions; use the encoder "
            "inside it by itself"
        )
    space = spec.observation_space
    parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    if not any(is_text(part) for part in parts):
        raise ConfigurationError(
            f"GuidedEncoder: the prior reads text, but observations of {spec.id} are "
            f"{shortened(space)}: wrap the environment in `Describe` with keep: true, which puts a "
            "description beside them, and give encoder: {class_path: rl_lightning.DictEncoder, "
            "init_args: {ignore: [text]}}"
        )


def _prior(spec: EnvSpec, prior: Callable[[EnvSpec], Any]) -> TextActionEncoder:
    built = prior(spec)
    if not isinstance(built, TextActionEncoder):
        raise ConfigurationError(
            f"GuidedEncoder: {type(built).__name__} says nothing of actions: give "
            "prior: {class_path: rl_lightning.TextActionEncoder}"
        )
    if not built.frozen:
        raise ConfigurationError(
            f"GuidedEncoder: a prior does not learn, and tune: {built.backbone.tune} would train "
            "it; set tune: frozen, or act by a tuned model with ScoringPolicy"
        )
    return built
