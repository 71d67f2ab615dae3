"""The base of agents that learn from replay: a loss of a batch of transitions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from tensordict import TensorDict

from rl_lightning.agents.agent import Agent
from rl_lightning.core.errors import check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import Schedule
from rl_lightning.core.types import EnvSpec
from rl_lightning.nn.target import TargetUpdate


class ReplayAgent(Agent):
    """An agent whose algorithm is the `loss` of a batch of transitions.

    Args:
        spec: The environment's spaces.
        optimizer: Builds the optimizer from parameter groups; None: `default_optimizer`, which is
            fused Adam, lr 3e-4, ε 1e-5, where the agent says nothing else.
        lr_schedule: Schedule of all learning rates over training: constant, linear or cosine.
        encoder_lr: Learning rate of the encoders' parameters; None: the optimizer's.
        gamma: Discount γ in [0, 1].
        max_grad_norm: Largest norm of all gradients together; None: `trainer.gradient_clip_val`.
    """

    learns_from = ("replay",)
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
        self.max_grad_norm = max_grad_norm
        self._target_update: TargetUpdate | None = None

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of a batch of transitions.

        Args:
            batch: `obs`, `action`, `reward`, `discount` (γⁿ, or 0 after a terminal step) and
                `next_obs`, of environments with masks `action_mask` and `next_action_mask`, from
                prioritised replay the `weight` of each row, `[N, ...]` each. An agent that
                `tells_priorities` weights its rows, and returns their δ as `row_errors`, `[N]`.
        """
        raise NotImplementedError

    def tick(
        self, frames: int, progress: float, measure: Callable[[], Mapping[str, float]]
    ) -> None:
        super().tick(frames, progress, measure)
        for encoder in self.encoders:
            encoder.anneal(progress)

    def on_train_start(self) -> None:
        super().on_train_start()
        # Pairs of parameters and buffers, which moving devices may have replaced.
        self._target_update = None

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
