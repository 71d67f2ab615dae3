"""Replacing layers of a module, and what else refers to them."""

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.nn.insides import children


def replace(module: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put other modules in the place of some, wherever those stand.

    Args:
        module: In which; itself it cannot be replaced.
        new: By the `id` of what it takes the place of.

    Raises:
        ConfigurationError: If a plain attribute refers to one of those, which nothing would replace
            there; nothing is changed then.
    """
    refuse_aliases(module, (part for part in module.modules() if id(part) in new))
    for parent in list(module.modules()):
        for name, child in list(children(parent).items()):
            if id(child) in new:
                setattr(parent, name, new[id(child)])


def refuse_aliases(module: nn.Module, replaced: Iterable[Any]) -> None:
    """Refuse to replace what plain attributes would go on referring to.

    A module that calls its layers by a Python list of its own computes with the old ones, whatever
    takes their place as a child.

    Args:
        module: Whose attributes are looked through: containers at any depth, bound methods, and
            modules that are no children of it.
        replaced: Layers or parameters that will be replaced or gone.

    Raises:
        ConfigurationError: That names the attributes.
    """
    old = {id(part) for part in replaced}
    seen = {id(part) for part in module.modules()}
    holders = []
    for name, part in module.named_modules():
        if id(part) in old:
            continue
        registered = {"_modules", "_parameters", "_buffers"}
        for attribute, value in vars(part).items():
            if attribute not in registered and any(
                id(found) in old for found in referred(value, seen)
            ):
                holders.append(f"{name}.{attribute}" if name else attribute)
    if holders:
        raise ConfigurationError(
            f"{shortened(', '.join(holders))} of {type(module).__name__} would go on referring to "
            "what is replaced: have forward read an nn.ModuleList or the layers' own attributes"
        )


def referred(value: Any, seen: set[int]) -> Iterator[Tensor | nn.Module]:
    """Tensors and modules that a value leads to.

    Args:
        value: Any; containers, bound methods, partial functions, optimizers and modules are looked
            into, and nothing else.
        seen: The `id` of what is not looked into; grows.
    """
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, nn.Module):
        yield value
    if id(value) in seen:
        return
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif isinstance(value, types.MethodType):
        inner = [value.__self__]
    elif isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, nn.Module | Optimizer):
        inner = list(vars(value).values())
    else:
        return
    seen.add(id(value))
    for part in inner:
        yield from referred(part, seen)
