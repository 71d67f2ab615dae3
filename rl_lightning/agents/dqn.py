"""Deep Q-learning, with everything that made it Rainbow."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.guides import check_explores
from rl_lightning.agents.networks import build
from rl_lightning.agents.replay_agent import ReplayAgent
from rl_lightning.core.errors import ConfigurationError, check_finite, check_range, whole
from rl_lightning.core.loss import Loss
from rl_lightning.core.tree import row_count
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.exploration import EpsilonGreedy, ValueExploration, greedy_action
from rl_lightning.maths import losses
from rl_lightning.nn.target import make_target
from rl_lightning.policies.q_network import ActionValues, QNetwork, pick


class DQN(ReplayAgent):
    """Q-learning with a network, a replay buffer and a target network (Mnih et al. 2015).

    The parts of Rainbow (Hessel et al. 2018) are switches: `double`, `distribution: categorical`
    (C51) or `quantile` (QR-DQN), the network's `dueling` and `noisy`, and on the data's side
    `n_step` and `prioritized`.

    With a `GuidedEncoder` exploration draws from its prior: ε-greedy draws from priorʷ, w its
    weight, in the place of evenly, and Boltzmann's are ∝ priorʷ · exp(Q / τ). What is learned, and
    the greedy action, are Q's alone.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds the encoder of observations.
        network: Builds Q over the encoder.
        exploration: Builds what chooses actions while training; None: the greedy one, for noisy
            networks.
        double: Let the online network choose the next action and the target network judge it
            (van Hasselt et al. 2016).
        distribution: Learn the mean return (`none`), its distribution over `atoms` fixed values
            (`categorical`, Bellemare et al. 2017), or `atoms` quantiles of it (`quantile`, Dabney
            et al. 2018).
        atoms: Atoms or quantiles of a distribution.
        value_range: Lowest and highest discounted return of a categorical distribution; it cannot
            tell returns beyond them apart, so there is no default.
        error: What is made of the mean's error: `huber` (as in Mnih et al.) or `mse`.
        target_update_frames: Frames between two moves of the target network; 0: every update.
        tau: How far it moves: 1 copies, 0.005 follows slowly.
        **shared: Arguments of `ReplayAgent`.
    """

    tells_priorities = True
    support: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], ActionValues] = QNetwork,
        *,
        exploration: Callable[[], ValueExploration] | None = EpsilonGreedy,
        double: bool = False,
        distribution: Literal["none", "categorical", "quantile"] = "none",
        atoms: int = 51,
        value_range: tuple[float, float] | None = None,
        error: Literal["huber", "mse"] = "huber",
        target_update_frames: int = 500,
        tau: float = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        check_range("tau", tau, 0.0, 1.0)
        target_update_frames = whole("target_update_frames", target_update_frames, 0)
        if distribution not in ("none", "categorical", "quantile"):
            raise ConfigurationError(
                f"distribution must be none, categorical or quantile, not {distribution!r}"
            )
        if error not in ("huber", "mse"):
            raise ConfigurationError(f"error must be huber or mse, not {error!r}")
        outputs = 1
        if distribution != "none":
            outputs = whole("atoms", atoms, 2)
        if distribution == "categorical" and value_range is None:
            raise ConfigurationError(
                "distribution: categorical needs value_range, the lowest and highest discounted "
                "return: [0, 100] for a reward of 1 per step and gamma 0.99; or use quantile"
            )
        low, high = (float(v) for v in value_range or (0.0, 1.0))
        for bound in (low, high):
            check_finite("value_range", bound)
        if not low < high:
            raise ConfigurationError(f"value_range must ascend, not {low:g}, {high:g}")
        self.policy = build(
            "DQN", network, spec, encoder, outputs=outputs, needs=(),
            instead="QNetwork, or ScoringQNetwork for a language model that scores the actions",
        )  # fmt: skip
        self.target = make_target(self.policy)
        self.start = int(spec.action_space.start)  # type: ignore[attr-defined]
        self.exploration = None if exploration is None else exploration()
        self.double_q = double
        self.distribution = distribution
        self.error = error
        self.target_update_frames = target_update_frames
        self.tau = tau
        self.register_buffer("support", torch.linspace(low, high, outputs), persistent=False)
        self._moves = 0
        if self.policy.guide is not None:
            check_explores(self.exploration)

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        mask = self.policy.allowed(x, mask)
        if explore:
            self.policy.resample()
        else:
            self.policy.silence()

        def values() -> Tensor:
            return self.values(self.policy(x))

        if explore and self.exploration is not None:
            # Not `self.device`, which takes the module ten times longer to tell.
            even = torch.zeros(row_count(x), self.policy.actions, device=self.support.device)
            logits = self.policy.guided_logits(x, even)
            action = self.exploration.choose(values, logits, self.progress, mask)
        else:
            action = greedy_action(values(), mask)
        return {"action": action + self.start if self.start else action}

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Q(s, ·), `values` `[B, A]`."""
        self.policy.silence()
        return {"values": self.values(self.policy(x))}

    def values(self, out: Tensor) -> Tensor:
        """What the network returned `[N, A, ...]` → Q(s, ·) `[N, A]`."""
        if self.distribution == "categorical":
            return out.softmax(-1) @ self.support
        return out.mean(-1) if self.distribution == "quantile" else out

    # --- learning -----------------------------------------------------------------------------

    @torch.no_grad()
    def bootstrap(self, batch: TensorDict) -> Tensor:
        """What the target network says of the best next actions, `[N]` or `[N, atoms]`."""
        next_out = self.target(batch["next_obs"])
        chooser = self.policy(batch["next_obs"]) if self.double_q else next_out
        mask = self.policy.allowed(batch["next_obs"], batch.get("next_action_mask", None))
        best = greedy_action(self.values(chooser), mask)
        return pick(next_out, best)

    def errors(self, batch: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each row with gradient, its error, and Q(s, a), `[N]` each.

        The error is δ, whose size is the row's priority; of a categorical distribution it is the
        divergence of target and prediction (Hessel et al. 2018), which a row that is learned does
        not keep.
        """
        out = pick(self.policy(batch["obs"]), batch["action"] - self.start)
        next_out = self.bootstrap(batch)
        reward, discount = batch["reward"], batch["discount"]
        if self.distribution == "categorical":
            td_target = losses.project_distribution(
                self.support, next_out.softmax(-1), reward, discount
            )
            log_prob = F.log_softmax(out, dim=-1)
            loss = -(td_target * log_prob).sum(-1)
            divergence = loss.detach() + torch.xlogy(td_target, td_target).sum(-1)
            return loss, divergence.clamp(min=0.0), log_prob.detach().exp() @ self.support
        if self.distribution == "quantile":
            td_target = reward[:, None] + discount[:, None] * next_out
            value = out.detach().mean(1)
            return losses.quantile_huber(out, td_target), td_target.mean(1) - value, value
        td_target = reward + discount * next_out
        if self.error == "huber":
            rows = F.smooth_l1_loss(out, td_target, reduction="none")
        else:
            rows = 0.5 * F.mse_loss(out, td_target, reduction="none")
        value = out.detach()
        return rows, td_target - value, value

    def loss(self, batch: TensorDict) -> Loss:
        self.policy.resample()
        self.target.resample()
        rows, error, value = self.errors(batch)
        loss = losses.weighted_mean(rows, batch.get("weight", None))

        def metrics() -> dict[str, Any]:
            told = {"loss/q": loss, "value/td_error": error.abs().mean(), "value/q": value.mean()}
            if self.exploration is None:
                return told
            strength = self.exploration.strength(self.progress)
            return {**told, f"explore/{self.exploration.name}": strength}

        return Loss(loss, metrics, row_errors=error)

    def after_update(self) -> None:
        moves = self.frames // max(self.target_update_frames, 1)
        if self.target_update_frames == 0 or moves != self._moves:
            self.move_target(self.tau)
            self._moves = moves

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._moves = self.frames // max(self.target_update_frames, 1)
