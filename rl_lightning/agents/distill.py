"""Policy distillation: a small network learns what a trained agent says."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.lesson import Form, Objective, check_student, compare, form_of
from rl_lightning.agents.networks import build
from rl_lightning.agents.teacher import Teacher
from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import anneal
from rl_lightning.core.sharing import sharing
from rl_lightning.core.tree import to_device
from rl_lightning.core.types import EnvSpec, Rollout, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.vector import MLPEncoder
from rl_lightning.llm.backbone import frozen_models
from rl_lightning.maths import losses
from rl_lightning.maths.distributions import Categorical, mask_logits
from rl_lightning.policies.actor_critic import ActorCritic
from rl_lightning.policies.policy import Policy

Visit = Literal["teacher", "student", "both"]


class Distill(Agent):
    """A student that learns to say of every state what a teacher says (Rusu et al. 2016).

    At each step both look at the observation, each through its own encoder; one of them acts, and
    what the teacher said stands beside the action in the rollout, so that no update runs it. States
    are the teacher's, the student's (on-policy distillation, Czarnecki et al. 2019), or in turn
    those of the mixture β π_T + (1 − β) π_S with β falling to 0 (DAgger, Ross et al. 2011, of which
    only the aggregation of all earlier rollouts is left out: each is learned from while fresh).

    The teacher is frozen, and neither in the optimizer nor in checkpoints, which keep its path and
    digest. It is needed to train and not to act.

    Args:
        spec: The environment's spaces.
        teacher: Checkpoint of the agent to learn from, of any algorithm and encoder; without
            memory. Classes that it names outside this library must have been imported.
        encoder: Builds the student's encoder of observations.
        network: Builds the student's policy over the encoder, without memory; for Q-values a
            `QNetwork`.
        loss: `kl`: KL(π_T ‖ π_S). `cross_entropy`: −log π_S of the teacher's likeliest action.
            `mse`: squared error of Q-values; of Box actions that of the mean action.
        temperature: τ: the student learns π_T^(1/τ), normalised; of a teacher with Q-values,
            exp(Q / τ), normalised.
        visit: Who acts while training: the `teacher`, the `student`, or at each step of each
            environment one or the other, drawn by chance (`both`).
        mix: β in the beginning, the teacher's chance to act, of `visit: both`; None: 1.
        mix_fraction: Share of training over which β falls to 0, in a straight line; None: ½.
        explore: Whether who acts draws its action, otherwise it is the likeliest one.
        value_coef: Weight of ½ (V_S − V_T)², so that the student has a critic; 0: it has none.
        **shared: Arguments of `Agent`.

    Raises:
        ConfigurationError: If arguments are wrong, or as training begins, the teacher is not one.
    """

    reuses_rollouts = True
    learns_from_rewards = False

    def __init__(
        self,
        spec: EnvSpec,
        teacher: str | None = None,
        encoder: Callable[[EnvSpec], Encoder] = MLPEncoder,
        network: Callable[[EnvSpec, Callable[[EnvSpec], Encoder]], Policy] = ActorCritic,
        *,
        loss: Objective = "kl",
        temperature: float = 1.0,
        visit: Visit = "both",
        mix: float | None = None,
        mix_fraction: float | None = None,
        explore: bool = True,
        value_coef: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(spec, gamma=0.99, **shared)
        check_one_of("model.loss", loss, get_args(Objective))
        check_one_of("model.visit", visit, get_args(Visit))
        check_range("temperature", temperature, 1e-6)
        check_range("mix", mix, 0.0, 1.0)
        check_range("mix_fraction", mix_fraction, 0.0, 1.0)
        check_range("value_coef", value_coef, 0.0)
        if visit != "both" and (mix, mix_fraction) != (None, None):
            raise ConfigurationError(
                f"model.visit: {visit} leaves nothing to mix; leave out mix and mix_fraction, or "
                "give visit: both"
            )
        self.objective: Objective = loss
        self.form: Form = form_of(spec.action_space, loss, temperature, value_coef)
        if self.form == "values":
            self.policy = build(
                "Distill", network, spec, encoder, outputs=1, needs=("allowed",),
                instead="QNetwork, whose Q-values loss: mse regresses, or use loss: kl",
            )  # fmt: skip
        else:
            self.policy = build(
                "Distill", network, spec, encoder, critic=value_coef > 0, needs=("inspect",),
                instead="ActorCritic, or ScoringPolicy for a language model that scores actions",
            )  # fmt: skip
        check_student(self.policy)
        self.teacher_path = teacher
        self.teacher_digest: str | None = None
        self.teacher: Teacher | None = None
        self.temperature, self.value_coef = temperature, value_coef
        self.visit, self.mix, self.mix_fraction, self.explore = visit, mix, mix_fraction, explore
        self._collecting = False

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "teacher": None, "_collecting": False}

    # --- the teacher --------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.teacher_path is None:
            raise ConfigurationError(
                "model.teacher: give the checkpoint of the agent that Distill is to learn from"
            )
        with sharing(frozen_models(self)):
            self.teacher = Teacher(
                self.teacher_path, self.spec, self.form, self.temperature,
                self.form == "gaussian" and self.policy.action_head.squash, self.value_coef > 0,
            )  # fmt: skip
        known, here = self.teacher_digest, self.teacher.digest
        if self.trainer.ckpt_path is not None and known not in (None, here):
            raise ConfigurationError(
                f"model.teacher: {self.teacher_path} is another file than the one that this run "
                "has learned from: give that one, or begin a new run"
            )
        self.teacher_digest = here

    def observe(self, obs: Any) -> None:
        super().observe(obs)
        if self.teacher is not None and self._collecting:
            self.teacher.look(obs)

    def begin_rollout(self) -> None:
        super().begin_rollout()
        self._collecting = self.teacher is not None
        if self.teacher is not None and self.teacher.agent.device != self.device:
            self.teacher.agent.to(self.device)

    def synchronize(self) -> None:
        super().synchronize()
        self._collecting = False

    # --- acting -------------------------------------------------------------------------------

    @property
    def beta(self) -> float:
        """β, the teacher's chance to act at a step."""
        if self.visit != "both":
            return float(self.visit == "teacher")
        begin = 1.0 if self.mix is None else self.mix
        fraction = 0.5 if self.mix_fraction is None else self.mix_fraction
        return anneal(begin, 0.0, fraction, self.progress)

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """The student's actions; while a rollout is collected, the mixture's, and beside them what
        the `teacher` says."""
        if self.teacher is None or not (self._collecting and explore):
            return {"action": self._act_alone(x, explore, mask)}
        told, beta = self.teacher.answer(mask), self.beta
        action = self._act_alone(x, self.explore, mask)
        if beta > 0:
            theirs = self.teacher.act(told, self.explore)
            chosen = torch.rand(len(action), device=action.device) < beta  # [B]
            action = torch.where(chosen.view(-1, *[1] * (action.ndim - 1)), theirs, action)
        return {"action": action, "teacher": told}

    def _act_alone(self, x: Stored, explore: bool, mask: Tensor | None) -> Tensor:
        if self.form != "values":
            return self.policy.act(x, explore, None, mask)["action"]
        logits = mask_logits(self.policy(x) / self.temperature, self.policy.allowed(x, mask))
        choice = Categorical(logits).sample() if explore else logits.argmax(-1)
        return choice + int(self.spec.action_space.start)  # type: ignore[attr-defined]

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        own = self.form == "values"
        return {"values": self.policy(x)} if own else super().inspect(x, state, mask)

    def preprocess(self, obs: Any) -> Stored:
        if self.form == "values":  # a Q-network normalises by itself
            return to_device(self.encoder.preprocess_raw(obs), self.device)
        return super().preprocess(obs)

    # --- learning -----------------------------------------------------------------------------

    def prepare(self, rollout: Rollout) -> TensorDict:
        return rollout.steps.select("obs", "teacher", "action_mask", "valid", strict=False)

    def loss(self, batch: TensorDict) -> Loss:
        valid, told = batch.get("valid", None), batch["teacher"]
        said = self.inspect(batch["obs"], None, batch.get("action_mask", None))
        head = self.policy.action_head if self.form == "action" else None
        rows, metric = compare(self.form, self.objective, self.spec, told, said, head)
        distill_loss = losses.mean(rows, valid)
        loss, extra = distill_loss, {}
        if self.value_coef:
            value_loss = losses.value_loss(said["value"], told["value"], valid=valid)
            loss, extra = loss + self.value_coef * value_loss, {"loss/value": value_loss}

        def metrics() -> dict[str, Any]:
            name, rows = metric()
            return {"loss/distill": distill_loss, **extra, name: losses.mean(rows, valid)}

        return Loss(loss, metrics)

    def gauges(self) -> Mapping[str, Any]:
        return {**super().gauges(), "distill/mix": self.beta}

    # --- resuming -----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_digest"] = self.teacher_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.teacher_digest = checkpoint.get("teacher_digest")

    def collection_state(self) -> dict[str, Any]:
        teacher = None if self.teacher is None else self.teacher.state_dict()
        return {"student": super().collection_state(), "teacher": teacher}

    def load_collection_state(self, state: dict[str, Any]) -> None:
        super().load_collection_state(state["student"])
        if self.teacher is not None and state["teacher"] is not None:
            self.teacher.load_state_dict(state["teacher"])

    def encoder_metrics(self) -> Mapping[str, float]:
        theirs = {} if self.teacher is None else self.teacher.agent.encoder_metrics()
        return {**theirs, **super().encoder_metrics()}
