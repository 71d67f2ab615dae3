"""The state of an environment as plain data, and back, without running what a file names.

Pickle would do it in a line, and would let whoever wrote a file run their program on the reader's
machine. Here a state is a list of nodes in JSON: numbers and texts, containers, NumPy's arrays and
generators, and objects as the names and values of their attributes. Putting it back calls no
constructor and no method, imports nothing, and gives the *living* environment's objects the
attributes that were saved. An object that is not there yet is made empty, and only if its class,
by exact module and name, is one that these environments consist of, or stands beside those in
their modules.

What is no such data (a simulator's memory, an open window, a running generator) cannot be saved.
"""

from rl_lightning.envs.state.plain import StateError
from rl_lightning.envs.state.reader import load_state
from rl_lightning.envs.state.remote import StatefulEnv
from rl_lightning.envs.state.vocabulary import Vocabulary
from rl_lightning.envs.state.writer import save_state

__all__ = ["StateError", "StatefulEnv", "Vocabulary", "load_state", "save_state"]
