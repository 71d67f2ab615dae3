"""Agents whose networks were pruned or quantised: what was done is part of their checkpoints."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
from torch import nn
from torch.optim import Optimizer

from rl_lightning.compress import restructure
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.nn.target import make_target

Record = dict[str, Any]


class CompressedModule(L.LightningModule):
    """A module whose policy may have another structure than its constructor gave it.

    A checkpoint says what operators of `rl_lightning.compress` have done, so that whoever loads it
    builds the network that it holds: validating, predicting, and training on under the same masks.
    """

    policy: Any

    def __init__(self) -> None:
        super().__init__()
        self._compression: list[Record] = []

    @property
    def compression(self) -> list[Record]:
        """What was done to the policy, in order, as plain data."""
        return copy.deepcopy(self._compression)

    def compress(
        self, operator: Callable[[nn.Module], Record], optimizers: Sequence[Optimizer] = ()
    ) -> Record:
        """Change the structure of the policy, and remember it.

        Target networks become copies of what the policy is then.

        Args:
            operator: Changes the policy in place, and returns the record of what it did, as the
                operators of `rl_lightning.compress` do.
            optimizers: For agents with targets these are told nothing; give them to the operator.

        Returns:
            The record.
        """
        record = operator(self.policy)
        self._compression.append(record)
        self._follow()
        return record

    def _follow(self) -> None:
        """Have targets, and what holds on to their tensors, fit the policy again."""
        former = getattr(self, "target", None)
        if not isinstance(former, nn.Module):
            return
        target = make_target(self.policy)
        kept = {name for name, _ in former.named_children()}
        for name in [name for name, _ in target.named_children() if name not in kept]:
            delattr(target, name)
        self.target = target
        self._target_update = None

    def save_compression(self, checkpoint: dict[str, Any]) -> None:
        """Write down what was done, if anything was."""
        if self._compression:
            checkpoint["compression"] = self.compression

    def load_compression(self, checkpoint: Mapping[str, Any]) -> None:
        """Do what a checkpoint says was done, unless it is done already.

        Raises:
            ConfigurationError: If this agent was compressed in another way, or the record does not
                fit its policy.
        """
        records = checkpoint.get("compression", [])
        if not isinstance(records, list):
            raise ConfigurationError("the checkpoint's compression is no list: it was changed")
        done = len(self._compression)
        if records[:done] != self._compression:
            raise ConfigurationError(
                f"this {type(self).__name__} was compressed in another way than the checkpoint's: "
                "load it into an agent that was not"
            )
        if len(records) == done:
            return
        restructure(self.policy, records[done:])
        self._compression = copy.deepcopy(records)
        self._follow()
