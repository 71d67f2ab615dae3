"""Reading and writing the state of an environment that lives in another process."""

from typing import Any

import gymnasium as gym

from rl_lightning.envs.state.plain import StateError
from rl_lightning.envs.state.reader import load_state
from rl_lightning.envs.state.vocabulary import Vocabulary
from rl_lightning.envs.state.writer import save_state


class StatefulEnv(gym.Wrapper):
    """Offers the state of the environment inside as an attribute, `state_bytes`.

    Attributes of vector envs can be asked for and set from the main process.

    Attributes:
        state_error: Why `state_bytes` could not be set; None if they could. A process that raises
            would be gone.
    """

    state_error: str | None = None

    @property
    def state_bytes(self) -> bytes:
        """See `save_state`."""
        return save_state(self.env)

    @state_bytes.setter
    def state_bytes(self, data: bytes) -> None:
        self.state_error = None
        try:
            load_state(self.env, data, Vocabulary(self.env))
        except StateError as error:
            self.state_error = str(error)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        if name == "state_bytes":
            self.state_bytes = value
            return True
        return self.env.set_wrapper_attr(name, value, force=force)
