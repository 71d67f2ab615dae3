"""What can be pruned of a network, and the smaller network."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from rl_lightning.compress import NodeGroup, node_groups, prune_nodes
from rl_lightning.compress.nodes import cut_nodes, least_important, mask_nodes, node_scores
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.optimise.layers import (
    LayerDescription,
    NodeCosts,
    Target,
    describe_layers,
    shared_target,
    together,
)
from rl_lightning.envs.optimise.reconstruct import reconstruct
from rl_lightning.envs.optimise.training import by_itself


class Prunable(NamedTuple):
    """What can be pruned of a network, and what that saves.

    Attributes:
        groups: Of nodes that only go together, in the network's order.
        scores: Importance of each group's nodes.
        costs: Of the network without some of them.
        layers: A description of each group.
    """

    groups: list[NodeGroup]
    scores: list[Tensor]
    costs: NodeCosts
    layers: list[LayerDescription]

    def removal(self, group: int, share: float, round_to: int = 1) -> list[int]:
        """The nodes that go where a share of a group's is to stay, as `prune_nodes` chooses."""
        return least_important(self.groups[group], self.scores[group], 1 - share, round_to)


def prunable(network: nn.Module, x: Tensor, importance: str, resource: str) -> Prunable:
    """What can be pruned of a network, and what that saves.

    Args:
        network: Unchanged.
        x: Two inputs, `[2, ...]`.
        importance: See `prune_nodes`.
        resource: See `NodeCosts`.

    Raises:
        ConfigurationError: If the network computes something else without nodes than with zeros in
            their place.
    """
    with by_itself():
        groups = [group for group in node_groups(network, x) if group.refused is None]
        if groups:  # tried once, and not again for every smaller network
            halves = {group.layers[0]: 0.5 for group in groups}
            prune_nodes(copy.deepcopy(network), halves, x)
        scores = [node_scores(network, group, importance) for group in groups]
        described = describe_layers(network, x[:1])
        layers = [together([described[name] for name in group.layers]) for group in groups]
        return Prunable(groups, scores, NodeCosts(network, groups, x[:1], resource), layers)


def pruned(
    network: nn.Module,
    groups: Sequence[NodeGroup],
    removed: Sequence[Sequence[int]],
    x: Tensor,
    fit: bool,
) -> nn.Module:
    """A smaller copy of a network.

    Args:
        network: Unchanged.
        groups: Of its nodes.
        removed: Of each group, the nodes that go.
        x: Calibration inputs, `[N, ...]`.
        fit: Whether weights that read removed nodes are fitted, see `reconstruct`.
    """
    small = copy.deepcopy(network)
    removals = [(g, list(r)) for g, r in zip(groups, removed, strict=True) if r]
    if not removals:
        return small
    mask_nodes(small, removals)
    if fit:
        reconstruct(network, small, groups, removed, x)
    cut_nodes(small, removals)
    return small


def check_budget(
    found: Prunable, lowest: float, round_to: int, budget: float, resource: str, named: str
) -> None:
    """Refuse a network that cannot be pruned, or not that far.

    Args:
        found: What can be pruned of it.
        lowest: Least share that stays of a group.
        round_to: See `Prunable.removal`.
        budget: Largest share of its cost.
        resource: What costs.
        named: What the message calls it.

    Raises:
        ConfigurationError: If it has no group, or costs more than the budget at the lowest shares.
    """
    if not found.groups:
        raise ConfigurationError(f"{named} has no layer that can be pruned")
    removed = [found.removal(i, lowest, round_to) for i in range(len(found.groups))]
    share = found.costs.of(removed) / found.costs.total
    if share > budget:
        raise ConfigurationError(
            f"budget={budget:g} cannot be met: with lowest={lowest:g}, {named} keeps at least "
            f"{math.ceil(share * 1000) / 1000:g} of its {resource}"
        )


def within_budget(
    found: Prunable,
    removed: Sequence[list[int]],
    share: float,
    budget: float,
    lowest: float,
    round_to: int,
) -> list[int]:
    """The nodes of the next group that go: as asked, or as few more as later groups need.

    AMC, algorithm 1: a share is lowered where the later groups could not make up for it at their
    lowest.

    Args:
        found: What can be pruned.
        removed: Of each earlier group, the nodes that went.
        share: That is asked for.
        budget: Largest share of the cost; that of the lowest shares fits.
        lowest: Least share that stays of a group.
        round_to: See `Prunable.removal`.
    """
    groups, _, costs, _ = found
    now = len(removed)
    later = [found.removal(i, lowest, round_to) for i in range(now + 1, len(groups))]
    nodes = groups[now].nodes

    def gone(stay: int) -> list[int]:
        return found.removal(now, stay / nodes, round_to)

    most = nodes - len(found.removal(now, share, round_to))
    least = nodes - len(found.removal(now, lowest, round_to))
    while least < most:
        middle = (least + most + 1) // 2
        fits = costs.of([*removed, gone(middle), *later]) <= budget * costs.total
        least, most = (middle, most) if fits else (least, middle - 1)
    return gone(least)


def uniform_shares(found: Prunable) -> Callable[[float], list[float]]:
    """The same share of every group, for `largest`."""
    return lambda part: [part] * len(found.groups)


def norm_shares(found: Prunable, normalised: bool) -> Callable[[float], list[float]]:
    """What stays of each group if this part of all nodes does, those of the largest scores.

    Args:
        found: What can be pruned.
        normalised: Divide scores by the mean of their group, so that layers of small weights are
            not the first to go.
    """
    norms = [scores.double().numpy() for scores in found.scores]
    if normalised:
        norms = [norm / max(norm.mean(), 1e-12) for norm in norms]
    ranked = np.sort(np.concatenate(norms))

    def shares(part: float) -> list[float]:
        threshold = ranked[min(round((1 - part) * len(ranked)), len(ranked) - 1)]
        return [float((norm >= threshold).mean()) for norm in norms]

    return shares


def largest(
    shares: Callable[[float], Sequence[float]],
    fits: Callable[[Sequence[float]], bool],
    lowest: float,
) -> list[float]:
    """Shares for the largest number in [0, 1] with which they fit, by bisection.

    Args:
        shares: Of each group, for that number; they must rise with it.
        fits: Whether such shares are within the budget; it must hold for `lowest` everywhere.
        lowest: Least share that stays of a group, in the place of any smaller one.
    """

    def at(part: float) -> list[float]:
        return [max(share, lowest) for share in shares(part)]

    low, high = 0.0, 1.0
    if fits(at(high)):
        return at(high)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    return at(low)


def scaled(
    shares: Sequence[float], fits: Callable[[Sequence[float]], bool], lowest: float
) -> list[float]:
    """Shares times the largest number with which they fit, none above 1; see `largest`."""

    def times(part: float) -> list[float]:
        return [min(share * part / lowest, 1.0) for share in shares]

    return largest(times, fits, lowest)


@lru_cache(maxsize=128)
def prunable_target(target: Target, importance: str, resource: str) -> Prunable:
    """`prunable` of `shared_target`, once in a process."""
    network, splits = shared_target(target)
    return prunable(network, splits.x_val[:2], importance, resource)
