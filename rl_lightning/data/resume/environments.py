"""Copying the state of vector environments into a checkpoint and back.

Whether an environment's state is all in its attributes (TextMaze, classic control, toy_text,
MiniGrid …) or in a simulator's memory, nobody says. So copying is tried out on a spare one first:
the copy must go on as the original does.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from torch import Tensor

from rl_lightning.core.spaces import allowed_action
from rl_lightning.envs.state import StateError, Vocabulary, load_state, save_state


class Snapshots:
    """Takes and restores the state of a vector env's environments.

    Args:
        spare: An environment (or native vector env) like the ones to copy; it is stepped a little
            to find out whether a copy goes on as the original does.

    Attributes:
        reason: Why these environments cannot be copied; None if they can.
    """

    def __init__(self, spare: gym.Env | VectorEnv) -> None:
        self._spare = spare
        self.reason = self._try(spare)

    @property
    def supported(self) -> bool:
        """Whether these environments can be copied."""
        return self.reason is None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the states of these environments may name."""
        return Vocabulary(self._spare)

    def take(self, env: VectorEnv) -> list[Tensor]:
        """The state of every environment, as bytes: uint8 each."""
        if isinstance(env, AsyncVectorEnv):
            states = env.get_attr("state_bytes")
        else:
            states = [save_state(one, self.vocabulary.constants) for one in _single(env)]
        return [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]

    def put(self, env: VectorEnv, states: Sequence[Tensor]) -> None:
        """Restore what `take` returned.

        Raises:
            StateError: If that is not possible, with the reason. Some of the environments may be
                restored then: reset all of them.
        """
        loaded = [state.numpy().tobytes() for state in states]
        if any(data[:1] == b"\x80" for data in loaded):
            raise StateError(
                "it was saved by an earlier version, in a form that could run a program when it is "
                "loaded"
            )
        if isinstance(env, AsyncVectorEnv):
            env.set_attr("state_bytes", loaded)
            for reason in env.get_attr("state_error"):
                if reason is not None:
                    raise StateError(reason)
            return
        for one, data in zip(_single(env), loaded, strict=True):
            one.reset(seed=0)  # so that all is there that is made by a reset only
            load_state(one, data, self.vocabulary)

    def _try(self, env: gym.Env | VectorEnv) -> str | None:
        """Why a copy does not go on as the original, or None."""
        try:
            known = self.vocabulary
            env.action_space.seed(0)
            *_, info = env.step(allowed_action(env.action_space, env.reset(seed=0)[1]))
            state = save_state(env, known.constants)
            first = _play(env, info)
            load_state(env, state, known)
            same = _play(env, info) == first
        except StateError as error:
            return str(error)
        except (Exception, SystemExit) as error:  # a stranger's environment may do anything
            return f"copying it failed: {error!r}"
        return None if same else "a copy of it goes on in another way"


def _single(env: VectorEnv) -> Sequence[Any]:
    return env.envs if isinstance(env, SyncVectorEnv) else [env]


def _play(env: gym.Env | VectorEnv, info: Any) -> list[str]:
    trace = []
    env.action_space.seed(0)
    for _ in range(4):
        obs, reward, terminated, truncated, info = env.step(allowed_action(env.action_space, info))
        trace.append(repr([_plain(obs), _plain(reward), _plain(terminated)]))
        if not isinstance(env, VectorEnv) and (terminated or truncated):
            _, info = env.reset()
    return trace


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return [_plain(v) for v in x]
    return x if isinstance(x, str) else np.asarray(x).tolist()
