"""What can be quantised of a network, what that saves, and widths that fit a budget."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.compress import count, quantisable
from rl_lightning.compress.count import stored_bytes
from rl_lightning.compress.quantisable import BITS
from rl_lightning.compress.rounding import as_rows, pack_weight, rounded
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.optimise.layers import (
    LayerDescription,
    Target,
    describe_layers,
    shared_target,
)
from rl_lightning.envs.optimise.training import accuracy_of, by_itself, limited, scores_of


class Quantisable(NamedTuple):
    """What can be quantised of a network, and what that saves.

    Attributes:
        names: Of the layers, in the network's order.
        layers: Their descriptions.
        sizes: Bytes of their weights, `[L, W]`, at each of `BITS`.
        rest: Bytes of everything else.
    """

    names: Sequence[str]
    layers: Sequence[LayerDescription]
    sizes: np.ndarray
    rest: int

    def size_of(self, bits: Sequence[int]) -> int:
        """Bytes of the network with these widths, as stored."""
        rows = [row[BITS.index(b)] for row, b in zip(self.sizes, bits, strict=True)]
        return self.rest + int(sum(rows))

    def uniform_size(self, bits: float) -> float:
        """Bytes of the network with all layers at one width; between two widths, linearly."""
        return self.rest + float(np.interp(bits, BITS, self.sizes.sum(0)))

    def column(self, bits: int) -> np.ndarray:
        """Bytes of each layer at a width, `[L]`."""
        return self.sizes[:, BITS.index(bits)]

    def uniform_bits(self, choices: Sequence[int], budget: float) -> int | None:
        """The most bits that all layers can have within a budget; None if there are none."""
        most = self.uniform_size(budget)
        return max((b for b in choices if self.uniform_size(b) <= most), default=None)

    def lower(self, layer: int, bits: int, choices: Sequence[int]) -> int | None:
        """The next smaller choice for a layer that saves bytes; None if there is none.

        Not every one does: of short rows, scales are most of what is stored.
        """
        sizes = dict(zip(BITS, self.sizes[layer].tolist(), strict=True))
        smaller = (b for b in choices if b < bits and sizes[b] < sizes[bits])
        return max(smaller, default=None)


def within_budget(
    found: Quantisable, bits: Sequence[int], choices: Sequence[int], budget: float
) -> list[int]:
    """Widths lowered in turn until the network is small enough, see `Quantisable.lower`.

    Args:
        found: Its layers.
        bits: Of each layer, of the choices.
        choices: In rising order; one of them meets the budget with all layers.
        budget: In bits, see `Quantisable.uniform_size`.
    """
    lowered, most = list(bits), found.uniform_size(budget)
    going = True
    while going and found.size_of(lowered) > most:
        going = False
        for i in reversed(range(len(lowered))):
            lower = found.lower(i, lowered[i], choices)
            if lower is not None:
                lowered[i], going = lower, True
            if found.size_of(lowered) <= most:
                break
    if found.size_of(lowered) > most:  # only wider choices are smaller still
        uniform = found.uniform_bits(choices, budget)
        assert uniform is not None, "the budget was checked"
        return [uniform] * len(lowered)
    return lowered


def filled(
    found: Quantisable, bits: Sequence[int], choices: Sequence[int], budget: float
) -> list[int]:
    """Widths raised in turn, from the first layer on, to the next larger choice that fits.

    Args:
        found: Its layers.
        bits: Of each layer, of the choices.
        choices: In rising order.
        budget: In bits, see `Quantisable.uniform_size`.
    """
    raised, most = list(bits), found.uniform_size(budget)
    going = True
    while going:
        going = False
        for i, now in enumerate(raised):
            larger = ([*raised[:i], b, *raised[i + 1 :]] for b in choices if b > now)
            fitting = next((one for one in larger if found.size_of(one) <= most), None)
            if fitting is not None:
                raised, going = fitting, True
    return raised


def check_fits(found: Quantisable, choices: Sequence[int], budget: float, named: str) -> None:
    """Refuse a network without layers, or that no uniform width brings within the budget.

    Args:
        found: Its layers.
        choices: Widths.
        budget: In bits, see `Quantisable.uniform_size`.
        named: What the message calls it.

    Raises:
        ConfigurationError: That says which.
    """
    if not found.names:
        raise ConfigurationError(f"{named} has no layer that can be quantised")
    if found.uniform_bits(choices, budget) is None:
        raise ConfigurationError(
            f"budget={budget:g} cannot be met: of bits={list(choices)}, "
            f"{min(choices, key=found.uniform_size)} is the lowest possible budget for {named}; "
            "allow fewer bits, or raise it"
        )


def quantisable_of(network: nn.Module, x: Tensor) -> Quantisable:
    """What can be quantised of a network, and what that saves.

    Args:
        network: Unchanged.
        x: One input, `[1, ...]`.
    """
    with by_itself(), torch.no_grad():
        described = describe_layers(network, x)
        layers: dict[str, Any] = {n: m for n, m in quantisable(network).items() if n in described}
        sizes = [
            [_bytes_at(layer.weight, bits) for bits in BITS]
            for layer in layers.values()
        ]  # fmt: skip
        table = np.array(sizes, np.int64).reshape(-1, len(BITS))
        rest = count(network, x).bytes - int(table[:, -1].sum())
        table.flags.writeable = False
        return Quantisable(tuple(layers), tuple(described[name] for name in layers), table, rest)


def _bytes_at(weight: Tensor, bits: int) -> int:
    if bits == 32:
        return stored_bytes(weight)
    return sum(map(stored_bytes, pack_weight(as_rows(weight), bits)))


def judged(target: Target, bits: Sequence[int]) -> dict[str, float]:
    """What widths of a target's layers come to: `accuracy`, `loss` and `divergence` on the
    validation part; `test_accuracy` if there is a test part.

    Args:
        target: Which.
        bits: Of each layer.

    Raises:
        ConfigurationError: If there are not as many, or of other widths.
    """
    names = quantisable_target(target).names
    if len(bits) != len(names) or not set(bits) <= set(BITS):
        raise ConfigurationError(
            f"bits={list(bits)}: give one of {', '.join(map(str, BITS))} for each of {len(names)} "
            "layers"
        )
    network, splits = _written_on(target), shared_target(target)[1]
    with by_itself(), torch.no_grad():
        for name, b in zip(names, bits, strict=True):
            layer: Any = network.get_submodule(name)
            layer.weight.copy_(_weight(target, name, b))
        logits = network(splits.x_val)
        found = {
            **scores_of(logits, splits.y_val),
            "divergence": divergence(_log_probabilities(target), logits.log_softmax(1)),
        }
        if splits.x_test is not None and splits.y_test is not None:
            found["test_accuracy"] = accuracy_of(network(splits.x_test), splits.y_test)
    return found


@lru_cache(maxsize=1024)
def uniformly_judged(target: Target, bits: int) -> dict[str, float]:
    """`judged` with all layers at one width, once in a process; nothing may change it."""
    return judged(target, [bits] * len(quantisable_target(target).names))


@lru_cache(maxsize=256)
def probed_target(target: Target, bits: tuple[int, ...]) -> np.ndarray:
    """Divergence of a target with one layer alone at each width, `[L, W]`, read-only."""
    layers = range(len(quantisable_target(target).names))
    found = np.array(
        [
            [judged(target, [b if i == j else 32 for j in layers])["divergence"] for b in bits]
            for i in layers
        ]
    )
    found.flags.writeable = False
    return found


def divergence(before: Tensor, now: Tensor) -> float:
    """Mean KL(before ‖ now) over rows, in nats; at most `LOSS_LIMIT`.

    Args:
        before: Log-probabilities, `[N, C]`; what is impossible there counts nothing.
        now: Likewise.
    """
    terms = before.exp() * (before - now)
    return limited(torch.where(before == -torch.inf, 0.0, terms).sum(1).mean())


@lru_cache(maxsize=128)
def quantisable_target(target: Target) -> Quantisable:
    """What can be quantised of a target, once in a process."""
    network, splits = shared_target(target)
    return quantisable_of(network, splits.x_val[:1])


@lru_cache(maxsize=128)
def _written_on(target: Target) -> nn.Module:
    """A copy of a target whose weights are written over for each judgement.

    Torch's `functional_call` would do without, and leaves another tensor behind in a network where
    a layer stands under two names.
    """
    with by_itself():  # or a validation's copy could not be written on
        return copy.deepcopy(shared_target(target)[0])


@lru_cache(maxsize=4096)
def _weight(target: Target, name: str, bits: int) -> Tensor:
    """A layer's weight as the packed layer that `quantise` makes restores it."""
    layer: Any = shared_target(target)[0].get_submodule(name)
    return layer.weight.detach() if bits == 32 else rounded(layer.weight, bits)


@lru_cache(maxsize=128)
def _log_probabilities(target: Target) -> Tensor:
    """Of the whole network on the validation part, `[N, classes]`."""
    network, splits = shared_target(target)
    with by_itself(), torch.no_grad():
        return network(splits.x_val).log_softmax(1)
