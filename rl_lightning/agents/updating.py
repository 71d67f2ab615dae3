"""Updates: many of them make one step of the trainer, or one, where somebody needs each by itself.

The trainer's own bookkeeping around a step costs as much as a small network's update. Where nobody
listens, a step is therefore a run of updates, such as all minibatches of a rollout; counters,
logging and clipping mean updates all the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.deprecated import former_log_training, former_loss, former_should_log
from rl_lightning.agents.finite import FiniteModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.loss import Loss
from rl_lightning.nn.adam import DirectAdam
from rl_lightning.nn.clip import clip_gradients
from rl_lightning.trainer import (
    count_updates,
    is_ever_logged,
    is_logged,
    is_plain,
    log_now,
    share_count,
    single_updates,
    take_step,
)

MOST_NOTED = 256  # metrics that are kept before they are summed up


class UpdatingModule(FiniteModule):
    """A module that takes steps of its optimizer on losses of batches."""

    max_grad_norm: float | None = None
    """Largest norm of all gradients together: another name for `trainer.gradient_clip_val`."""
    learns_by_gradient: bool = True
    """Whether an optimizer makes its updates."""
    updates: int = 0
    """Updates so far."""

    def __init__(self) -> None:
        super().__init__()
        self._stop = self._plain = self.due = self.asked = False
        self._step: Any = None
        self._noted: list[Mapping[str, Any]] = []  # metrics of updates, and of earlier ones sums
        self._sums: dict[str, tuple[Any, int]] = {}

    # --- what an algorithm is made of ---------------------------------------------------------

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of a batch.

        It reads nothing but the batch, the networks and the arguments, so that anybody can call it.
        """
        raise NotImplementedError

    def after_update(self) -> None:
        """Called after every step of the optimizer: the place to update target networks."""

    def gauges(self) -> Mapping[str, Tensor | float]:
        """What is logged as it stands, beside the metrics of losses, which are means."""
        return {}

    # --- steps of the trainer -----------------------------------------------------------------

    def configure_callbacks(self) -> Any:
        # Lightning's first call, and before it refuses to clip for who makes updates by himself.
        if self._decides_who_updates:
            self.automatic_optimization = True
        return super().configure_callbacks()

    @property
    def _decides_who_updates(self) -> bool:
        own = type(self).training_step is not UpdatingModule.training_step
        return self.learns_by_gradient and not own

    def plan_updates(self) -> bool:
        """Decide, before training goes on, whether a step of the trainer is a run of updates.

        Raises:
            ConfigurationError: If two numbers say how gradients are clipped.
        """
        trainer = self.trainer
        given, own, by_norm = trainer.gradient_clip_val, self.max_grad_norm, self._clips_by_norm
        if given is not None and own is not None and (given != own or not by_norm):
            raise ConfigurationError(
                f"trainer.gradient_clip_val: {given} (by {'norm' if by_norm else 'value'}) and "
                f"model.max_grad_norm: {own} are two names of one thing; leave one of them out"
            )
        runs = single_updates(trainer, self, UpdatingModule) is None
        if self._decides_who_updates:
            self.automatic_optimization = not runs
        share_count(trainer)
        return runs

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Learn from a batch, or from a run of batches, each made when its turn comes.

        Args:
            batch: Of rollouts `[N, ...]` as `prepare` made it, or an `UpdateRun`.
            batch_idx: Its number in the epoch.

        Returns:
            The loss where Lightning makes the update; None where it is made already.
        """
        if self.automatic_optimization:
            return self._single_update(batch)
        single = isinstance(batch, TensorDict)
        planned = 1 if single else len(batch)
        index = -1
        try:
            for index, part in enumerate((batch,) if single else batch.batches()):
                self.due = is_logged(self.trainer, index)
                loss = self.make_update(part, index < planned - 1)
                if loss.row_errors is not None and not single:
                    batch.row_errors = loss.row_errors
                if self._wants_stop(loss):
                    self._stop = single
                    break
        except Exception as error:
            self.explain(error)
            raise
        for skipped in range(index + 1, planned):
            if self._noted and is_logged(self.trainer, skipped):
                self.log_losses(self._mean_metrics(), skipped < planned - 1)
        count_updates(self.trainer, planned)
        self.check_loss()
        return None

    def _single_update(self, batch: Any) -> Tensor:
        """What Lightning needs to make the update itself, with everything that may listen to it."""
        run = None if isinstance(batch, TensorDict) else batch
        (part,) = (batch,) if run is None else run.batches()
        self.due = is_logged(self.trainer)
        loss = self.explained_loss(part)
        if run is not None and loss.row_errors is not None:
            run.row_errors = loss.row_errors
        self._note(loss, False)
        if self._wants_stop(loss):
            self._stop = True
            # A stop may skip the step that would be logged: Lightning then writes this one.
            self.log_losses(self._mean_metrics(), False)
        return loss.value

    def make_update(self, batch: TensorDict, more: bool = False) -> Loss:
        """Make an update.

        Args:
            batch: What to learn from.
            more: Whether the trainer's step goes on after it.

        Returns:
            The loss before the update.
        """
        loss = self.explained_loss(batch)
        self._note(loss, more)
        self.update(loss.value)
        return loss

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
            take_step(optimizer, self._step)
        else:
            self.manual_backward(loss)
            optimizer.step()
        self._updated()

    def _updated(self) -> None:
        self.updates += 1
        self.after_update()

    def explained_loss(self, batch: TensorDict) -> Loss:
        """The loss, of an agent of the version before too, which returns its value alone."""
        self.asked = True
        try:
            loss: Any = self.loss(batch)
        finally:
            self.asked = False
        return loss if isinstance(loss, Loss) else former_loss(self, loss)

    def stop_passes(self) -> bool:
        """Whether to skip the remaining passes over the current rollout; same on all ranks."""
        stop, self._stop = self._stop, False
        return stop

    def _wants_stop(self, loss: Loss) -> bool:
        return loss.stop is not None and self._mean(loss.stop) > 0

    def _mean(self, value: Tensor) -> float:
        """Mean over the ranks of a scalar, the same on all of them."""
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(value)
            value = gathered.mean()
        return float(value)

    # --- gradients ----------------------------------------------------------------------------

    @property
    def _clips_by_norm(self) -> bool:
        return (self.trainer.gradient_clip_algorithm or "norm") == "norm"

    def clip(self, optimizer: Any) -> None:
        """Clip the gradients of what an optimizer moves, where nobody else does."""
        limit, by_norm = self.max_grad_norm, True
        if self._trainer is not None and self.trainer.gradient_clip_val is not None:
            if self.automatic_optimization:
                return
            limit, by_norm = self.trainer.gradient_clip_val, self._clips_by_norm
        if not limit:
            return
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        if by_norm:
            clip_gradients(gradients, limit)
        else:
            for gradient in gradients:
                gradient.clamp_(-limit, limit)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Here gradients are unscaled in every precision, and no longer generators.
        self.clip(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().optimizer_step(*args, **kwargs)
        except Exception as error:
            self.explain(error)
            raise
        self._updated()

    def on_train_start(self) -> None:
        super().on_train_start()
        self._plain = is_plain(self.trainer, self, UpdatingModule)
        self._step = None
        if self._plain and self.learns_by_gradient:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            direct = DirectAdam.can_step(optimizer)
            self._step = DirectAdam(optimizer).step if direct else optimizer.step

    # --- logging ------------------------------------------------------------------------------

    should_log = property(former_should_log)
    log_training = former_log_training

    def _note(self, loss: Loss, more: bool) -> None:
        """Keep an update's metrics, and where it is due log their means since the last time.

        Args:
            loss: Of the update.
            more: Whether the trainer's step goes on.
        """
        if is_ever_logged(self.trainer):
            self._noted.append(loss.metrics)
            if len(self._noted) >= MOST_NOTED:
                self._sum_up()
        if self.due:
            self.log_losses(self._mean_metrics(), more)

    def _sum_up(self) -> None:
        noted: dict[str, list[Any]] = {}
        for metrics in self._noted:
            for name, value in metrics.items():
                noted.setdefault(name, []).append(value)
        self._noted = []
        for name, values in noted.items():
            tensors = isinstance(values[0], Tensor)
            total, count = self._sums.get(name, (0.0, 0))
            total = total + (torch.stack(values).sum() if tensors else sum(values))
            self._sums[name] = total, count + len(values)

    def _mean_metrics(self) -> dict[str, Any]:
        """Means since the last time that they were asked for."""
        self._sum_up()
        sums, self._sums = self._sums, {}
        return {name: total / count for name, (total, count) in sums.items()}

    def log_losses(self, metrics: Mapping[str, Any], more: bool = False) -> None:
        """Log losses beside the clock's metrics, on the axis of environment frames."""
        everything = {**metrics, **self.gauges(), **self._measure()}
        if self.trainer.optimizers:
            everything["optim/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        # "step" in the same call is what makes frames the x axis of TensorBoard.
        everything["step"] = float(self.frames)
        self.log_dict(everything)
        if more:  # the trainer writes what stands there at its step's end
            log_now(self.trainer, everything)
