"""Rollout storage: preallocated, time-major, on the agent's device."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import Stored


class Buffers:
    """Time-major tensors `[T, B, ...]`, allocated when their first step is written.

    A plain dict of tensors: writing a step into a TensorDict costs ten times as much.

    Args:
        steps: T.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._data: dict[str, Any] = {}

    def write(self, key: str, t: int, value: Stored) -> None:
        """Copy one step `[B, ...]` into row t; nested mappings go into nested buffers.

        Raises:
            ConfigurationError: If an entry changes its shape or type within a rollout.
        """
        if isinstance(value, Tensor):
            buffer = self._data.get(key)
            if buffer is None or buffer.shape[1:] != value.shape or buffer.dtype != value.dtype:
                if buffer is not None and t:  # what is there of this rollout would be lost
                    raise ConfigurationError(
                        f"{key} changes within a rollout from {list(buffer.shape[1:])} of "
                        f"{buffer.dtype} to {list(value.shape)} of {value.dtype}; what an "
                        "encoder's preprocess and a policy's act return must keep shape and type"
                    )
                buffer = torch.empty(
                    self.steps, *value.shape, dtype=value.dtype, device=value.device
                )
                self._data[key] = buffer
            buffer[t] = value
        else:
            nested = self._data.setdefault(key, Buffers(self.steps))
            for name, entry in value.items():
                nested.write(name, t, entry)

    def tensors(self, shape: tuple[int, int]) -> dict[str, Any]:
        """All buffers; nested ones as TensorDicts `[T, B]`."""
        return {
            key: TensorDict(value.tensors(shape), batch_size=shape)
            if isinstance(value, Buffers)
            else value
            for key, value in self._data.items()
        }


def flatten_steps(steps: TensorDict) -> TensorDict:
    """`[T, B]` → `[T·B]`."""
    return steps.reshape(-1)


def flatten_sequences(steps: TensorDict, length: int) -> TensorDict:
    """Cut a rollout `[T, B]` into sequences `[L, (T/L)·B]`, each with its own initial state."""
    parts = steps.split(length, dim=0)
    return torch.cat(list(parts), dim=1)  # type: ignore[return-value]
