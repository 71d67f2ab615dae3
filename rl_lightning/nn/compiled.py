"""Names of what `torch.compile` wraps: the same as without it.

`torch.compile(module)` returns a wrapper that holds the module as `_orig_mod`, and so puts that
word into the name of every parameter inside. Checkpoints and target networks go by names.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from rl_lightning.nn.insides import children

WRAPPED = "_orig_mod"


def plain_name(name: str) -> str:
    """`policy._orig_mod.critic.0.weight` → `policy.critic.0.weight`."""
    if WRAPPED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != WRAPPED)


def name_inside(module: nn.Module, name: str) -> str:
    """The inverse: how a parameter, buffer or module of that plain name is reached in `module`."""
    here: nn.Module | None = module
    parts = []
    for part in plain_name(name).split("."):
        while here is not None and WRAPPED in children(here):
            parts.append(WRAPPED)
            here = children(here)[WRAPPED]
        parts.append(part)
        here = None if here is None else children(here).get(part)
    return ".".join(parts)


def has_compiled(module: nn.Module) -> bool:
    """Whether a part of it is wrapped by `torch.compile`."""
    return any(WRAPPED in children(part) for part in module.modules())


# Hooks are functions of the module they are called with, so that they survive copies.


def save_plain_names(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """State-dict post-hook: plain names."""
    if not has_compiled(module):
        return
    _rename(state, {key: _behind(prefix, key, plain_name) for key in state})
    versions: Any = getattr(state, "_metadata", None)
    if versions is not None:
        _rename(versions, {key: _behind(prefix, key, plain_name) for key in versions})


def load_plain_names(
    module: nn.Module, state: dict[str, Any], prefix: str, *strictness: Any
) -> None:
    """Load-state-dict pre-hook: plain names, or those of any other way of compiling."""
    if has_compiled(module) or any(WRAPPED in key.split(".") for key in state):
        inside = {key: _behind(prefix, key, lambda n: name_inside(module, n)) for key in state}
        _rename(state, inside)


def _behind(prefix: str, key: str, change: Any) -> str:
    return prefix + change(key[len(prefix) :]) if key.startswith(prefix) else key


def _rename(state: dict[str, Any], names: Mapping[str, str]) -> None:
    items = list(state.items())
    state.clear()  # and not one by one, which would change the order
    state.update((names[key], value) for key, value in items)
