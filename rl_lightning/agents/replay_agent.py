"""The base of agents that learn from replay: a loss of a batch, and many updates in one step."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.agent import Agent
from rl_lightning.agents.stored import count_of
from rl_lightning.core.errors import check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import Schedule
from rl_lightning.core.types import EnvSpec
from rl_lightning.nn.clip import clip_gradients
from rl_lightning.nn.target import TargetUpdate
from rl_lightning.trainer import is_logged, is_plain, take_step


class ReplayAgent(Agent):
    """An agent whose algorithm is the `loss` of a batch of transitions.

    Args:
        spec: The environment's spaces.
        optimizer: Builds the optimizer from parameter groups; None: `default_optimizer`.
        lr_schedule: Schedule of all learning rates over training progress.
        encoder_lr: Learning rate of the encoders' parameters; None: the optimizer's.
        gamma: Discount γ in [0, 1].
        max_grad_norm: Largest norm of all gradients together; None for no clipping.
    """

    learns_from = ("replay",)
    updates: int
    """Steps of its optimizer so far."""
    target: Any
    """What bootstraps, of agents that have a target network."""

    def __init__(
        self,
        spec: EnvSpec,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: Schedule = "constant",
        encoder_lr: float | None = None,
        gamma: float = 0.99,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(spec, optimizer, lr_schedule, encoder_lr, gamma)
        check_range("max_grad_norm", max_grad_norm, 1e-12)
        self.automatic_optimization = type(self).training_step is not ReplayAgent.training_step
        self.max_grad_norm = max_grad_norm
        self.updates = 0
        self._target_update: TargetUpdate | None = None
        self._plain = False

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of a batch of transitions.

        Args:
            batch: `obs`, `action`, `reward`, `discount` (γⁿ, or 0 after a terminal step) and
                `next_obs`, of environments with masks `action_mask` and `next_action_mask`, from
                prioritised replay the `weight` of each row, `[N, ...]` each. An agent that
                `tells_priorities` weights its rows, and returns their δ as `row_errors`, `[N]`.
        """
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Learn from a run of replay batches, each sampled when its turn comes.

        One step of the trainer holds many updates, because small networks learn faster than the
        trainer's own bookkeeping runs. Manual optimisation therefore: clipping is `max_grad_norm`.
        """
        last = len(batch) - 1
        self._mute = True
        try:
            for index, part in enumerate(batch.batches()):
                if index == last:
                    self._mute = False
                loss = self.explained_loss(part)
                if index == last and is_logged(self.trainer):
                    self._log_losses(loss.metrics)
                if loss.row_errors is not None:
                    batch.row_errors = loss.row_errors
                self.update(loss.value)
        except Exception as error:
            self.explain(error)
            raise
        self.check_loss()

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer, and of what follows it."""
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:  # `zero_grad` tells the profiler first, at length
            for parameter in group["params"]:
                parameter.grad = None
        if self._plain:
            self.note_loss(loss)
            loss.backward()
            self.clip(optimizer)
            take_step(optimizer)
        else:
            self.manual_backward(loss)
            optimizer.step()
        self.updates += 1
        self.after_update()

    def on_train_start(self) -> None:
        super().on_train_start()
        # Pairs of parameters and buffers, which moving devices may have replaced.
        self._target_update = None
        self._plain = is_plain(self.trainer, self, ReplayAgent)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Here gradients are unscaled in every precision, and no longer generators.
        self.clip(optimizer)

    def clip(self, optimizer: Any) -> None:
        """Clip the gradients of what an optimizer moves, by `max_grad_norm`."""
        if self.max_grad_norm is not None:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            clip_gradients([p.grad for p in parameters if p.grad is not None], self.max_grad_norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["updates"] = self.updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.updates = count_of(checkpoint, "updates", checkpoint.get("global_step", 0))

    def move_target(self, tau: float) -> None:
        """Move `target`, which `make_target` made of `policy`, by τ towards it."""
        if self._target_update is None:
            self._target_update = TargetUpdate(self.policy, self.target)
        self._target_update(tau)

    @staticmethod
    def split_groups(
        groups: list[dict[str, Any]], *own: tuple[Sequence[torch.nn.Parameter], float | None]
    ) -> list[dict[str, Any]]:
        """Take parameters that have a learning rate of their own out of the other groups."""
        special = [(list(params), lr) for params, lr in own if lr is not None and params]
        taken = {id(p) for params, _ in special for p in params}
        rest = [{**g, "params": [p for p in g["params"] if id(p) not in taken]} for g in groups]
        return [*rest, *({"params": params, "lr": lr} for params, lr in special)]
