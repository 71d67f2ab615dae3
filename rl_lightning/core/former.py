"""Modules that have moved can be imported by their former names for one more version.

Whoever does is told the new one. Files need no such help, see `rl_lightning.names`.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from rl_lightning.core.errors import FormerWarning

FORMER = {
    "rl_lightning.arguments": "rl_lightning.core.arguments",
    "rl_lightning.bounds": "rl_lightning.core.bounds",
    "rl_lightning.charset": "rl_lightning.core.charset",
    "rl_lightning.checkpoints": "rl_lightning.core.checkpoints",
    "rl_lightning.errors": "rl_lightning.core.errors",
    "rl_lightning.schedules": "rl_lightning.core.schedules",
    "rl_lightning.sharing": "rl_lightning.core.sharing",
    "rl_lightning.spaces": "rl_lightning.core.spaces",
    "rl_lightning.stopping": "rl_lightning.core.stopping",
    "rl_lightning.tree": "rl_lightning.core.tree",
    "rl_lightning.trust": "rl_lightning.core.trust",
    "rl_lightning.types": "rl_lightning.core.types",
    "rl_lightning.distributions": "rl_lightning.maths.distributions",
    "rl_lightning.losses": "rl_lightning.maths.losses",
    "rl_lightning.planning": "rl_lightning.maths.planning",
    "rl_lightning.returns": "rl_lightning.maths.returns",
    "rl_lightning.config_file": "rl_lightning.cli.config_file",
    "rl_lightning.explain": "rl_lightning.cli.explain",
    "rl_lightning.failures": "rl_lightning.cli.failures",
    "rl_lightning.parser": "rl_lightning.cli.parser",
    "rl_lightning.stored_config": "rl_lightning.cli.stored_config",
    "rl_lightning.data.arena": "rl_lightning.data.replay.arrays",
    "rl_lightning.data.columns": "rl_lightning.data.replay.columns",
    "rl_lightning.data.goals": "rl_lightning.data.replay.goals",
    "rl_lightning.data.hindsight": "rl_lightning.data.replay.hindsight",
    "rl_lightning.data.placement": "rl_lightning.data.replay.storage",
    "rl_lightning.data.priorities": "rl_lightning.data.replay.priorities",
    "rl_lightning.data.sum_tree": "rl_lightning.data.replay.sum_tree",
    "rl_lightning.data.dataset": "rl_lightning.data.recordings.dataset",
    "rl_lightning.data.blocks": "rl_lightning.data.recordings.rows",
    "rl_lightning.data.preload": "rl_lightning.data.recordings.into_buffer",
    "rl_lightning.data.minari": "rl_lightning.data.recordings.minari",
    "rl_lightning.data.layout": "rl_lightning.data.recordings.layout",
    "rl_lightning.data.episode_checks": "rl_lightning.data.recordings.checks",
    "rl_lightning.data.hdf5_safety": "rl_lightning.data.recordings.hdf5",
    "rl_lightning.data.recorded_spaces": "rl_lightning.data.recordings.spaces",
    "rl_lightning.data.recording": "rl_lightning.data.recordings.episode",
    "rl_lightning.data.collector": "rl_lightning.data.collect.collector",
    "rl_lightning.data.replay_collector": "rl_lightning.data.collect.replay_collector",
    "rl_lightning.data.storage": "rl_lightning.data.collect.rollout_storage",
    "rl_lightning.data.episodes": "rl_lightning.data.collect.statistics",
    "rl_lightning.data.evaluation": "rl_lightning.data.collect.evaluation",
    "rl_lightning.data.finite": "rl_lightning.data.collect.checks",
    "rl_lightning.data.patience": "rl_lightning.data.collect.patience",
    "rl_lightning.data.reward": "rl_lightning.data.collect.reward_norm",
    "rl_lightning.data.checkpoint_files": "rl_lightning.data.resume.checkpoint_files",
    "rl_lightning.data.sidecar": "rl_lightning.data.resume.sidecar",
    "rl_lightning.data.snapshot": "rl_lightning.data.resume.environments",
    "rl_lightning.data.rng": "rl_lightning.data.resume.random_numbers",
    "rl_lightning.data.stored": "rl_lightning.data.resume.arguments",
    "rl_lightning.data.module": "rl_lightning.data.base_module",
    "rl_lightning.data.rollout": "rl_lightning.data.rollout_module",
    "rl_lightning.data.offline": "rl_lightning.data.offline_module",
    "rl_lightning.data.updates": "rl_lightning.data.update_loader",
    "rl_lightning.nn.actor_critic": "rl_lightning.policies.actor_critic",
    "rl_lightning.nn.continuous": "rl_lightning.policies.continuous",
    "rl_lightning.nn.offline": "rl_lightning.policies.offline",
    "rl_lightning.nn.q_network": "rl_lightning.policies.q_network",
}


class _Finder(MetaPathFinder, Loader):
    """Finds a moved module under its former name; what is imported is the module of today."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in FORMER else None

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        present = FORMER[former]
        warnings.warn(
            f"{former} has moved: import {present}; the former name goes with the next version",
            FormerWarning,
            stacklevel=2,
        )
        sys.modules[former] = importlib.import_module(present)


def former_attribute(module: str, name: str, moved: Sequence[str], present: str) -> Any:
    """A name that a module has given away: for its `__getattr__`.

    Args:
        module: That module.
        name: Of the attribute.
        moved: All that have moved.
        present: The module that has them now.

    Raises:
        AttributeError: If it never had one of that name.
    """
    if name not in moved:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        f"{module}.{name} has moved: import it from {present}; the former name goes with the next "
        "version",
        FormerWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(present), name)


def install() -> None:
    """Let former names lead to the modules of today."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # before an older installation could be found
