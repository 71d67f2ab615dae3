"""Recorded episodes in HDF5: what `predict` writes down, and offline learning reads.

The layout is that of `main_data.hdf5` in Minari 0.5 (https://minari.farama.org):

    episode_0, episode_1, …                 attributes id, total_steps
        observations                        T+1 rows: the final observation is the last one
        actions                             T rows
        rewards, terminations, truncations  [T]
        infos/action_mask                   T+1 rows of allowed actions, where there are masks

Entries of a Dict space lie in a group, those of a Tuple space in a group as `_index_0`, `_index_1`,
…; texts are variable-length strings. Attributes of the file are total_episodes, total_steps, env_id
and both spaces in Minari's JSON, which Minari itself keeps in a `metadata.json` beside the file.

What Minari writes can be read, its JPEG images too (with Pillow); other `infos`, and masks that are
no rows of flags, are passed over. What is written here, Minari's `HDF5Storage` reads if the file is
called `main_data.hdf5` and it is given the spaces. One exception: images of at least 32 × 32
pixels, which are exact here and JPEG there.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.former import former_attribute
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.checks import checked
from rl_lightning.data.recordings.episode import PARTS, Episode
from rl_lightning.data.recordings.hdf5 import (
    MOST_EXPANSION,
    SMALL_BYTES,
    Node,
    find,
    load,
    opened,
)
from rl_lightning.data.recordings.layout import (
    episode_group,
    episode_ids,
    file_in,
    mask_parts,
    rewards_of,
    step_count,
)
from rl_lightning.data.recordings.spaces import check_spaces, spec_of


class Dataset:
    """Episodes in a file, read one at a time; made by `read_dataset`.

    Attributes:
        path: The HDF5 file.
        spec: Spaces of the environment, or None if the file does not say.
    """

    def __init__(self, path: Path, spec: EnvSpec | None, ids: list[int]) -> None:
        self.path = path
        self.spec = spec
        self._ids = ids

    @property
    def total_episodes(self) -> int:
        return len(self._ids)

    @property
    def total_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(self._lengths_and_returns[0])

    @cached_property
    def mask_dim(self) -> int:
        """Width of the action masks; 0 if no episode has any."""
        with opened(self.path) as file:
            for index in self._ids:
                parts = mask_parts(*episode_group(file, index, self.path))
                if parts:
                    return sum(part.shape[1] for part in parts)
        return 0

    @property
    def mean_return(self) -> float:
        """Undiscounted return, averaged over episodes."""
        return float(np.mean(self._lengths_and_returns[1]))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the file from another one."""
        return {
            "episodes": self.total_episodes,
            "steps": self.total_steps,
            "mean_return": self.mean_return,
        }

    def episodes(self) -> Iterator[Episode]:
        """All episodes in the order in which they were recorded, each read when its turn comes.

        Where `spec` is known, arrays have the dtypes of its spaces. If some episodes have action
        masks, those that do not allow everything.

        Raises:
            ConfigurationError: If an episode is incomplete, if it takes anything from another file
                or more memory than there is, or if it is not what an environment can have said,
                see `checked`.
        """
        with opened(self.path) as file:
            for index in self._ids:
                yield self._read(*episode_group(file, index, self.path))

    def _read(self, group: Any, where: str) -> Episode:
        seen: set[int] = set()
        found: dict[str, Node] = {name: find(group, name, where, seen) for name in PARTS}
        masks = mask_parts(group, where) if self.mask_dim else []
        width = sum(part.shape[1] for part in masks)
        if masks and width != self.mask_dim:
            raise ConfigurationError(
                f"{where}: the action masks are {width} actions wide, but those of an earlier "
                f"episode {self.mask_dim}"
            )
        found |= {str(i): part for i, part in enumerate(masks)}
        steps = step_count(found["rewards"])
        values = load(found, where, steps + 1)
        allowed = np.ones((steps + 1, self.mask_dim), bool) if self.mask_dim else None
        if masks:
            allowed = np.concatenate([values[str(i)] for i in range(len(masks))], axis=1)
        parts = (values[name] for name in PARTS)
        return checked(Episode(*parts, action_masks=allowed), self.spec, where)

    def check(self, spec: EnvSpec) -> None:
        """Refuse an environment whose observations or actions are not those recorded.

        Bounds and lengths of observations may differ, since they change with versions of an
        environment and say nothing of its rows. Passes if `self.spec` is None.

        Raises:
            ConfigurationError: If the spaces differ.
        """
        if self.spec is not None:
            check_spaces(self.path, self.spec, spec)

    def check_masks(self, width: int) -> None:
        """Refuse action masks that a policy does not understand.

        Args:
            width: Of the masks that it takes; 0 if it takes none.

        Raises:
            ConfigurationError: If those in the file are of another width.
        """
        if self.mask_dim not in (0, width):
            takes = f"takes masks of {width} actions" if width else "takes no masks"
            raise ConfigurationError(
                f"{self.path} holds action masks of {self.mask_dim} actions, but the policy {takes}"
            )

    @cached_property
    def _lengths_and_returns(self) -> tuple[list[int], list[Any]]:
        lengths, returns, claimed = [], [], 0
        with opened(self.path) as file:
            most = max(SMALL_BYTES, MOST_EXPANSION * file.id.get_filesize())
            for index in self._ids:
                group, where = episode_group(file, index, self.path)
                found = rewards_of(group, where)
                claimed += found.size
                if claimed > most:
                    raise ConfigurationError(
                        f"{where}: the rewards up to here claim {claimed / 2**30:,.1f} GiB, which "
                        "a file of this size cannot hold: it is damaged or forged"
                    )
                rewards = load(found, where)
                lengths.append(len(rewards))
                returns.append(rewards.sum())
        return lengths, returns


def read_dataset(path: str | Path) -> Dataset:
    """Open recorded episodes.

    Args:
        path: An HDF5 file, or the folder of a Minari data set (the one with
            `data/main_data.hdf5`).

    Raises:
        ConfigurationError: If there is no such file, if it is none of recorded episodes, if it lies
            behind a link inside the folder, or if h5py is not installed.
    """
    path = file_in(Path(path).expanduser())
    with opened(path) as file:
        ids = episode_ids(file, path)
        if not ids:
            raise ConfigurationError(
                f"{path} holds no group episode_0: it is not in Minari's layout, or empty"
            )
        return Dataset(path, spec_of(file, path), ids)


def read_recorded(path: str | Path, spec: EnvSpec) -> Dataset:
    """Open the recorded episodes of an environment with these spaces.

    Raises:
        ConfigurationError: As `read_dataset`, and if they are of other spaces.
    """
    recorded = read_dataset(path)
    recorded.check(spec)
    if recorded.spec is None:  # the file does not say: let the environment judge its rows
        recorded.spec = spec
    return recorded


def spell(fingerprint: dict[str, Any]) -> str:
    """A `Dataset.fingerprint` in words."""
    return "{episodes} episodes of {steps} steps and mean return {mean_return:.4g}".format(
        **fingerprint
    )


def __getattr__(name: str) -> Any:
    return former_attribute(__name__, name, ("DatasetWriter",), f"{__package__}.writer")
