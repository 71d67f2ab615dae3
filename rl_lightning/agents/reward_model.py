"""A reward that is learned from labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.agent import Agent
from rl_lightning.core.errors import ConfigurationError, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.maths.preferences import bradley_terry, preference_hits
from rl_lightning.nn.mlp import Activation
from rl_lightning.nn.modes import EvalMode
from rl_lightning.rewards.network import Inputs, RewardNetwork
from rl_lightning.rewards.statistics import check_statistics, statistics_of

Objective = Literal["preferences", "regression", "classification"]


class RewardModel(Agent):
    """r(s′) or r(s, a, s′) learned from comparisons by the Bradley–Terry model (Christiano et al.
    2017; Motif, Klissarov et al. 2023), or from labels of single observations.

    It is trained by a `PreferenceDataModule` and acts nowhere: `LearnedReward` pays what it has
    learned. Beside its weights a checkpoint holds mean, standard deviation and quantiles of r over
    the training observations, which that normalises by.

    Args:
        spec: The spaces of what it judges.
        encoder: Builds the encoder of observations, such as a frozen `LLMEncoder`.
        inputs: `next_obs` for r(s′), `transition` for r(s, a, s′).
        objective: `preferences`: which of two is better. `regression` of scores: squared error.
            `classification` of labels in [0, 1]: cross-entropy; r is then the logit.
        hidden: Widths of the layers above the encoder.
        activation: Of those layers.
        dropout: Share of features that are dropped while learning.
        max_grad_norm: Largest norm of all gradients together; None: `trainer.gradient_clip_val`.
        **shared: Arguments of `Agent`.

    Raises:
        ConfigurationError: If an argument is wrong.
    """

    learns_from = ("preferences",)
    monitored = ("val/loss", "min")
    """What makes a checkpoint the best one, where a configuration says nothing else."""
    inputs: Inputs
    objective: Objective

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        inputs: Inputs = "next_obs",
        objective: Objective = "preferences",
        hidden: Sequence[int] = (64,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        *,
        max_grad_norm: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, gamma=0.99, **shared)
        if objective not in get_args(Objective):
            raise ConfigurationError(
                f"model.objective must be one of {', '.join(get_args(Objective))}, not "
                f"{objective!r}"
            )
        check_range("max_grad_norm", max_grad_norm, 1e-12)
        self.max_grad_norm = max_grad_norm
        self.inputs, self.objective = inputs, objective
        self.network = RewardNetwork(spec, encoder, inputs, hidden, activation, dropout)
        self.statistics: dict[str, Any] | None = None
        """Of r over the training observations, see `statistics_of`; None before training."""
        self._rows: Callable[[], Iterable[TensorDict]] | None = None
        self._measured_at: int | None = None

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "_rows": None}

    # --- what an agent is asked ---------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (self.network.encoder,)

    @property
    def mask_dim(self) -> int:
        return 0

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigurationError(
            "RewardModel judges and does not act; train an agent on what it has learned: "
            "data.rewards: [{class_path: rl_lightning.rewards.LearnedReward, init_args: "
            "{ckpt_path: …}}]"
        )

    # --- judging ------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, next_obs: Any, obs: Any = None, action: Any = None) -> Tensor:
        """r of steps, as environments give them, in eval mode and without gradient.

        Args:
            next_obs: What B steps led to, batched as a vector env batches.
            obs: Where they began; for r(s, a, s′) alone, like
            action: what was done.

        Returns:
            Float32 `[B]`.
        """
        with EvalMode(self):
            x: Any = self.preprocess(next_obs)
            if self.inputs == "next_obs":
                return self.network(x)
            before: Any = None if obs is None else self.preprocess(obs)
            done = None if action is None else torch.as_tensor(action, device=self.device)
            return self.network(x, before, done)

    def rewards(self, batch: TensorDict) -> Tensor:
        """r of stored observations, of the shape of the batch."""
        rows = batch.reshape(-1)
        r = self.network(rows["next_obs"], rows.get("obs", None), rows.get("action", None))
        return r.view(batch.batch_size)

    # --- learning -----------------------------------------------------------------------------

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of labelled comparisons `[N, 2]`, or of labelled observations `[N, 1]`.

        Args:
            batch: `next_obs`, of transitions `obs` and `action` too, and `label`, which is the same
                for both of a pair.
        """
        terms = self.judged(batch)
        value = terms["loss"] / terms["count"]
        return Loss(value, lambda: {"loss/reward": value, **_means("train", terms)})

    def judged(self, batch: TensorDict) -> dict[str, Tensor]:
        """What a batch adds to loss, hits and errors, and to what these are divided by."""
        r, label = self.rewards(batch), batch["label"][:, 0].float()
        count = torch.tensor(float(len(batch)), device=r.device)
        if self.objective == "preferences":
            hits, pairs = preference_hits(r, label)
            return {
                "loss": bradley_terry(r, label).sum(),
                "count": count,
                "hits": hits,
                "pairs": pairs,
            }
        r = r[:, 0]
        if self.objective == "classification":
            loss = F.binary_cross_entropy_with_logits(r, label, reduction="sum")
            hits, pairs = preference_hits(torch.stack([torch.zeros_like(r), r], 1), label)
            return {"loss": loss, "count": count, "hits": hits, "pairs": pairs}
        return {
            "loss": (r - label).square().sum(),
            "count": count,
            "error": (r - label).abs().sum(),
        }

    # --- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: TensorDict, batch_idx: int) -> None:  # type: ignore[override]
        self._episodes.append(self.judged(batch))

    def test_step(self, batch: TensorDict, batch_idx: int) -> None:  # type: ignore[override]
        self._episodes.append(self.judged(batch))

    def _log_episodes(self, prefix: str) -> None:
        terms, self._episodes = self._episodes, []
        if not terms:
            return
        sums = {name: torch.stack([one[name] for one in terms]).sum() for name in terms[0]}
        metrics = {f"{prefix}/loss": sums["loss"] / sums["count"], **_means(prefix, sums)}
        self.log_dict({**metrics, "step": torch.tensor(float(self.frames))})

    # --- statistics ---------------------------------------------------------------------------

    def measure_over(self, rows: Callable[[], Iterable[TensorDict]]) -> None:
        """Told where the training observations are, for `statistics`."""
        self._rows, self._measured_at = rows, None

    @torch.no_grad()
    def measure(self) -> None:
        """Bring `statistics` up to date, if the training observations are at hand."""
        if self._rows is None or self._measured_at == self.updates:
            return
        with EvalMode(self):
            r = [self.rewards(rows).reshape(-1).cpu() for rows in self._rows()]
        if r:
            self.statistics, self._measured_at = statistics_of(torch.cat(r)), self.updates

    def on_train_end(self) -> None:
        super().on_train_end()
        self.measure()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.measure()
        checkpoint["reward_statistics"] = self.statistics

    def on_load_checkpoint(self, checkpoint: dict[str, Any] | Mapping[str, Any]) -> None:
        super().on_load_checkpoint(dict(checkpoint))
        self.statistics = check_statistics(checkpoint.get("reward_statistics"))


def _means(prefix: str, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Accuracy over what is no tie, where there are only ties chance; mean absolute error."""
    if "error" in sums:
        return {f"{prefix}/error": sums["error"] / sums["count"]}
    pairs = sums["pairs"]
    accuracy = torch.where(pairs > 0, sums["hits"] / pairs.clamp(min=1), 0.5)
    return {f"{prefix}/accuracy": accuracy}
