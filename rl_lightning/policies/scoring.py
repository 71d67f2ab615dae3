"""Policies whose actions are texts, and whose preferences are a language model's."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, RunError, check_one_of, check_range
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.actions import (
    Normalize,
    Scored,
    TextActionEncoder,
    normalized,
)
from rl_lightning.maths.distributions import Categorical, mask_logits
from rl_lightning.nn.mlp import MLP, Activation, mlp, orthogonal_, widths
from rl_lightning.policies.policy import Evaluation, RolloutPolicy
from rl_lightning.policies.q_network import ActionValues

# Arguments have other names than an ActorCritic's or a QNetwork's: of those, which are the default,
# a configuration that names another class keeps the values of arguments that both have.


class ActionScores(nn.Module):
    """What a language model prefers, `[N, A]`, and what training adds to that.

    Added is qᵀk / √d of the prompt's features and each candidate's tokens (a bilinear head, 0 in
    the beginning), so that with a frozen model there is something to train, for any number of
    candidates, and candidates of like words are alike.

    Args:
        encoder: Reads observations.
        normalize: See `normalized`.
        temperature: Scores are divided by it.
        head: Whether something is added; None: if the model is frozen.
        head_size: d.
    """

    def __init__(
        self,
        encoder: TextActionEncoder,
        normalize: Normalize,
        temperature: float,
        head: bool | None,
        head_size: int = 64,
    ) -> None:
        super().__init__()
        check_one_of("normalize", normalize, get_args(Normalize))
        check_range("temperature", temperature, 1e-6)
        self.normalize: Normalize = normalize
        self.temperature = temperature
        self.query: nn.Linear | None = None
        self.key: nn.Linear | None = None
        if encoder.frozen if head is None else head:
            self.query = orthogonal_(nn.Linear(encoder.out_dim, head_size), gain=0.0)
            self.key = orthogonal_(nn.Linear(encoder.vector_dim, head_size), gain=1.0)

    def forward(self, encoder: TextActionEncoder, x: Any, scored: Scored) -> Tensor:
        """Preferences `[N, A]`, float32."""
        out = normalized(scored, self.normalize) / self.temperature
        if self.query is not None and self.key is not None:
            query, vectors = self.query(scored.features), encoder.candidate_vectors(x)
            # Of one size each, whatever size a model's embeddings have.
            vectors = nn.functional.layer_norm(vectors, vectors.shape[-1:])
            key = self.key(vectors)  # [N, A, d]
            out = out + (key @ query.unsqueeze(-1)).squeeze(-1).float() * key.shape[-1] ** -0.5
        return out


class TextPolicy(RolloutPolicy):
    """A policy whose actions are texts: over an encoder that holds the language model, with a value
    head on the prompt's features.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds the encoder, a `TextActionEncoder`.
        critic_hidden: Widths of the critic's layers.
        critic_activation: Of those layers.
        detach_critic: Keep the critic's gradient from the model.
        critic: Whether there is a value head.
    """

    encoder: TextActionEncoder

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        critic_hidden: Sequence[int],
        critic_activation: Activation,
        detach_critic: bool,
        critic: bool,
    ) -> None:
        super().__init__()
        hidden = widths(critic_hidden)
        self.encoder = scoring_encoder(spec, encoder, type(self).__name__)
        self.mask_dim = self.encoder.choices.count
        self.start = int(spec.action_space.start)  # type: ignore[attr-defined]
        size = self.encoder.out_dim
        self.critic = value_head(size, hidden, critic_activation) if critic else None
        self.detach_critic = detach_critic

    @property
    def has_critic(self) -> bool:
        """Whether there is a value head."""
        return self.critic is not None

    def value(self, x: Stored, state: Tensor | None = None) -> Tensor:
        return self.value_of(self.encoder(x))

    def value_of(self, features: Tensor) -> Tensor:
        """V of the prompts' features `[N, D]`, `[N]`."""
        assert self.critic is not None, "this policy was built without a critic"
        features = features.detach() if self.detach_critic else features
        return self.critic(features).squeeze(-1).float()


class ScoringPolicy(TextPolicy):
    """π(a|s) = softmax of what a language model gives the texts of the actions.

    As in GLAM (Carta et al. 2023, sums) and TWOSOME (Tan et al. 2024, means over tokens or words).
    The value is a small network's on the prompt's last hidden state. With the model frozen, `head`
    is what learns to act.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds the encoder, a `TextActionEncoder`.
        normalize: Divide log p of an action by nothing (`sum`), its tokens or its words.
        temperature: Of the softmax: higher is more even.
        head: Add a trained bilinear term to the scores; None: if the model is frozen.
        critic_hidden: Widths of the critic's layers.
        critic_activation: Of those layers.
        detach_critic: Keep the critic's gradient from the model.
        critic: Whether there is a value head.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        normalize: Normalize = "token",
        temperature: float = 1.0,
        head: bool | None = None,
        critic_hidden: Sequence[int] = (64,),
        critic_activation: Activation = "tanh",
        detach_critic: bool = False,
        critic: bool = True,
    ) -> None:
        super().__init__(spec, encoder, critic_hidden, critic_activation, detach_critic, critic)
        self.scores = ActionScores(self.encoder, normalize, temperature, head)
        # A frozen model's scores are stored; a tuned one has done the work when it acts.
        self.evaluates_while_acting = not self.encoder.frozen

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        scored = self.encoder.score(x)
        check_choice(scored.exists)
        distribution = self._distribution(x, scored, mask)
        latent = distribution.sample() if explore else distribution.mode()
        out = {"action": latent + self.start if self.start else latent}
        if self.evaluates_while_acting:
            out["log_prob"] = distribution.log_prob(latent)
            if self.critic is not None:
                out["value"] = self.value_of(scored.features)
        return out

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`probabilities` and the model's own `log_probs` of the actions, `[B, A]`, and `value`."""
        scored = self.encoder.score(x)
        out = {
            "probabilities": self._distribution(x, scored, mask).probabilities(),
            "log_probs": scored.log_prob,
        }
        if self.critic is not None:
            out["value"] = self.value_of(scored.features)
        return out

    def evaluate(self, batch: TensorDict) -> Evaluation:
        x = batch["obs"]
        scored = self.encoder.score(x)
        action = batch["action"] - self.start
        if self.encoder.choices.fixed is None:
            check_chosen(scored.exists, action)
        distribution = self._distribution(x, scored, batch.get("action_mask", None))
        log_prob = distribution.log_prob(action)
        value = self.value_of(scored.features) if self.has_critic else torch.zeros_like(log_prob)
        return Evaluation(log_prob, distribution.entropy(), value)

    def _distribution(self, x: Any, scored: Scored, mask: Tensor | None) -> Categorical:
        allowed = scored.exists if mask is None else scored.exists & mask
        return Categorical(mask_logits(self.scores(self.encoder, x, scored), allowed))


class ScoringQNetwork(ActionValues):
    """Q(s, a) = V(s) + w · (score(a|s) − mean score): a language model's preferences as values.

    w is learned and begins at `scale`; V is a small network's on the prompt's features.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds the encoder, a `TextActionEncoder`.
        normalize: See `ScoringPolicy`.
        scale: w in the beginning, in units of return per nat.
        head: See `ScoringPolicy`.
        value_hidden: Widths of V's layers.
        value_activation: Of those layers.
        outputs: Numbers for each action; a model says one.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Any],
        normalize: Normalize = "token",
        scale: float = 1.0,
        head: bool | None = None,
        value_hidden: Sequence[int] = (64,),
        value_activation: Activation = "relu",
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if outputs != 1:
            raise ConfigurationError(
                "ScoringQNetwork: a language model gives each action one number, and no "
                "distribution of returns; set distribution: none"
            )
        self.encoder = scoring_encoder(spec, encoder, "ScoringQNetwork")
        self.actions = self.mask_dim = self.encoder.choices.count
        self.scores = ActionScores(self.encoder, normalize, 1.0, head)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.value = mlp(self.encoder.out_dim, widths(value_hidden), value_activation, 1)

    def allowed(self, x: Stored, mask: Tensor | None) -> Tensor | None:
        """The mask, which must be there if candidates come with the observation and are not always
        as many: else exploration and the first random steps would play what is not there.

        Raises:
            RunError: If it is not.
        """
        if self.encoder.choices.fixed is not None:
            return mask
        exists = self.encoder.exists(x)
        if mask is not None:
            return exists & mask
        if not bool(exists.all()):
            raise RunError(
                f"a state offers {int(exists.sum(-1).min())} texts for {self.actions} actions, and "
                "the environment gives no info['action_mask'], without which DQN would try actions "
                "that are not there: give it one, or use rl_lightning.envs.AdmissibleActions"
            )
        return None

    def forward(self, x: Stored) -> Tensor:
        """Raw stored observations `[N, ...]` → `[N, A]`."""
        x = self.encoder.standardized(x)
        scored = self.encoder.score(x)
        scores = self.scores(self.encoder, x, scored) * scored.exists
        mean = scores.sum(-1, keepdim=True) / scored.exists.sum(-1, keepdim=True).clamp(min=1)
        return self.value(scored.features).float() + self.scale * (scores - mean)


def check_choice(exists: Tensor) -> None:
    """Refuse to act where there is nothing to choose from, bool `[N, A]`.

    Raises:
        RunError: If a row has no candidate.
    """
    if not bool(exists.any(-1).all()):
        raise RunError(
            "the observation's entry 'actions' is empty: there is no candidate to choose from; "
            "an environment must offer something to do until its episode ends"
        )


def check_chosen(exists: Tensor, action: Tensor) -> None:
    """Refuse to learn an action that was no candidate, of bool `[N, A]` and indices `[N]`.

    Raises:
        RunError: If there is one.
    """
    if not bool(exists.gather(-1, action.unsqueeze(-1)).all()):
        raise RunError(
            "an action that is learned from is none of the texts that its observation's entry "
            "'actions' offers: what recorded it chose among more actions than there were"
        )


def value_head(size: int, hidden: Sequence[int], activation: Activation) -> MLP:
    """Features `[N, size]` → `[N, 1]`."""
    last = hidden[-1] if hidden else size
    return MLP(*mlp(size, hidden, activation), orthogonal_(nn.Linear(last, 1), gain=1.0))


def scoring_encoder(
    spec: EnvSpec, encoder: Callable[[EnvSpec], Any], whose: str
) -> TextActionEncoder:
    """Build the encoder, and see to it that it scores.

    Raises:
        ConfigurationError: If it is of another kind.
    """
    built = encoder(spec)
    if not isinstance(built, TextActionEncoder):
        raise ConfigurationError(
            f"{whose} chooses by what a language model says of the actions' texts, and "
            f"{type(built).__name__} says nothing of them: give "
            "model.encoder: {class_path: rl_lightning.TextActionEncoder}"
        )
    return built
