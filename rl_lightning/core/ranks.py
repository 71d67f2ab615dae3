"""What processes that train together tell each other."""

import atexit
from typing import Any

import torch.distributed as dist


def world_size() -> int:
    """How many there are; 1 outside of distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(own: Any) -> list[Any]:
    """What every rank gives, in the order of ranks: all of them must ask."""
    ranks = [own]
    if (count := world_size()) > 1:
        ranks = [None] * count
        dist.all_gather_object(ranks, own)
    return ranks


def close_at_exit() -> None:
    """Have the group of ranks closed before Python ends, if there is one.

    Lightning does so for NCCL alone. Gloo's threads abort a process that is torn down around them,
    seldom and after all is written: "terminate called without an active exception".
    """
    keep_at_exit()
    if world_size() > 1:
        atexit.register(_close)


def keep_at_exit() -> None:
    """Leave the group as it is: after a failure, closing could wait for ranks that are gone."""
    atexit.unregister(_close)


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
