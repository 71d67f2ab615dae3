"""What processes that train together tell each other."""

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
