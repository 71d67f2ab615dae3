"""What a state may name."""

import marshal
import sys
from typing import Any

import gymnasium as gym

from rl_lightning.core.spaces import allowed_action
from rl_lightning.envs.state.plain import full_name
from rl_lightning.envs.state.writer import Writer


class Vocabulary:
    """Exact names of the classes and functions that an environment consists of.

    Beside the classes it met, it holds those defined in the same modules: a level may hold a key
    where another holds a ball.

    Args:
        env: A living environment to learn from; it is reset and stepped a little, for what is made
            then.

    Attributes:
        classes: By module and qualified name.
        functions: Likewise; classes that are held as values, too.
        constants: Large plain values that the environment has from its construction on, by digest.

    Raises:
        StateError: If the state of such an environment cannot be saved.
    """

    def __init__(self, env: Any) -> None:
        self.classes: dict[tuple[str, str], type] = {}
        self.functions: dict[tuple[str, str], Any] = {}
        self.constants = {
            name: data for name, (x, data) in self._learn(env).constants.items() if _equals(data, x)
        }
        _, info = env.reset(seed=0)
        self._learn(env)
        env.action_space.seed(0)
        for _ in range(3):
            *_, terminated, truncated, info = env.step(allowed_action(env.action_space, info))
            if not isinstance(env, gym.vector.VectorEnv) and (terminated or truncated):
                _, info = env.reset()
        self._learn(env)

    def constant(self, name: str) -> Any:
        """A new copy of the constant of that digest."""
        return marshal.loads(self.constants[name])  # bytes of our own making

    def _learn(self, env: Any) -> Writer:
        writer = Writer(env, still_spaces=True)  # elsewhere one may not be
        self.functions |= writer.functions
        for met in writer.classes:
            self.classes[full_name(met)] = met
            home = sys.modules.get(met.__module__)
            for beside in list(vars(home).values()) if home is not None else ():
                if isinstance(beside, type) and full_name(beside)[0] == met.__module__:
                    self.classes[full_name(beside)] = beside
        return writer


def _equals(data: bytes, x: Any) -> bool:
    """Whether bytes are the whole truth: of NumPy's numbers `marshal` keeps the memory alone."""
    try:
        return bool(marshal.loads(data) == x)
    except ValueError:  # an array is asked whether it equals
        return False
