"""Agents whose networks were pruned or quantised: what was done is part of their checkpoints."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from rl_lightning.agents.language_parts import language_models
from rl_lightning.agents.owned import check_own_models
from rl_lightning.compress import restructure
from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.encoders.reading import ReadingEncoder
from rl_lightning.llm.backbone import Backbone
from rl_lightning.nn.target import make_target
from rl_lightning.policies import ContinuousNetwork

Record = dict[str, Any]


class PolicyCall(nn.Module):
    """An agent's policy as a module that can be called, for operators that follow the call.

    Args:
        agent: Its policy is the only part of this module, by the name `policy`.
    """

    def __init__(self, agent: Any) -> None:
        super().__init__()
        self.policy = agent.policy
        self._inspect: Callable[[Any], Mapping[str, Tensor]] = agent.inspect

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        """What the policy says of preprocessed observations, `[N, ...]` each.

        Critics of continuous actions are left out: one operation computes all of them, which
        cannot be followed.
        """
        if isinstance(self.policy, ContinuousNetwork):
            return (self.policy.actor(self.policy.features(x)),)
        return tuple(self._inspect(x).values())


def changed_layers(record: Any) -> list[str]:
    """Names of what an operator's record says was changed: layers, tensors, attentions."""
    if not isinstance(record, Mapping):  # of a damaged file; whoever applies it says so
        return []
    layers = record.get("layers") or ()
    every = [[layers] if isinstance(layers, str) else layers]
    every += [record.get(key) or () for key in ("tensors", "heads")]
    return [name for names in every if isinstance(names, Iterable) for name in names]


class CompressedModule(L.LightningModule):
    """A module whose policy may have another structure than its constructor gave it.

    A checkpoint says what operators of `rl_lightning.compress` have done, so that whoever loads it
    builds the network that it holds: for validating, predicting, and training on under the same
    masks.
    """

    policy: Any
    _compression: tuple[Record, ...] = ()

    @property
    def compression(self) -> list[Record]:
        """What was done to the policy, in order, as plain data; names begin with `policy.`."""
        return copy.deepcopy(list(self._compression))

    def compress(self, operator: Callable[[PolicyCall], Record]) -> Record:
        """Change the structure of the policy, and remember it.

        Target networks become copies of what the policy is then.

        Args:
            operator: Changes the module that it is given in place, and returns the record of what
                it did, such as `partial(quantise, bits=8)`, or
                `lambda policy: prune_nodes(policy, 0.5, x)` with preprocessed observations x.

        Returns:
            The record.

        Raises:
            ConfigurationError: If it changed a language model inside the policy whose weights are
                loaded by name, and not the checkpoint's own.
        """
        record = operator(PolicyCall(self))
        for name in self._changed_by_name([record]):
            raise ConfigurationError(
                f"{name} is part of a language model, whose weights a checkpoint leaves out: keep "
                "it as it is, or have the checkpoint hold them (rl-lightning compress --part "
                "language-model); this agent is of no use any more"
            )
        self._compression = (*self._compression, record)
        self._forget([record])
        self._renew_target()
        return record

    def follow_features(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Standardise what a changed language model says to where it was, feature by feature.

        Rounding and pruning shift and stretch features, which the layers behind them were not
        taught; what moves their mean alone costs nothing to undo (the bias correction of Nagel et
        al. 2019, section 4.2, done where features are standardised, and of the deviation, too).

        Args:
            before: Features of some observations, `language_parts.features`.
            after: Of the same ones, by this agent's policy as it is now.
        """
        names = before.keys() & after.keys()
        for name in names:
            encoder: Any = self.policy.get_submodule(name)
            encoder.norm.follow(before[name], after[name])
        if names:
            self._renew_target()

    def _changed_by_name(self, records: Sequence[Any]) -> list[str]:
        """What records change in language models that are loaded by name."""
        if not records:  # as of every agent that has no policy
            return []
        models = [
            f"{name}."
            for name, part in PolicyCall(self).named_modules()
            if isinstance(part, Backbone) and part.reloadable
        ]
        names = [str(name) for record in records for name in changed_layers(record)]
        return [name for name in names if name.startswith(tuple(models))]

    def _forget(self, records: Sequence[Any]) -> None:
        """Have nobody go on with what a language model said before its layers were changed."""
        models = tuple(f"{name}." for name in language_models(PolicyCall(self)))
        names = [str(name) for record in records for name in changed_layers(record)]
        if any(name.startswith(models) for name in names):
            for part in self.modules():
                if isinstance(part, Backbone | ReadingEncoder):
                    part.forget()

    def on_train_start(self) -> None:
        super().on_train_start()
        if any(record["operator"] == "quantise" for record in self._compression):
            rank_zero_warn(
                "the policy's weights are quantised, and stay as they are: what is trained are its "
                "biases and other parameters that are not; quantise-aware is for training on"
            )

    def _renew_target(self) -> None:
        """Have a target network be a copy of what the policy is now."""
        former = getattr(self, "target", None)
        if not isinstance(former, nn.Module):
            return
        target: Any = make_target(self.policy)
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
            ConfigurationError: If this agent was compressed in another way, or the records do not
                fit its policy.
        """
        records = checkpoint.get("compression", [])
        if not isinstance(records, list):
            raise ConfigurationError("the checkpoint's compression is no list: it was changed")
        done = len(self._compression)
        if records[:done] != list(self._compression):
            raise ConfigurationError(
                f"this {type(self).__name__} was compressed in another way than the checkpoint's: "
                "load that into an agent that was not"
            )
        check_own_models(self, checkpoint)
        for name in self._changed_by_name(records[done:]):
            raise ConfigurationError(
                f"the checkpoint's records change {shortened(name)}, a part of a language model "
                "that is loaded by name: the file was changed"
            )
        if len(records) > done:
            restructure(self, records[done:])
            self._forget(records[done:])
            self._compression = tuple(copy.deepcopy(records))
            self._renew_target()
