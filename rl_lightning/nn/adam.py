"""The step of torch's fused Adam, without the way to it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from rl_lightning.nn.insides import fused_adam, steps_are_watched

SIMPLE = ("amsgrad", "maximize", "capturable", "differentiable")


class DirectAdam:
    """Takes the steps of a `torch.optim.Adam` or `AdamW` with `fused=True`, to the last bit.

    At each step, torch looks up every parameter's state and sorts them by device: of small networks
    that takes several times as long as the arithmetic. Here they are looked up once. The state is
    the optimizer's own, which can be saved, loaded and stepped at any time.

    Args:
        optimizer: One that `can_step` says yes to.
    """

    def __init__(self, optimizer: Adam) -> None:
        self.optimizer = optimizer
        self._held: list[tuple[dict[str, Any], list[Tensor], list[list[Tensor]]]] = []

    @staticmethod
    def can_step(optimizer: Any) -> bool:
        """Whether an optimizer is one whose steps can be taken, and nobody listens to them."""
        return (
            type(optimizer) in (Adam, AdamW)
            and not steps_are_watched(optimizer)
            and all(_is_simple(group) for group in optimizer.param_groups)
        )

    @torch.no_grad()
    def step(self) -> None:
        """One step on the gradients that are there."""
        if not self._still_there():
            self.optimizer.step()  # which makes the state
            self._look_up()
            return
        every: Any = [[p.grad for p in parameters] for _, parameters, _ in self._held]
        if any(grad is None for gradients in every for grad in gradients):
            self.optimizer.step()  # which leaves those parameters out
            return
        for (group, parameters, state), gradients in zip(self._held, every, strict=True):
            fused_adam(parameters, gradients, state, group)

    def _still_there(self) -> bool:
        """Whether what was looked up is the optimizer's state still, and all of it."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        return len(self._held) == len(groups) and all(
            held is group
            and len(parameters) == len(group["params"])
            and state[parameters[0]].get("exp_avg") is means[0]
            for group, (held, parameters, (means, _, _)) in zip(groups, self._held, strict=True)
        )

    def _look_up(self) -> None:
        self._held = []
        for group in self.optimizer.param_groups:
            # All of them: what is not trained now may be later.
            parameters = list(group["params"])
            states: Any = [self.optimizer.state.get(p) for p in parameters]
            if not parameters or not all(states):
                self._held = []  # some have had no gradient yet
                return
            state = [[s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step")]
            self._held.append((group, parameters, state))


def _is_simple(group: dict[str, Any]) -> bool:
    kinds = {(p.device, p.dtype) for p in group["params"]}
    return (
        bool(group.get("fused"))
        and not any(group.get(name) for name in SIMPLE)
        and len(kinds) == 1
        and not next(iter(kinds))[1].is_complex
        and isinstance(group["lr"], float)
        and all(isinstance(beta, float) for beta in group["betas"])
    )
