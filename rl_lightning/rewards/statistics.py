"""How a learned reward is distributed over what it was trained on."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError

QUANTILES = 101  # 0, 0.01, … 1


def statistics_of(reward: Tensor) -> dict[str, Any]:
    """Mean, standard deviation (of the population) and quantiles of rewards `[n]`.

    Returns:
        Plain data: `mean`, `std`, `count`, and `quantiles`, float64 `[101]`, at 0, 0.01, … 1.
    """
    r = reward.double()
    # Not torch.quantile: it takes 16 million numbers at most.
    ordered = r.sort().values
    place = torch.linspace(0.0, 1.0, QUANTILES, dtype=torch.float64) * (len(r) - 1)
    low, high = place.floor().long(), place.ceil().long()
    quantiles = torch.lerp(ordered[low], ordered[high], place - low)
    return {
        "mean": r.mean().item(),
        "std": r.std(correction=0).item(),
        "count": len(r),
        "quantiles": quantiles,
    }


def quantile(statistics: Mapping[str, Any], share: float) -> float:
    """The reward that `share` of the training observations stay below."""
    place = share * (QUANTILES - 1)
    low, high = math.floor(place), math.ceil(place)
    values = statistics["quantiles"]
    return float(torch.lerp(values[low], values[high], place - low))


def check_statistics(statistics: Any) -> dict[str, Any] | None:
    """The statistics of a checkpoint; None if it holds none.

    Raises:
        ConfigurationError: If they are none that `statistics_of` can have made.
    """
    if statistics is None:
        return None
    quantiles = statistics.get("quantiles") if isinstance(statistics, Mapping) else None
    fits = (
        isinstance(quantiles, Tensor)
        and quantiles.shape == (QUANTILES,)
        and bool(quantiles.isfinite().all() and (quantiles.diff() >= 0).all())
        and all(type(statistics.get(k)) is float for k in ("mean", "std"))
        and math.isfinite(statistics["mean"])
        and 0 <= statistics["std"] < math.inf
    )
    if not fits:
        raise ConfigurationError(
            "the checkpoint's statistics of its reward are no mean, standard deviation and "
            "quantiles: it was changed"
        )
    return dict(statistics)
