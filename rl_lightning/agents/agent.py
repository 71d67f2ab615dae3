"""The base of all agents: a policy and a loss, and what every LightningModule of ours shares."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents import prediction
from rl_lightning.agents.copies import CopyableModule
from rl_lightning.agents.deprecated import former_log_training, former_loss, former_should_log
from rl_lightning.agents.evaluated import EvaluatedModule
from rl_lightning.agents.finite import FiniteModule
from rl_lightning.agents.groups import group_parameters
from rl_lightning.agents.load import check_kind
from rl_lightning.agents.masks import reported_mask
from rl_lightning.agents.optimizer import check_restored, make_optimizer
from rl_lightning.agents.stored import StoredModule, count_of
from rl_lightning.core.errors import ConfigurationError, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import Schedule, factor
from rl_lightning.core.tree import to_device
from rl_lightning.core.types import EnvSpec, Rollout, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.exploration import uniform_action
from rl_lightning.trainer import (
    is_logged,
)

# Fused: one kernel for all parameters, a quarter less time per update than the default on a CPU.
adam = partial(torch.optim.Adam, lr=3e-4, eps=1e-5, fused=True)


class Agent(StoredModule, CopyableModule, FiniteModule, EvaluatedModule):
    """A policy and a loss. Environments, storage and the training loop live elsewhere.

    A subclass builds its `policy` in `__init__`, after `super().__init__`, and implements `prepare`
    and `loss`; one that learns from replay is a `ReplayAgent` and implements `loss` alone. Its
    constructor's arguments are remembered as hyper-parameters without further ado, so that
    `load_from_checkpoint` rebuilds it.

    Args:
        spec: The environment's spaces.
        optimizer: Builds the optimizer from parameter groups; None: `default_optimizer`.
        lr_schedule: Schedule of all learning rates over training progress.
        encoder_lr: Learning rate of the encoders' parameters; None: the optimizer's.
        gamma: Discount γ in [0, 1].
    """

    policy: Any
    """What acts, a `Policy`."""
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
    learns_from: tuple[str, ...] = ("rollouts",)
    """The kinds of experience its loss is right for: `rollouts`, `replay` (recorded data included),
    or `recordings` alone. Unless these are rollouts alone, it reads raw observations, and its
    networks normalise them."""

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
        self._mute = self._stop = False
        self._rates_set = False
        self.gamma = gamma
        self.spec = spec
        self.optimizer = optimizer or self.default_optimizer
        self.lr_schedule: Schedule = lr_schedule
        self.encoder_lr = encoder_lr
        self.frames = 0
        self.progress = 0.0
        self._measure: Callable[[], Mapping[str, float]] = dict
        self._episodes: list[Mapping[str, Any]] = []

    def run_state(self) -> dict[str, Any]:
        """Attributes that belong to a run, and what they are in a copy, which is in none."""
        return {
            "_measure": dict,
            "_episodes": [],
            "_mute": False,
            "_stop": False,
            "_last_loss": None,
        }

    # --- what an algorithm is made of ---------------------------------------------------------

    def prepare(self, rollout: Rollout) -> TensorDict:
        """Turn a rollout into the batch `[T, B]` that minibatches come from, without gradient."""
        raise NotImplementedError

    def need_critic(self) -> None:
        """Refuse a policy without value head."""
        if self.policy.critic is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs a critic: leave out model.network's critic: false, "
                "or use REINFORCE with baseline: false"
            )

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of a minibatch.

        It reads nothing but the batch, the networks and the arguments, so that anybody can call it.

        Args:
            batch: Rows of what `prepare` returned, `[N, ...]`, or with memory sequences `[L, N,
                ...]`.
        """
        raise NotImplementedError

    def stop_passes(self) -> bool:
        """Whether to skip the remaining passes over the current rollout; same on all ranks."""
        stop, self._stop = self._stop, False
        return stop

    def after_update(self) -> None:
        """Called after every step of the optimizer: the place to update target networks."""

    # --- acting -------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The encoder that preprocesses observations."""
        return self.policy.encoder

    @property
    def encoders(self) -> Sequence[Encoder]:
        """All encoders that read observations: the critic may have one of its own."""
        return self.policy.encoders

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Choose actions for preprocessed observations `[B, ...]`.

        Args:
            x: What `preprocess` returned.
            explore: Act as while training; otherwise greedily.
            state: Recurrent state, see `initial_state`.
            mask: Allowed actions, bool `[B, A]`.

        Returns:
            `action` `[B, ...]` for the environment, what the loss needs later, and `next_state` of
            a recurrent policy. A plain dict: building a TensorDict at every step costs as much as
            a small network's forward pass.
        """
        return self.policy.act(x, explore, state, mask)

    predict = prediction.predict

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the policy thinks of preprocessed observations: `probabilities`, `value` …"""
        return self.policy.inspect(x, state, mask)

    def act_uniformly(self, num_envs: int, mask: Tensor | None = None) -> Tensor:
        """Actions drawn uniformly from all allowed ones, `[B, ...]`."""
        return uniform_action(self.spec.action_space, num_envs, mask, self.device)

    def initial_state(self, num_envs: int) -> Tensor | None:
        """Recurrent state of fresh episodes, `[B, H]`; None for a policy without memory."""
        width = self.policy.state_dim
        return torch.zeros(num_envs, width, device=self.device) if width else None

    # --- observations -------------------------------------------------------------------------

    def preprocess(self, obs: Any) -> Stored:
        """Raw vector-env observations `[B, ...]` → what `act` takes, on this agent's device."""
        encoder = self.encoder
        raw = self.learns_from != ("rollouts",)
        return to_device(
            encoder.preprocess_raw(obs) if raw else encoder.preprocess(obs), self.device
        )

    def read_mask(self, info: Mapping[str, Any]) -> Tensor | None:
        """The action mask a vector env reports in `info["action_mask"]`, bool `[B, A]`, or None.

        Raises:
            ConfigurationError: If it has another width than this policy's action head.
            RunError: If it holds anything but 0 and 1.
        """
        mask = reported_mask(info, self.mask_dim, self.spec)
        return None if mask is None else torch.from_numpy(mask).to(self.device)

    @property
    def unread(self) -> set[tuple[Any, ...]]:
        """Entries of observations that none of its encoders looks at, see `Encoder.unread`."""
        return set.intersection(*(encoder.unread() for encoder in self.encoders))

    def observe(self, obs: Any) -> None:
        """Show a raw training observation to the running statistics."""
        for encoder in self.encoders:
            encoder.observe(obs)

    @property
    def mask_dim(self) -> int:
        """Width of the action masks it takes; 0 for none."""
        return self.policy.mask_dim

    # --- encoders, as whoever collects sees them ----------------------------------------------

    def begin_rollout(self) -> None:
        """Called before collecting: until the next call only updates may change features."""
        for encoder in self.encoders:
            encoder.begin_rollout()

    def synchronize(self) -> None:
        """Make running statistics equal on all ranks; called after collecting."""
        for encoder in self.encoders:
            encoder.synchronize()

    def repeats(self) -> bool | Mapping[str, Any]:
        """Whether few different observations come many times, see `Encoder.repeats`."""
        return self.encoder.repeats()

    def encoder_metrics(self) -> Mapping[str, float]:
        """What the encoder has to log since the last call."""
        return self.encoder.metrics()

    def collection_state(self) -> dict[str, Any]:
        """What exact resuming needs beyond weights, e.g. a cache."""
        return self.encoder.collection_state()

    def load_collection_state(self, state: dict[str, Any]) -> None:
        """Restore what `collection_state` returned."""
        self.encoder.load_collection_state(state)

    # --- the clock ----------------------------------------------------------------------------

    def tick(
        self, frames: int, progress: float, measure: Callable[[], Mapping[str, float]]
    ) -> None:
        """Told by the data module before the updates that new frames pay for.

        Args:
            frames: Environment frames so far, of all ranks.
            progress: Share of the frame budget, in whole epochs, used up before that rollout, in
                [0, 1].
            measure: Gives the statistics of data collection, to be logged with losses.
        """
        # Not one by one: each would have `nn.Module` look for parameters of that name.
        self.__dict__.update(frames=frames, progress=progress, _measure=measure)
        if self.lr_schedule == "constant" and self._rates_set:
            return
        self._rates_set = True
        if not self.trainer.optimizers:
            return
        if self.lr_schedule == "constant" and self.trainer.lr_scheduler_configs:
            return  # a search for a learning rate is trying out others
        scale = factor(self.lr_schedule, progress)
        for group, rate in zip(self.trainer.optimizers[0].param_groups, self._rates, strict=True):
            group["lr"] = rate * scale

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.explained_loss(batch)
        if loss.stop is not None:
            self._stop = self._mean(loss.stop) > 0
        # A stop may skip the step that would be logged: Lightning then writes this one.
        if is_logged(self.trainer) or self._stop:
            self._log_losses(loss.metrics)
        return loss.value

    def explained_loss(self, batch: TensorDict) -> Loss:
        """The loss, of an agent of the version before too, which returns its value alone."""
        loss: Any = self.loss(batch)
        return loss if isinstance(loss, Loss) else former_loss(self, loss)

    def _mean(self, value: Tensor) -> float:
        """Mean over the ranks of a scalar, the same on all of them."""
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(value)
            value = gathered.mean()
        return float(value)

    should_log = property(former_should_log)
    log_training = former_log_training

    def _log_losses(self, metrics: Mapping[str, Any]) -> None:
        """Log losses beside the clock's metrics, on the axis of environment frames."""
        everything = {**metrics, **self._measure()}
        if self.trainer.optimizers:
            everything["optim/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        # "step" in the same call is what makes frames the x axis of TensorBoard.
        self.log_dict({**everything, "step": float(self.frames)})

    # --- Lightning ----------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in groups of one learning rate each; without `lr`: the optimizer's."""
        return group_parameters(self, self.encoder, self.encoder_lr)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._rates_set = False
        groups: Any = self.parameter_groups()
        if len(groups) == 1 and "lr" not in groups[0]:
            groups = groups[0]["params"]
        optimizer = make_optimizer(self.optimizer, groups)
        # Not in the groups, where a checkpoint's would replace them: the configuration decides.
        self._rates = [group["lr"] for group in optimizer.param_groups]
        # A fused optimizer offers to unscale mixed-precision gradients inside its step, which is
        # too late for clipping them; Lightning then refuses to clip. Unscale before, as others do.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            check_restored(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().optimizer_step(*args, **kwargs)
        except Exception as error:
            self.explain(error)
            raise
        self.after_update()

    @property
    def clock_metrics(self) -> Mapping[str, float]:
        """Statistics of data collection, as of now."""
        return self._measure()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_numbers()
        checkpoint["frames"] = self.frames
        checkpoint["progress"] = self.progress  # exploration stands there, not at its beginning

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_kind(self, checkpoint)
        frames, progress = count_of(checkpoint, "frames"), checkpoint.get("progress", 0.0)
        if not isinstance(progress, int | float) or not 0 <= progress <= 1:
            raise ConfigurationError(f"the checkpoint's progress is {progress!r}: it was changed")
        self.frames, self.progress = frames, progress
