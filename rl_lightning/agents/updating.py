"""Updates: many of them make one step of the trainer, or one, where somebody needs each by itself.

The trainer's own bookkeeping around a step costs as much as a small network's update. Where nobody
listens, a step is therefore a run of updates, such as all minibatches of a rollout; counters,
logging and clipping mean updates all the same.
"""

from typing import Any

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.deprecated import former_loss
from rl_lightning.agents.logged import LoggedModule
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.loss import Loss
from rl_lightning.nn.adam import DirectAdam
from rl_lightning.nn.clip import clip_gradients
from rl_lightning.trainer import (
    count_updates,
    is_logged,
    is_plain,
    share_count,
    single_updates,
    take_step,
)


class UpdatingModule(LoggedModule):
    """A module that takes steps of its optimizer on losses of batches."""

    max_grad_norm: float | None = None
    """Largest norm of all gradients together: another name for `trainer.gradient_clip_val`."""
    learns_by_gradient: bool = True
    """Whether an optimizer makes its updates."""
    updates: int = 0
    """Updates so far."""

    def __init__(self) -> None:
        super().__init__()
        self._stop = self._plain = False
        self._step: Any = None

    # --- what an algorithm is made of ---------------------------------------------------------

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of a batch.

        It reads nothing but the batch, the networks and the arguments, so that anybody can call it.
        """
        raise NotImplementedError

    def after_update(self) -> None:
        """Called after every step of the optimizer: the place to update target networks."""

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
        self._asked = True
        try:
            return self._single_update(batch) if self.automatic_optimization else self._run(batch)
        finally:
            self._asked = False

    def _run(self, batch: Any) -> None:
        """Make the updates of a run, or of a single batch."""
        single = isinstance(batch, TensorDict)
        planned = 1 if single else len(batch)
        index = -1
        try:
            for index, part in enumerate((batch,) if single else batch.batches()):
                self.__dict__["_due"] = is_logged(self.trainer, index)
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
            if self.has_notes and is_logged(self.trainer, skipped):
                self.log_losses(self.mean_metrics(), skipped < planned - 1)
        count_updates(self.trainer, planned)
        self.check_loss()

    def _single_update(self, batch: Any) -> Tensor:
        """What Lightning needs to make the update itself, with everything that may listen to it."""
        run = None if isinstance(batch, TensorDict) else batch
        (part,) = (batch,) if run is None else run.batches()
        self._due = is_logged(self.trainer)
        loss = self.explained_loss(part)
        if run is not None and loss.row_errors is not None:
            run.row_errors = loss.row_errors
        self.note(loss, False)
        if self._wants_stop(loss):
            self._stop = True
            # A stop may skip the step that would be logged: Lightning then writes this one. It may
            # as well not, so the next point is told of these updates too.
            self.log_losses(self.mean_metrics(keep=True))
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
        self.note(loss, more)
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
        self.__dict__["updates"] = self.updates + 1  # `nn.Module` would look for parameters
        self.after_update()

    def explained_loss(self, batch: TensorDict) -> Loss:
        """The loss, of an agent of the version before too, which returns its value alone."""
        loss: Any = self.loss(batch)
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
