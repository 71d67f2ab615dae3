"""What this library knows of torch's insides: its private names are used here alone.

Operations on many tensors at once, which `torch.optim` and `torch.nn.utils` consist of, and what
stands between a module and its function. `tests/nn/test_insides.py` is the contract.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

_torch: Any = torch

# --- many tensors at once -------------------------------------------------------------------------


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """2-norms, `[K]`."""
    return torch.stack(_torch._foreach_norm(tensors))


def multiply_all(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """xᵢ ← xᵢ · factor."""
    _torch._foreach_mul_(tensors, factor)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """xᵢ ← yᵢ."""
    _torch._foreach_copy_(targets, sources)


def lerp_all(targets: Sequence[Tensor], sources: Sequence[Tensor], share: float) -> None:
    """xᵢ ← xᵢ + share · (yᵢ − xᵢ)."""
    _torch._foreach_lerp_(targets, sources, share)


def fused_adam(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: Sequence[Sequence[Tensor]],
    group: Mapping[str, Any],
) -> None:
    """One step of Adam, or where its weight decay is decoupled of AdamW.

    Args:
        parameters: Changed in place.
        gradients: Theirs.
        state: Their means, mean squares and numbers of steps; changed in place.
        group: The optimizer's numbers.
    """
    means, squares, steps = state
    beta1, beta2 = group["betas"]
    decoupled = group.get("decoupled_weight_decay", False)
    update = _torch._fused_adamw_ if decoupled else _torch._fused_adam_
    _torch._foreach_add_(steps, 1)
    update(
        parameters,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


# --- optimizers -----------------------------------------------------------------------------------


def steps_are_watched(optimizer: Any) -> bool:
    """Whether somebody is called at an optimizer's steps, or has put others in their place."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return "step" in vars(optimizer) or any(hooks)


def unscale_before_step(optimizer: Any) -> None:
    """Have mixed precision's gradients unscaled before an optimizer's step, and not inside it."""
    optimizer._step_supports_amp_scaling = False


# --- modules --------------------------------------------------------------------------------------


def is_heard(module: nn.Module) -> bool:
    """Whether hooks listen to a module, or to all."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or modules._has_any_global_hook()  # type: ignore[attr-defined]
    )


def own_parameters(module: nn.Module) -> dict[str, Any]:
    """A module's own parameters, not those of its children, by name."""
    return module._parameters


def children(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """A module's children by name, also of one that `torch.compile` has wrapped."""
    return module._modules


@contextlib.contextmanager
def without_new_hooks(module: nn.Module) -> Iterator[None]:
    """Take away at the end what was hooked to the calls of a module's parts in between."""
    before = [(part, set(part._forward_hooks)) for part in module.modules()]
    try:
        yield
    finally:
        for part, known in before:
            for key in part._forward_hooks.keys() - known:
                del part._forward_hooks[key]
