"""What a loss function returns: its value, and what the trainer's side makes use of."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Metrics = Mapping[str, Tensor | float]


class Loss:
    """The loss of a batch, and what is to be known of it.

    Whoever trains takes a step on `value`, logs `metrics` when a step is due to be logged, and
    hands `row_errors` to prioritised replay. In a test or a notebook they are plain numbers.

    Args:
        value: What is minimised: a scalar, with gradient.
        metrics: Scalars by name. A function that computes them is called only where they are
            wanted, before the update, and without gradient.
        row_errors: How wrong the agent was on each row, δ or |δ|, `[N]`.
        stop: A scalar; where its mean over the ranks is above 0, the passes that are left over this
            rollout are skipped.
    """

    __slots__ = ("_metrics", "row_errors", "stop", "value")

    def __init__(
        self,
        value: Tensor,
        metrics: Metrics | Callable[[], Metrics] | None = None,
        row_errors: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> None:
        self.value = value
        self.row_errors = row_errors
        self.stop = stop
        self._metrics = metrics

    @property
    def metrics(self) -> dict[str, Any]:
        """Scalars by name, without gradient."""
        with torch.no_grad():
            found = self._metrics() if callable(self._metrics) else self._metrics or {}
        return {k: v.detach() if isinstance(v, Tensor) else v for k, v in found.items()}

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={float(value):.4g}" for name, value in self.metrics.items())
        return f"Loss({float(self.value):.6g}{told and ', '}{told})"
