"""What was done to a module's structure, done again to one that is built afresh."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rl_lightning.compress.fake import harden, refake
from rl_lightning.compress.nodes import apply_nodes_record
from rl_lightning.compress.quantisable import straight_through
from rl_lightning.compress.quantise import requantise
from rl_lightning.compress.transformers import apply_heads_record, apply_layers_record
from rl_lightning.compress.weights import apply_bake_record, apply_weights_record
from rl_lightning.core.errors import ConfigurationError, shortened

Apply = Callable[[nn.Module, Mapping[str, Any], Sequence[Optimizer]], None]
OPERATORS: dict[str, Apply] = {
    "prune_weights": apply_weights_record,
    "bake": apply_bake_record,
    "prune_nodes": apply_nodes_record,
    "prune_heads": apply_heads_record,
    "prune_layers": apply_layers_record,
    "quantise": lambda module, record, optimizers: _apply_quantise_record(module, record),
    "fake_quantise": lambda module, record, optimizers: refake(module, record),
}


def _apply_quantise_record(module: nn.Module, record: Mapping[str, Any]) -> None:
    """Layers that were quantised as they were, or by `harden` after training under it."""
    if not any(straight_through(layer) for layer in module.modules()):
        requantise(module, record)
    elif harden(module)["layers"] != record.get("layers"):
        raise ConfigurationError(
            "the record of quantise has other layers than are trained under quantisation"
        )


def restructure(
    module: nn.Module,
    records: Sequence[Mapping[str, Any]],
    optimizers: Sequence[Optimizer] = (),
) -> nn.Module:
    """Give a module the structure that operators gave to another of its shape, in place.

    Afterwards `module.load_state_dict(pruned.state_dict())` works, and both compute the same. No
    example input is needed, and nothing of the records is run: they are names and numbers, and
    each is checked against the module before it changes anything. A later record that does not
    fit leaves the module as the earlier ones made it.

    Args:
        module: Freshly built, of the original shape; or a copy (a target network) that shall
            shrink as its original did.
        records: What the operators returned, in their order.
        optimizers: Those with parameters of the module; their state is cut alike.

    Returns:
        The module.

    Raises:
        ConfigurationError: If an operator is unknown, or a record does not fit the module.
    """
    for record in records:
        name = record.get("operator") if isinstance(record, Mapping) else None
        if not isinstance(name, str) or name not in OPERATORS:
            raise ConfigurationError(
                f"a record's operator must be one of {', '.join(OPERATORS)}, "
                f"not {shortened(name)!r}: the file is damaged, or of a newer version"
            )
        OPERATORS[name](module, record, optimizers)
    return module
