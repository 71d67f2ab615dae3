"""How Minari 0.5 writes down spaces and images."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import space_to_data
from rl_lightning.data.recordings.hdf5 import DEEPEST, memory

_JPEG = b"\xff\xd8\xff"
_BOUNDS = ("low", "high")


def describe(space: gym.Space, where: str) -> dict[str, Any]:
    """Minari's JSON of a space, as plain data; the inverse of `space_of`.

    Args:
        space: The space.
        where: What it is of, for messages.

    Raises:
        ConfigurationError: For a space that has no such description.
    """
    return _json(space_to_data(space), where)


def _json(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = data["kind"]
    match kind:
        case "Box":
            low, high = data["low"], data["high"]
            bounds = {"low": low.tolist(), "high": high.tolist()}
            return {"type": kind, "dtype": data["dtype"], "shape": list(low.shape), **bounds}
        case "Discrete":
            return {key: data[key] for key in ("dtype", "start", "n")} | {"type": kind}
        case "MultiDiscrete":
            nvec, start = data["nvec"].tolist(), data["start"].tolist()
            return {"type": kind, "dtype": data["dtype"], "nvec": nvec, "start": start}
        case "MultiBinary":
            shape = data["shape"]
            return {"type": kind, "n": shape[0] if len(shape) == 1 else shape}
        case "Text":
            # Gymnasium's own order of characters changes from one process to the next.
            charset = "".join(sorted(data["charset"]))
            lengths = {key: data[key] for key in ("max_length", "min_length")}
            return {"type": kind, **lengths, "charset": charset}
        case "Dict":
            entries = data["spaces"].items()
            return {"type": kind, "subspaces": {k: _json(v, f"{where}/{k}") for k, v in entries}}
        case "Tuple":
            entries = enumerate(data["spaces"])
            return {"type": kind, "subspaces": [_json(v, f"{where}/{i}") for i, v in entries]}
        case _:
            raise ConfigurationError(
                f"such episodes cannot be recorded: {where} is a space of type "
                f"{data.get('name', kind)}, which Minari's layout does not know; leave it out with "
                "a wrapper (gymnasium.wrappers.FilterObservation)"
            )


def space_of(data: Mapping[str, Any], depth: int = 0) -> gym.Space:
    """The space that Minari's JSON describes.

    Args:
        data: The JSON, read. It is a stranger's: anything may be raised that gymnasium and numpy
            say of a wrong one.
        depth: Spaces around it.

    Raises:
        KeyError: If the description is incomplete.
        ValueError: If there is no such kind of space.
    """
    s = gym.spaces
    if depth > DEEPEST:
        raise ValueError(f"spaces lie more than {DEEPEST} deep within each other")
    match data["type"]:
        case "Box":
            dtype = _dtype(data["dtype"], "biuf")
            low, high = (np.array(data[key], dtype).reshape(data["shape"]) for key in _BOUNDS)
            return s.Box(low, high, dtype=dtype.type)
        case "Discrete":
            dtype = _dtype(data.get("dtype", "int64"), "iu")
            return s.Discrete(data["n"], start=data["start"], dtype=dtype)
        case "MultiDiscrete":
            dtype = _dtype(data.get("dtype", "int64"), "iu")
            nvec, start = np.array(data["nvec"], dtype), np.array(data["start"], dtype)
            return s.MultiDiscrete(nvec, dtype=dtype.type, start=start)
        case "MultiBinary":
            return s.MultiBinary(data["n"])
        case "Text":
            lengths = {key: data[key] for key in ("max_length", "min_length")}
            return s.Text(**lengths, charset=data["charset"])
        case "Dict":
            entries = data["subspaces"].items()
            return s.Dict({key: space_of(entry, depth + 1) for key, entry in entries})
        case "Tuple":
            return s.Tuple([space_of(entry, depth + 1) for entry in data["subspaces"]])
        case kind:
            raise ValueError(f"unknown kind of space: {kind!r}")


def _dtype(name: Any, kinds: str) -> np.dtype:
    """The plain type of numbers that a stranger names, and no other."""
    dtype = np.dtype(name) if isinstance(name, str) else np.dtype(object)
    if dtype.kind not in kinds or dtype.itemsize > 8:
        raise ValueError(f"{shortened(name, 40)!r} is no type of numbers for such a space")
    return dtype


def same_rows(data: Mapping[str, Any]) -> dict[str, Any]:
    """A description without the dtype of counts: files of earlier versions always say int64."""
    same = _inside(data, same_rows)
    if same["type"] in ("Discrete", "MultiDiscrete"):
        del same["dtype"]
    return same


def form_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """A description without bounds and lengths, which leave rows what they are."""
    free = {*_BOUNDS, "min_length", "max_length", "charset"}
    return _inside({key: value for key, value in data.items() if key not in free}, form_of)


def _inside(data: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A description whose subspaces are changed."""
    match data.get("subspaces"):
        case dict(entries):
            return {**data, "subspaces": {key: change(entry) for key, entry in entries.items()}}
        case list(entries):
            return {**data, "subspaces": [change(entry) for entry in entries]}
    return dict(data)


def pixels(rows: np.ndarray, shape: tuple[int, ...] | None, where: str) -> np.ndarray:
    """Images `[N, H, W, …]` from the bytes of JPEG files that Minari keeps in their place.

    Args:
        rows: Bytes, uint8 `[N, bytes]` or N arrays of differing lengths; anything else comes back
            as it is.
        shape: Of one row, where it is known: what has it already is not decoded.
        where: What they are, for messages.

    Raises:
        ConfigurationError: If Pillow is not installed, if a row is no JPEG, or one of another size
            than the space's or the first one's.
    """
    if rows.dtype != object:
        encoded = rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1:] != shape
        if not encoded or rows[0, :3].tobytes() != _JPEG:
            return rows
    elif rows.ndim != 1:
        raise ConfigurationError(f"{where} are neither numbers nor images")
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigurationError("Minari's images need Pillow: pip install pillow") from error
    images: np.ndarray | None = None
    for i, row in enumerate(rows):
        try:
            # Only this format: others have decoders that start programs.
            with Image.open(io.BytesIO(row.tobytes()), formats=("JPEG",)) as image:
                width, height = image.size
                size = (height, width, *((len(image.getbands()),) * (image.mode != "L")))
                if images is None:
                    _check_size(size, shape, len(rows), where)
                    images = np.empty((len(rows), *size), np.uint8)
                elif size != images.shape[1:]:
                    raise ValueError(f"it has the shape {size}, the first one {images.shape[1:]}")
                images[i] = np.asarray(image)
        except ConfigurationError:
            raise
        except Exception as error:  # broken images fail in many ways
            raise ConfigurationError(
                f"{where} of step {i}: the image cannot be read: {shortened(error)}"
            ) from error
    assert images is not None
    return images


def _check_size(
    size: tuple[int, ...], shape: tuple[int, ...] | None, count: int, where: str
) -> None:
    """Before anything is decoded: a few bytes can claim pixels without end."""
    if shape is not None and size != shape:
        raise ConfigurationError(
            f"{where} are images of the shape {size}, but the space's is {shape}"
        )
    if count * math.prod(size) > memory():
        raise ConfigurationError(f"{where} are images of the shape {size}: too large for memory")
