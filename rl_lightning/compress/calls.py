"""Calling a module to see what it does, and leaving it as it was."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.nn.insides import without_new_hooks


def tensors_in(output: Any) -> list[Tensor]:
    """Tensors in an output, in order: in tuples, lists, mappings and objects' attributes."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(part: Any) -> None:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, nn.Module | type) or id(part) in seen:
            return
        elif isinstance(part, Mapping):
            seen.add(id(part))
            for value in part.values():
                look(value)
        elif isinstance(part, tuple | list):
            seen.add(id(part))
            for value in part:
                look(value)
        else:
            seen.add(id(part))
            for value in getattr(part, "__dict__", {}).values():  # a distribution's, a cache's
                look(value)

    look(output)
    return found


def traced_outputs(output: Any) -> list[Tensor]:
    """The tensors of an output that depend on parameters.

    Raises:
        ConfigurationError: If none does.
    """
    traced = [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]
    if not traced:
        raise ConfigurationError(
            "nothing that the module returns depends on its parameters by gradient, "
            "and so it cannot be traced"
        )
    return traced


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have a module in evaluation mode, and then each of its parts as it was."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


@contextmanager
def as_for_tracing(module: nn.Module) -> Iterator[None]:
    """In evaluation mode and with gradients for all parameters, and then as it was.

    Without the hooks of a tracer whose call has failed, too, which leaves them where they are.
    """
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        with without_new_hooks(module), evaluating(module), torch.enable_grad():
            yield
    finally:
        for parameter, value in wanted.items():
            parameter.requires_grad_(value)
