"""Action masks, as environments report them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.distributions import flat_mask


def reported_mask(info: Mapping[str, Any], width: int, spec: EnvSpec) -> np.ndarray | None:
    """The action mask a vector env reports in `info["action_mask"]`, bool `[B, A]`, or None.

    An environment that reports none while others do may do everything. The parts of a
    MultiDiscrete action's mask come one after the other, or as Gymnasium's tuple of them.

    Args:
        info: Of a reset or step.
        width: A, of the masks that the policy takes; 0 for none.
        spec: Of the environment, for messages.

    Raises:
        ConfigurationError: If it has another width.
        RunError: If it holds anything but 0 and 1.
    """
    reported = info.get("action_mask")
    if reported is None:
        return None
    mask = np.asarray(list(reported) if isinstance(reported, Mapping) else reported)
    present = np.asarray(info.get("_action_mask", np.ones(len(mask), bool)))
    if mask.dtype == object or not present.all():  # lists, or environments without a mask
        everything = np.ones(width, bool)
        mask = [
            flat_mask(m) if p and m is not None else everything
            for m, p in zip(mask, present, strict=True)
        ]
        mask = np.stack(mask) if len({m.shape for m in mask}) == 1 else np.empty((0, 0))
    if mask.ndim != 2 or mask.shape[1] != width:
        takes = f"takes masks of {width} actions" if width else "takes no masks (mask_dim is 0)"
        raise ConfigurationError(
            f"info['action_mask'] of {spec.id} has shape {list(mask.shape[1:])}, but a "
            f"policy for {shortened(spec.action_space)} {takes}"
        )
    if mask.dtype != bool and not ((mask == 0) | (mask == 1)).all():
        raise RunError(
            f"info['action_mask'] of {spec.id} must be of 0 and 1, or False and True, and "
            f"holds {mask[(mask != 0) & (mask != 1)][0]}"
        )
    return mask.astype(bool)
