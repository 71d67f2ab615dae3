"""Environments that are played by commands: wrappers that show an agent its commands and its past,
and TextWorld's games.

What acts on them reads observations of texts, `{"observation", "goal", "actions"}`, and chooses
among the lines of "actions" by their index.
"""

from rl_lightning.envs.text_games.admissible import AdmissibleActions
from rl_lightning.envs.text_games.history import TextHistory

__all__ = ["AdmissibleActions", "TextHistory"]
