"""The base of all agents: a policy and a loss, and what every LightningModule of ours shares."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.acting import ActingModule
from rl_lightning.agents.compressed import CompressedModule
from rl_lightning.agents.copies import CopyableModule
from rl_lightning.agents.evaluated import EvaluatedModule
from rl_lightning.agents.guides import check_guides
from rl_lightning.agents.load import check_kind
from rl_lightning.agents.optimizer import OptimizedModule, check_restored
from rl_lightning.agents.stored import StoredModule, count_of
from rl_lightning.agents.updating import UpdatingModule
from rl_lightning.core.errors import ConfigurationError, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import Schedule, factor
from rl_lightning.core.types import EnvSpec, Rollout
from rl_lightning.maths import losses
from rl_lightning.policies.q_network import ActionValues

# Fused: one kernel for all parameters, a quarter less time per update than the default on a CPU.
adam = partial(torch.optim.Adam, lr=3e-4, eps=1e-5, fused=True)


class Agent(
    StoredModule,
    ActingModule,
    OptimizedModule,
    CopyableModule,
    CompressedModule,
    UpdatingModule,
    EvaluatedModule,
):
    """A policy and a loss. Environments, storage and the training loop live elsewhere.

    A subclass builds its `policy` in `__init__`, after `super().__init__`, and implements `prepare`
    and `loss`; one that learns from replay is a `ReplayAgent` and implements `loss` alone. Its
    constructor's arguments are remembered as hyper-parameters without further ado, so that
    `load_from_checkpoint` rebuilds it.

    Args:
        spec: The environment's spaces.
        optimizer: Builds the optimizer from parameter groups; None: `default_optimizer`, which is
            fused Adam, lr 3e-4, ε 1e-5, where the agent says nothing else.
        lr_schedule: Schedule of all learning rates over training: constant, linear or cosine.
        encoder_lr: Learning rate of the encoders' parameters; None: the optimizer's.
        gamma: Discount γ in [0, 1].
    """

    gamma: float
    """Discount γ; reward normalisation needs it too."""
    sequence_length: int | None = None
    """With a recurrent policy, steps per training sequence; None: the whole rollout."""
    tells_priorities: bool = False
    """Whether it says how wrong it was on each row, for prioritised replay."""
    default_optimizer: OptimizerCallable = staticmethod(adam)
    """What `optimizer: null` means. No default argument: jsonargparse would hand its values on to
    the optimizer that a configuration names instead."""
    reuses_rollouts: bool = False
    """Whether the loss stays right in minibatches and passes after the first update."""

    def __init__(
        self,
        spec: EnvSpec,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: Schedule = "constant",
        encoder_lr: float | None = None,
        gamma: float = 0.99,
    ) -> None:
        super().__init__()
        self._remember_arguments()
        factor(lr_schedule, 0.0)
        check_range("gamma", gamma, 0.0, 1.0)
        check_range("encoder_lr", encoder_lr, 0.0)
        self._rates_set = False
        self.gamma = gamma
        self.spec = spec
        self.optimizer = optimizer or self.default_optimizer
        self.lr_schedule: Schedule = lr_schedule
        self.encoder_lr = encoder_lr
        self.frames = 0
        self.progress = 0.0
        self.rollout_metrics: dict[str, Any] = {}
        self._measure: Callable[[], Mapping[str, float]] = dict
        self._episodes: list[Mapping[str, Any]] = []

    def run_state(self) -> dict[str, Any]:
        """Attributes that belong to a run, and what they are in a copy, which is in none."""
        return {
            "_measure": dict,
            "rollout_metrics": {},
            "_episodes": [],
            "_due": False,
            "_asked": False,
            "_told": None,
            "_step": None,
            "_plain": False,
            "_stop": False,
            "_noted": [],
            "_sums": {},
            "_last_loss": None,
        }

    # --- what an algorithm is made of ---------------------------------------------------------

    def prepare(self, rollout: Rollout) -> TensorDict:
        """Turn a rollout into the batch `[T, B]` that minibatches come from, without gradient."""
        raise NotImplementedError

    def note_critic(self, value: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Have it logged how much of a rollout's targets the critic knew, `[T, B]` each."""
        explained = losses.explained_variance(value, target, valid)
        self.rollout_metrics = {"value/explained_variance": explained}

    def gauges(self) -> Mapping[str, Any]:
        return self.rollout_metrics

    def need_critic(self) -> None:
        """Refuse a policy without value head."""
        if isinstance(self.policy, ActionValues):
            raise ConfigurationError(
                f"{type(self).__name__} learns a policy, and model.network, "
                f"{type(self.policy).__name__}, makes values of actions: give ActorCritic, or "
                "ScoringPolicy for a language model that scores the actions, or use DQN"
            )
        known = getattr(self.policy, "critic", None) is not None  # of a policy of another kind
        if not getattr(self.policy, "has_critic", known):
            raise ConfigurationError(
                f"{type(self).__name__} needs a critic: leave out model.network's critic: false "
                "(a policy of your own needs a `value`), or use REINFORCE with baseline: false"
            )

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of a minibatch.

        It reads nothing but the batch, the networks and the arguments, so that anybody can call it.

        Args:
            batch: Rows of what `prepare` returned, `[N, ...]`, or with memory sequences `[L, N,
                ...]`.
        """
        raise NotImplementedError

    # --- Lightning ----------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        check_guides(self)
        for optimizer in self.trainer.optimizers:
            check_restored(optimizer)

    @property
    def clock_metrics(self) -> Mapping[str, float]:
        """Statistics of data collection, as of now."""
        return self._measure()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_numbers()
        self.save_compression(checkpoint)
        checkpoint["frames"] = self.frames
        checkpoint["updates"] = self.updates
        checkpoint["progress"] = self.progress  # exploration stands there, not at its beginning

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_kind(self, checkpoint)
        frames, progress = count_of(checkpoint, "frames"), checkpoint.get("progress", 0.0)
        if not isinstance(progress, int | float) or not 0 <= progress <= 1:
            raise ConfigurationError(f"the checkpoint's progress is {progress!r}: it was changed")
        self.load_compression(checkpoint)
        self.frames, self.progress = frames, progress
        self.updates = count_of(checkpoint, "updates", checkpoint.get("global_step", 0))
