"""Which prompts train, and which validate."""

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.errors import ConfigurationError, check_range
from rl_lightning.core.order import split
from rl_lightning.data.prompts.table import PickedPrompts, Prompts, as_json


def split_prompts(
    prompts: Prompts, val_share: float = 0.1, seed: int = 0, val_prompts: Prompts | None = None
) -> tuple[Prompts, Prompts]:
    """Prompts to train on, and others to validate by.

    Equal prompts are on one side, whatever their columns are. Validation prompts of one's own are
    taken as they are; those that training has, too, are told of.

    Args:
        prompts: All there are.
        val_share: Share of the different prompts that is held out; 0 holds out none.
        seed: Of which.
        val_prompts: Validation prompts of one's own, in the place of a share.

    Raises:
        ConfigurationError: If the share is out of range, or leaves no prompt on one of the sides.
    """
    keys = {}
    numbers = np.array([keys.setdefault(_key(prompts, i), len(keys)) for i in range(len(prompts))])
    if val_prompts is not None:
        shared = sum(_key(val_prompts, i) in keys for i in range(len(val_prompts)))
        if shared:
            rank_zero_warn(
                f"data.val_prompts: {shared} of {len(val_prompts)} prompts are trained on, too, so "
                "that validation tells less than it seems to"
            )
        return prompts, val_prompts
    check_range("data.val_share", val_share, 0.0, 0.9)
    validates = split(numbers, val_share, np.random.default_rng([seed, 0]))
    if val_share and (not validates.any() or validates.all()):
        raise ConfigurationError(
            f"data.val_share={val_share:g} of {len(keys)} different prompts leaves none to "
            f"{'train on' if validates.any() else 'validate by'}; give val_prompts, another share "
            "or more prompts"
        )
    return tuple(
        PickedPrompts(prompts, np.flatnonzero(which).tolist()) for which in (~validates, validates)
    )  # type: ignore[return-value]


def _key(prompts: Prompts, index: int) -> bytes:
    return as_json(prompts.prompt(index))
