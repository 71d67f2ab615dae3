"""What can be quantised of a network, what that saves, and widths that fit a budget."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rl_lightning.compress import count, quantisable
from rl_lightning.compress.count import stored_bytes
from rl_lightning.compress.quantisable import BITS
from rl_lightning.compress.rounding import as_rows, pack_weight, rounded
from rl_lightning.envs.optimise.layers import LayerDescription, describe_layers, shared_target
from rl_lightning.envs.optimise.training import accuracy_of, by_itself

Network = tuple[str, str, int, int, int, int]
"""What names a target: model, data, width, depth, split, epochs."""


class Quantisable(NamedTuple):
    """What can be quantised of a network, and what that saves.

    Attributes:
        names: Of the layers, in the network's order.
        layers: Their descriptions.
        sizes: Bytes of their weights, `[L, W]`, at each of `BITS`.
        rest: Bytes of everything else.
    """

    names: list[str]
    layers: list[LayerDescription]
    sizes: np.ndarray
    rest: int

    def size_of(self, bits: Sequence[int]) -> int:
        """Bytes of the network with these widths, as stored."""
        rows = [row[BITS.index(b)] for row, b in zip(self.sizes, bits, strict=True)]
        return self.rest + int(sum(rows))

    def uniform_size(self, bits: float) -> float:
        """Bytes of the network with all layers at one width; between two widths, linearly."""
        return self.rest + float(np.interp(bits, BITS, self.sizes.sum(0)))


def within_budget(
    found: Quantisable, bits: Sequence[int], choices: Sequence[int], budget: float
) -> list[int]:
    """Widths lowered in turn until the network is small enough.

    Args:
        found: Its layers.
        bits: Of each layer, of the choices.
        choices: In rising order; with all layers at the first of them the budget is met.
        budget: In bits, see `Quantisable.uniform_size`.
    """
    lowered, most = list(bits), found.uniform_size(budget)
    while found.size_of(lowered) > most:
        for i in reversed(range(len(lowered))):
            lowered[i] = choices[max(choices.index(lowered[i]) - 1, 0)]
            if found.size_of(lowered) <= most:
                break
    return lowered


def filled(
    found: Quantisable, bits: Sequence[int], choices: Sequence[int], budget: float
) -> list[int]:
    """Widths raised in turn, from the first layer on, while the network fits the budget.

    Args:
        found: Its layers.
        bits: Of each layer, of the choices.
        choices: In rising order.
        budget: In bits, see `Quantisable.uniform_size`.
    """
    raised, most = list(bits), found.uniform_size(budget)
    fits = True
    while fits:
        fits = False
        for i, now in enumerate(raised):
            if now == choices[-1]:
                continue
            higher = [*raised[:i], choices[choices.index(now) + 1], *raised[i + 1 :]]
            if found.size_of(higher) <= most:
                raised, fits = higher, True
    return raised


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
        return Quantisable(list(layers), [described[name] for name in layers], table, rest)


def _bytes_at(weight: Tensor, bits: int) -> int:
    if bits == 32:
        return stored_bytes(weight)
    return sum(map(stored_bytes, pack_weight(as_rows(weight), bits)))


def judged(named: Network, bits: Sequence[int]) -> dict[str, float]:
    """What widths of a target's layers come to: `accuracy`, `loss` and `divergence` on the
    validation part; `test_accuracy` if there is a test part.

    Args:
        named: The target.
        bits: Of each layer.
    """
    network, splits = shared_target(*named)
    with by_itself(), torch.no_grad():
        weights = {
            f"{name}.weight": _weight(*named, name, b)
            for name, b in zip(quantisable_target(*named).names, bits, strict=True)
        }
        logits = functional_call(network, weights, (splits.x_val,))
        before, now = _log_probabilities(*named), logits.log_softmax(1)
        found = {
            "accuracy": accuracy_of(logits, splits.y_val),
            "loss": F.cross_entropy(logits, splits.y_val).item(),
            "divergence": F.kl_div(now, before, reduction="batchmean", log_target=True).item(),
        }
        if splits.x_test is not None and splits.y_test is not None:
            logits = functional_call(network, weights, (splits.x_test,))
            found["test_accuracy"] = accuracy_of(logits, splits.y_test)
    return found


@lru_cache(maxsize=256)
def probed_target(named: Network, bits: tuple[int, ...]) -> np.ndarray:
    """Divergence of a target with one layer alone at each width, `[L, W]`, read-only."""
    layers = range(len(quantisable_target(*named).names))
    found = np.array(
        [
            [judged(named, [b if i == j else 32 for j in layers])["divergence"] for b in bits]
            for i in layers
        ]
    )
    found.flags.writeable = False
    return found


@lru_cache(maxsize=128)
def quantisable_target(
    model: str, data: str, width: int, depth: int, split: int, epochs: int
) -> Quantisable:
    """What can be quantised of a target, once in a process."""
    network, splits = shared_target(model, data, width, depth, split, epochs)
    return quantisable_of(network, splits.x_val[:1])


@lru_cache(maxsize=4096)
def _weight(
    model: str, data: str, width: int, depth: int, split: int, epochs: int, name: str, bits: int
) -> Tensor:
    """A layer's weight as the packed layer that `quantise` makes restores it."""
    network, _ = shared_target(model, data, width, depth, split, epochs)
    weight: Any = network.get_submodule(name).weight
    return weight.detach() if bits == 32 else rounded(weight, bits)


@lru_cache(maxsize=128)
def _log_probabilities(
    model: str, data: str, width: int, depth: int, split: int, epochs: int
) -> Tensor:
    """Log-probabilities of the whole network on the validation part, `[N, classes]`."""
    network, splits = shared_target(model, data, width, depth, split, epochs)
    with by_itself(), torch.no_grad():
        return network(splits.x_val).log_softmax(1)
