"""Batches of completions as the maths of tokens takes them, and what ranks know together."""

from typing import Any, overload

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.ranks import gather, world_size
from rl_lightning.maths.token_advantages import whiten


@overload
def flat(x: Tensor) -> Tensor: ...
@overload
def flat(x: None) -> None: ...
def flat(x: Any) -> Any:
    """`[P, G, ...]` as `[P · G, ...]`: completions, those of one prompt adjacent."""
    return None if x is None else x.flatten(0, 1)


def shared(batch: TensorDict, name: str) -> Tensor | None:
    """A scalar that all rows of a batch have in common, if it is there."""
    value = batch.get(name, None)
    return None if value is None else value[0]


def over_ranks(x: Tensor) -> tuple[Tensor, slice]:
    """The rows of all ranks, and which of them are this one's.

    Args:
        x: Of this rank, `[N, ...]`, without gradient; alike on all ranks but for N.
    """
    if world_size() == 1:
        return x, slice(0, len(x))
    parts = gather(x.detach().cpu())
    before = sum(len(part) for part in parts[: dist.get_rank()])
    return torch.cat(parts).to(x.device), slice(before, before + len(x))


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a scalar over all ranks."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """x of own tokens with mean 0 and variance 1 over the batches of all ranks, `[N, T]`."""
    everything, rows = over_ranks(torch.stack([x, mask.to(x)]).flatten(1).T)  # [N·T, 2]
    white = whiten(everything[:, 0][None], everything[:, 1][None].bool())[0]
    return white[rows].view_as(x)
