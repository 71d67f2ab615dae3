"""Labelled data that small networks are trained on: packaged, or the user's own by import path."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened, whole_seed
from rl_lightning.core.trust import find_named
from rl_lightning.envs.optimise.sentences import MAZES, maze_rows

DATASETS = ("digits", "digits-images", "wine", "breast-cancer", *MAZES)
SHARES = (0.6, 0.2, 0.2)
_PARTS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")


class Splits(NamedTuple):
    """Data in three parts; nothing may change them, since they are shared.

    Attributes:
        x_train: Inputs, float32 `[N, ...]`.
        y_train: Classes from 0, int64 `[N]`.
        x_val: Inputs to judge a training by while it runs.
        y_val: Their classes.
        x_test: Inputs to judge what came out by; None if whoever made the data left them out.
        y_test: Their classes, or None.
    """

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor | None = None
    y_test: Tensor | None = None

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes: one more than the largest label of any part."""
        labels = (self.y_train, self.y_val, self.y_test)
        return 1 + max(int(y.max()) for y in labels if y is not None)

    def digest(self) -> str:
        """What tells these numbers from all others: SHA-256 of shapes and values."""
        found = hashlib.sha256()
        for part in self:
            if part is not None:
                found.update(f"{tuple(part.shape)} {part.dtype} ".encode())
                found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()


@lru_cache(maxsize=128)
def load_data(data: str, split: int = 0) -> Splits:
    """Data by name, divided by the seed `split`.

    Packaged data come with scikit-learn and need no network: `digits` (1,797 images as vectors of
    64 pixels in [0, 1], 10 classes), `digits-images` (the same as `[1, 8, 8]`), `wine` (178 rows of
    13 features, 3 classes) and `breast-cancer` (569 rows of 30 features, 2 classes), features
    standardised by mean and deviation of the training part. 60 % of the rows are for training, 20 %
    for validation, 20 % for testing, drawn by a permutation that depends on `split` alone.

    `maze-walls` and `maze-exit` are sentences of TextMaze for `model: minilm`, see `maze_rows`.

    Anything with a dot is an import path of the user's own: `package.module.name`, which is a tuple
    `(x_train, y_train, x_val, y_val)` or `(…, x_test, y_test)` of arrays or tensors, taken as it is
    whatever the split, or a function `split → such a tuple`.

    Args:
        data: One of `DATASETS`, or an import path.
        split: Seed of the division.

    Raises:
        ConfigurationError: If there are no such data, or they are not what they should be.
    """
    split = whole_seed("split", split)
    if not isinstance(data, str) or (data not in DATASETS and "." not in data):
        raise ConfigurationError(
            f"data={data!r}: use one of {', '.join(DATASETS)}, or the import path of your own, "
            "package.module.name"
        )
    with torch.inference_mode(False):  # they are kept, and trained on by others later
        if data in MAZES:
            return as_splits(maze_rows(data, split), data)
        if data in DATASETS:
            return divide(*_packaged(data), split, standardise=not data.startswith("digits"))
        found = find_named(data, f"the data {data}", f"data={data!r} asks")
        made = found(split) if callable(found) else found
        return as_splits(made, data)


def divide(x: np.ndarray, y: np.ndarray, split: int, standardise: bool = False) -> Splits:
    """Rows in three parts, by the shares `SHARES`.

    Args:
        x: Inputs `[N, ...]`.
        y: Classes `[N]`.
        split: Seed of the permutation.
        standardise: Subtract the training part's mean of each feature, and divide by its standard
            deviation.
    """
    order = np.random.default_rng([split, len(x)]).permutation(len(x))
    first = round(SHARES[0] * len(x))
    second = first + round(SHARES[1] * len(x))
    parts = [order[:first], order[first:second], order[second:]]
    if standardise:
        mean, deviation = x[parts[0]].mean(0), x[parts[0]].std(0)
        x = (x - mean) / np.maximum(deviation, 1e-8)
    tensors: list[Tensor] = []
    for rows in parts:
        tensors += [torch.from_numpy(x[rows].astype(np.float32)), torch.from_numpy(y[rows])]
    return Splits(*tensors)


def as_splits(made: Any, name: str) -> Splits:
    """The user's arrays or tensors as float32 inputs and int64 classes.

    Args:
        made: Four or six of them, see `Splits`.
        name: What messages call them.

    Raises:
        ConfigurationError: If they are not that.
    """
    if not isinstance(made, Sequence) or len(made) not in (4, 6):
        raise ConfigurationError(
            f"data={name!r} must be, or return, (x_train, y_train, x_val, y_val) or those and "
            f"(x_test, y_test), not {shortened(repr(made), 80)}"
        )
    parts: list[Tensor] = []
    for field, value in zip(_PARTS, made, strict=False):
        dtype = torch.float32 if field.startswith("x") else torch.int64
        try:
            parts.append(torch.as_tensor(value).detach().to("cpu", dtype, copy=True))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"data={name!r}: {field} is no array: {error}") from error
    for x, y, field in zip(parts[::2], parts[1::2], _PARTS[::2], strict=False):
        good = x.dim() >= 2 and x.shape[1:] == parts[0].shape[1:] and y.shape == x.shape[:1]
        if not good or not len(x) or int(y.min()) < 0 or not bool(x.isfinite().all()):
            raise ConfigurationError(
                f"data={name!r}: {field} and its labels must be finite inputs [N, ...], all of one "
                f"shape, and classes [N] from 0, not {tuple(x.shape)} and {tuple(y.shape)}"
            )
    return Splits(*parts)


@lru_cache(maxsize=8)
def _packaged(data: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigurationError(
            f"data={data!r} comes with scikit-learn: pip install 'rl-lightning[compress]'"
        ) from error
    load: Callable[..., Any] = {
        "digits": datasets.load_digits,
        "digits-images": datasets.load_digits,
        "wine": datasets.load_wine,
        "breast-cancer": datasets.load_breast_cancer,
    }[data]
    x, y = load(return_X_y=True)
    if data.startswith("digits"):
        x = x / 16
    return (x.reshape(-1, 1, 8, 8) if data == "digits-images" else x), y.astype(np.int64)
