"""Observations of a space, for comparing two ways of computing what a policy says of them."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.spaces import is_text
from rl_lightning.encoders import DictEncoder, GuidedEncoder, MLPEncoder
from rl_lightning.export.inputs import Part

_SENTENCES = (
    "you are in a small maze and see the red door to north south east west there is no wall "
    "near far left right go open take key box goal exit room 2 3 , . ! [SEP] <s> Été"
)
WORDS = tuple(_SENTENCES.split())
# Further than this from 0, numbers are no measure of anything; spaces say it for "no bound".
MODERATE = 1e4


def sample_part(part: Part, encoder: Any, count: int, rng: np.random.Generator) -> list[Any]:
    """Values of a part of an observation: of its space, and where a policy knows what is usual
    (running statistics) half of them around that, up to far beyond where it clips.

    Args:
        part: The part.
        encoder: What reads the whole observation.
        count: How many.
        rng: Where chance comes from.
    """
    space: Any = part.space
    if is_text(space):
        return [_text(space, rng) for _ in range(count)]
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        values = _numbers(space, count, rng)
        norm = _norm(encoder, part)
        if norm is not None:
            mean, scale = (one.cpu().double().numpy() for one in norm.running.scale())
            wide = rng.choice([1.0, 3.0, 30.0], (count, 1))
            usual = mean + rng.normal(size=(count, mean.size)) * wide / scale
            values[::2] = usual.reshape(values.shape)[::2]
        return list(values.astype(space.dtype))
    if isinstance(space, gym.spaces.Box):
        # Of even noise all over, one image is to a network like any other.
        bright = rng.random((count, *[1] * (len(space.shape) - 1), *space.shape[-1:]))
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        values = low + rng.random((count, *space.shape)) * bright * (high - low)
        return list(np.rint(values).astype(space.dtype))
    space = copy.deepcopy(space)  # its random numbers are the owner's
    space.seed(int(rng.integers(2**31)))
    return [space.sample() for _ in range(count)]


def sample_masks(widths: list[int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Masks, bool `[count, sum(widths)]`, half of them of everything, each with an allowed action
    in every part."""
    parts = []
    for width in widths:
        allowed = rng.random((count, width)) < 0.6
        allowed[np.arange(count), rng.integers(width, size=count)] = True
        allowed[::2] = True
        parts.append(allowed)
    return np.concatenate(parts, axis=1)


def _numbers(space: gym.spaces.Box, count: int, rng: np.random.Generator) -> np.ndarray:
    shape = (count, *space.shape)
    free = rng.normal(size=shape) * rng.choice([0.3, 1.0, 10.0], (count, *[1] * len(space.shape)))
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    finite = (low > -MODERATE) & (high < MODERATE)
    between = np.where(finite, low, 0.0) + rng.random(shape) * np.where(finite, high - low, 0.0)
    return np.where(finite, between, np.clip(free, low, high))


def _text(space: Any, rng: np.random.Generator) -> str:
    if rng.random() < 0.2 and isinstance(space, gym.spaces.Text):
        alphabet = list(space.character_list)
        return "".join(rng.choice(alphabet, rng.integers(space.min_length, 41)))[: space.max_length]
    text = " ".join(rng.choice(WORDS, rng.integers(1, 31)))
    if not isinstance(space, gym.spaces.Text):
        return text
    text = "".join(c for c in text if c in space.character_set)[: space.max_length]
    return text + space.character_list[0] * (space.min_length - len(text))


def _norm(encoder: Any, part: Part) -> Any:
    """The statistics of the encoder that reads a part, if it keeps any."""
    for key in (*part.path, None):
        if isinstance(encoder, GuidedEncoder):
            encoder = encoder.own
        if isinstance(encoder, DictEncoder) and key is not None:
            encoder = encoder.parts[encoder.names.index(str(key))]
    return encoder.norm if isinstance(encoder, MLPEncoder) else None
