"""What an exported policy reads: one named tensor a part of the observation, or two of a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.spaces import is_text
from rl_lightning.encoders import (
    BagOfWordsEncoder,
    DictEncoder,
    Encoder,
    GuidedEncoder,
    LLMEncoder,
    TableEncoder,
)

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Part:
    """A part of an observation, and the tensors by which the graph gets it.

    Attributes:
        path: Keys of the Dicts and Tuples that lead to it.
        space: Its space.
        encoder: What reads a text; None for arrays, which come as they are.
        names: Of the tensors.
    """

    path: Path
    space: gym.Space
    encoder: LLMEncoder | BagOfWordsEncoder | None
    names: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`array`, or of a text `tokens` or `words`."""
        if self.encoder is None:
            return "array"
        return "tokens" if isinstance(self.encoder, LLMEncoder) else "words"

    @property
    def longest(self) -> int | None:
        """Most tokens or words of a text; None for arrays."""
        if isinstance(self.encoder, LLMEncoder):
            return self.encoder.max_length
        return None if self.encoder is None else self.encoder.row_width

    def tensors(self, values: Sequence[Any]) -> list[Tensor]:
        """What the graph gets of B values of it, `[B, ...]` each."""
        if isinstance(self.encoder, LLMEncoder):
            tokens = self.encoder.backbone.tokens
            ids, mask = tokens.pad(tokens(list(values)))
            return [ids, mask.long()]
        if isinstance(self.encoder, BagOfWordsEncoder):
            rows = self.encoder.preprocess(list(values)).cpu()
            return [rows[:, : max(int((rows != 0).sum(1).max()), 1)]]
        return [torch.from_numpy(np.stack([np.asarray(v, self.space.dtype) for v in values]))]


def parts_of(encoder: Encoder, space: gym.Space, path: Path = ()) -> Iterator[Part]:
    """The parts that an encoder looks at, in the order of the space.

    Raises:
        ConfigurationError: If a part is no array, nor a text for an encoder of this library.
    """
    if isinstance(encoder, GuidedEncoder):
        yield from parts_of(encoder.own, space, path)
    elif isinstance(encoder, DictEncoder):
        for name, inner in zip(encoder.names, encoder.parts, strict=True):
            key = int(name) if encoder.is_tuple else name
            below: Any = space
            assert isinstance(inner, Encoder)
            yield from parts_of(inner, below[key], (*path, key))
    elif isinstance(encoder, LLMEncoder):
        yield Part(path, space, encoder, _names(path, "input_ids", "attention_mask"))
    elif isinstance(encoder, BagOfWordsEncoder):
        yield Part(path, space, encoder, _names(path, "words"))
    else:
        yield from _arrays(encoder, space, path)


def assembled(parts: Sequence[Part], values: Sequence[Any]) -> Any:
    """An observation, nested as its space, of one value for each part."""
    if len(parts) == 1 and not parts[0].path:
        return values[0]
    out: dict[str | int, Any] = {}
    for part, value in zip(parts, values, strict=True):
        here = out
        for key in part.path[:-1]:
            here = here.setdefault(key, {})
        here[part.path[-1]] = value
    return out


def _arrays(encoder: Encoder, space: gym.Space, path: Path) -> Iterator[Part]:
    s = gym.spaces
    if isinstance(space, s.Dict):
        for key, below in space.items():
            yield from _arrays(encoder, below, (*path, key))
    elif isinstance(space, s.Tuple):
        for i, below in enumerate(space):
            yield from _arrays(encoder, below, (*path, i))
    elif isinstance(space, s.Box | s.Discrete | s.MultiDiscrete | s.MultiBinary):
        yield Part(path, space, None, _names(path))
    else:
        what = "reads texts in its own way" if is_text(space) else f"reads {shortened(space)}"
        raise ConfigurationError(
            f"{type(encoder).__name__} {what}, of which no graph of tensors can be made; texts are "
            "exported as LLMEncoder and BagOfWordsEncoder read them, and --format huggingface "
            "writes a language model by itself"
        )


def _names(path: Path, *tensors: str) -> tuple[str, ...]:
    name = ".".join(["observation", *map(str, path)])
    return tuple(f"{name}.{tensor}" for tensor in tensors) or (name,)


def as_array(encoder: TableEncoder, obs: Any) -> Tensor:
    """The rows of a table that observations have, int64 `[N]`, by arithmetic."""
    assert encoder.strides is not None
    index: Any = 0
    columns = _leaves(encoder.space, obs)
    for column, start, stride in zip(columns, encoder.starts, encoder.strides, strict=True):
        numbers = column.long().reshape(column.shape[0], -1)
        first, step = torch.as_tensor(np.asarray(start)).long(), torch.as_tensor(stride)
        index = index + ((numbers - first) * step).sum(1)
    return index


def _leaves(space: gym.Space, obs: Any) -> list[Tensor]:
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key, part in space.items() for leaf in _leaves(part, obs[key])]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for i, part in enumerate(space) for leaf in _leaves(part, obs[i])]
    return [obs]
