"""Observations of ordinary environments as canonical sentences.

A describer is one function `describe(obs, env) -> str`: fixed order, quantised numbers, no chance,
so that texts repeat and a language model need not read any of them twice.
"""

from rl_lightning.envs.describe.actions import action_names, register_action_names
from rl_lightning.envs.describe.wrapper import Describe, Describer, register_describer

__all__ = [
    "Describe",
    "Describer",
    "action_names",
    "register_action_names",
    "register_describer",
]
