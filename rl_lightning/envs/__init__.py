"""Environments: making vector envs, wrappers, descriptions in words, and our own."""

import gymnasium as gym

from rl_lightning.envs.conversations import as_text_env
from rl_lightning.envs.describe import Describe, register_action_names, register_describer
from rl_lightning.envs.make import make_env, make_vector_env
from rl_lightning.envs.reword import Reword
from rl_lightning.envs.text_games import AdmissibleActions, TextHistory
from rl_lightning.envs.wrappers import (
    BinaryImage,
    ClipObservation,
    SelectActions,
    SelectObservation,
)

if "TextMaze-v0" not in gym.registry:
    gym.register("TextMaze-v0", entry_point="rl_lightning.envs.text_maze:TextMazeEnv")
if "BitFlip-v0" not in gym.registry:
    gym.register("BitFlip-v0", entry_point="rl_lightning.envs.bit_flip:BitFlipEnv")
if "TextWorld-v0" not in gym.registry:
    gym.register(
        "TextWorld-v0", entry_point="rl_lightning.envs.text_games.text_world:make_text_world"
    )
for name, entry_point in (
    ("TrainingControl-v0", "training_control:TrainingControlEnv"),
    ("ParameterTuning-v0", "parameter_tuning:ParameterTuningEnv"),
    ("HyperparameterSearch-v0", "hyperparameter_search:HyperparameterSearchEnv"),
    ("PruneNet-v0", "prune_net:PruneNetEnv"),
    ("QuantizeNet-v0", "quantize_net:QuantizeNetEnv"),
):
    if name not in gym.registry:
        gym.register(name, entry_point=f"rl_lightning.envs.optimise.{entry_point}")

__all__ = [
    "AdmissibleActions",
    "BinaryImage",
    "ClipObservation",
    "Describe",
    "Reword",
    "SelectActions",
    "SelectObservation",
    "TextHistory",
    "as_text_env",
    "make_env",
    "make_vector_env",
    "register_action_names",
    "register_describer",
]
