"""The base of all agents: a policy and a loss, and what every LightningModule of ours shares."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents import prediction
from rl_lightning.agents.copies import CopyableModule
from rl_lightning.agents.deprecated import former_log_training, former_loss, former_should_log
from rl_lightning.agents.finite import FiniteModule, check_returns
from rl_lightning.agents.groups import group_parameters
from rl_lightning.agents.load import build_agent, check_kind
from rl_lightning.agents.optimizer import check_restored, make_optimizer
from rl_lightning.core.arguments import check_names
from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.errors import ConfigurationError, RunError, check_range, shortened
from rl_lightning.core.loss import Loss
from rl_lightning.core.names import present_paths
from rl_lightning.core.schedules import Schedule, factor
from rl_lightning.core.tree import to_device
from rl_lightning.core.types import EnvSpec, Rollout, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.exploration import uniform_action
from rl_lightning.hyperparameters import describe_call, without_code_switch
from rl_lightning.maths.distributions import flat_mask
from rl_lightning.trainer import (
    built_by_command_line,
    is_logged,
    restricted_classmethod,
    set_hyperparameters,
)

# Fused: one kernel for all parameters, a quarter less time per update than the default on a CPU.
adam = partial(torch.optim.Adam, lr=3e-4, eps=1e-5, fused=True)


class Agent(CopyableModule, FiniteModule):
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

    def __new__(cls, *args: Any, **kwargs: Any) -> "Agent":
        check_names(cls, kwargs)
        agent = super().__new__(cls)
        object.__setattr__(agent, "_call", (args, kwargs))
        return agent

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

        An environment that reports none while others do may do everything. The parts of a
        MultiDiscrete action's mask come one after the other, or as Gymnasium's tuple of them.

        Raises:
            ConfigurationError: If it has another width than this policy's action head.
            RunError: If it holds anything but 0 and 1.
        """
        reported = info.get("action_mask")
        if reported is None:
            return None
        mask = np.asarray(list(reported) if isinstance(reported, Mapping) else reported)
        width = self.policy.mask_dim
        present = np.asarray(info.get("_action_mask", np.ones(len(mask), bool)))
        if mask.dtype == object or not present.all():  # lists, or environments without a mask
            everything = np.ones(width, bool)
            mask = [
                flat_mask(m) if p and m is not None else everything
                for m, p in zip(mask, present, strict=True)
            ]
            mask = np.stack(mask) if len({m.shape for m in mask}) == 1 else np.empty((0, 0))
        if mask.ndim != 2 or mask.shape[1] != width:
            takes = f"takes masks of {width} actions" if width else "takes no masks"
            raise ConfigurationError(
                f"info['action_mask'] of {self.spec.id} has shape {list(mask.shape[1:])}, but a "
                f"policy for {shortened(self.spec.action_space)} {takes}"
            )
        if mask.dtype != bool and not ((mask == 0) | (mask == 1)).all():
            raise RunError(
                f"info['action_mask'] of {self.spec.id} must be of 0 and 1, or False and True, and "
                f"holds {mask[(mask != 0) & (mask != 1)][0]}"
            )
        return torch.from_numpy(mask.astype(bool)).to(self.device)

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

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._episodes.append(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._episodes.append(batch)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Mapping[str, Any]:
        return batch

    def on_validation_epoch_end(self) -> None:
        self._log_episodes("val")

    def on_test_epoch_end(self) -> None:
        self._log_episodes("test")

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

    def _log_episodes(self, prefix: str) -> None:
        """Mean and spread over the evaluation episodes of all ranks."""
        episodes, self._episodes = self._episodes, []
        table = torch.tensor(
            [[e["return"], e["length"], e["success"]] for e in episodes],
            dtype=torch.float32,
            device=self.device,
        )
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(table)
            table = gathered.flatten(0, 1)
        returns, lengths, success = table.unbind(1)
        check_returns(self.spec.id, returns)
        metrics = {
            f"{prefix}/return": returns.mean(),
            f"{prefix}/return_std": returns.std(correction=0),
            f"{prefix}/length": lengths.mean(),
        }
        if not success.isnan().all():
            # Where some episodes' info knows of success, what says nothing was none.
            metrics[f"{prefix}/success"] = success.nan_to_num().mean()
        metrics["step"] = torch.tensor(float(self.frames))
        self.log_dict(metrics)

    # --- hyper-parameters ---------------------------------------------------------------------

    @restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        strict: bool | None = None,
        trusted: Sequence[str] = (),
        weights_only: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The agent of a checkpoint; `Agent.load_from_checkpoint(path)` finds its class by itself.

        No code of the file's runs, and none that it names is imported by surprise, see
        `rl_lightning.core.trust`.

        Args:
            checkpoint_path: A local file.
            map_location: Device of its tensors, and of the agent.
            strict: Whether every weight must be in the file, and no other; None: as the class has
                it.
            trusted: Packages outside this library whose classes the checkpoint may name.
            weights_only: As Lightning has it; nothing but plain data and weights is ever loaded.
            **kwargs: Arguments in the place of those that the agent was trained with.

        Returns:
            An agent of this class.

        Raises:
            ConfigurationError: If the file is damaged or no checkpoint, if it holds another kind of
                agent, or if it names what may not be imported.
        """
        if not weights_only:
            raise ConfigurationError(
                "weights_only=False would run what the file asks for; leave it out: an agent's "
                "checkpoint is plain data"
            )
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        return build_agent(cls, checkpoint, strict, trusted, kwargs)

    def _remember_arguments(self) -> None:
        call: Any = self._call
        args, kwargs = call
        del self._call
        if built_by_command_line():
            self.save_hyperparameters(logger=False)
            hparams = dict(self.hparams)
            self.hparams.clear()
        else:
            hparams = describe_call(type(self), self, args, kwargs)
        set_hyperparameters(self, present_paths(without_code_switch(hparams)))


def count_of(checkpoint: Mapping[str, Any], name: str, default: int = 0) -> int:
    """What a checkpoint counts.

    Raises:
        ConfigurationError: If it is no count.
    """
    count = checkpoint.get(name, default)
    if type(count) is not int or not 0 <= count < 2**53:
        raise ConfigurationError(f"the checkpoint counts {count!r} {name}: it was changed")
    return count
