"""Networks that the user names by an import path."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.trust import find_named


def own_network(
    model: str, in_shape: tuple[int, ...], classes: int, width: int, depth: int, seed: int
) -> nn.Module:
    """What the user's function or class makes, float32 and in eval mode.

    Args:
        model: Import path of a callable `(in_shape, classes, width, depth) → module`.
        in_shape: Shape of one input.
        classes: Number of classes.
        width: Units of a hidden layer.
        depth: Hidden layers.
        seed: Of torch's global generator while it is made, which is as before afterwards.

    Raises:
        ConfigurationError: If there is no such callable, or no network comes out of it that returns
            logits and leaves its inputs as they are.
    """
    make = named_network(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = make(in_shape, classes, width, depth)
        except TypeError as error:
            raise ConfigurationError(
                f"model={model!r} must be callable as (in_shape, classes, width, depth): {error}"
            ) from error
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"model={model!r} must return a module, not {shortened(made, 80)}")
    made = made.to("cpu", torch.float32).eval()
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise ConfigurationError(
            f"model={model!r} has no parameter to train: none has requires_grad"
        )
    _check_logits(model, made, in_shape, classes)
    return made


def named_network(model: str) -> Callable[..., Any]:
    """The callable of an import path.

    Raises:
        ConfigurationError: If there is none.
    """
    found = find_named(model, f"the model {model}", f"model={model!r} asks")
    if not callable(found):
        raise ConfigurationError(
            f"model={model!r} is a {type(found).__name__}, which cannot be called as "
            "(in_shape, classes, width, depth)"
        )
    return found


def _check_logits(model: str, network: nn.Module, in_shape: tuple[int, ...], classes: int) -> None:
    """Refuse a network that returns no logits, or changes its inputs, which others read too."""
    # Below 1, so that a network that reads them as ids or numbers of tokens sees zeros.
    x = torch.rand(
        2, *in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    )
    before = x.clone()
    # This product's gradient needs x as it is: autograd refuses it after any operation in place,
    # also one that leaves these numbers the same (`relu_`, `clamp_`).
    product = (torch.ones_like(x, requires_grad=True) * x).sum()
    with torch.no_grad():
        out = network(x)
        _check_one(model, network, before[:1])
    changed = not torch.equal(x, before)
    try:
        product.backward()
    except RuntimeError:
        changed = True
    if changed:
        raise ConfigurationError(
            f"model={model!r} changes its inputs in place, and others read the same data: have it "
            "compute new tensors (x * 2, not x.mul_(2); ReLU without inplace=True), or begin with "
            "x = x.clone()"
        )
    if not isinstance(out, Tensor) or out.shape != (2, classes):
        shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ConfigurationError(
            f"model={model!r} must return logits [N, {classes}] of inputs [N, "
            f"{', '.join(map(str, in_shape))}], and of two it returns {shape}"
        )


def _check_one(model: str, network: nn.Module, x: Tensor) -> None:
    """Refuse a network that needs several inputs at once, as statistics of a batch do."""
    try:
        network(x.clone())
    except ValueError as error:
        raise ConfigurationError(
            f"model={model!r} must also compute the logits of one input alone, as BatchNorm "
            f"without running statistics cannot ({error})"
        ) from error
