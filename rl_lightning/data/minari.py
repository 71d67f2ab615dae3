"""How Minari 0.5 writes down spaces and images."""

import io
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lightning.errors import ConfigurationError
from rl_lightning.types import space_to_data

_JPEG = b"\xff\xd8\xff"


def describe(space: gym.Space) -> dict[str, Any]:
    """Minari's JSON of a space, as plain data; the inverse of `space_of`.

    Raises:
        ConfigurationError: For a space that has no such description.
    """
    try:
        return _json(space_to_data(space))
    except TypeError as error:
        raise ConfigurationError(f"episodes cannot be recorded: {error}") from error


def _json(data: Mapping[str, Any]) -> dict[str, Any]:
    kind = data["kind"]
    match kind:
        case "Box":
            low, high = data["low"], data["high"]
            bounds = {"low": low.tolist(), "high": high.tolist()}
            return {"type": kind, "dtype": data["dtype"], "shape": list(low.shape), **bounds}
        case "Discrete":
            return {"type": kind, "dtype": "int64", "start": data["start"], "n": data["n"]}
        case "MultiDiscrete":
            nvec, start = data["nvec"].tolist(), data["start"].tolist()
            return {"type": kind, "dtype": "int64", "nvec": nvec, "start": start}
        case "MultiBinary":
            shape = data["shape"]
            return {"type": kind, "n": shape[0] if len(shape) == 1 else shape}
        case "Text":
            # Gymnasium's own order of characters changes from one process to the next.
            charset = "".join(sorted(data["charset"]))
            lengths = {key: data[key] for key in ("max_length", "min_length")}
            return {"type": kind, **lengths, "charset": charset}
        case "Dict":
            entries = {key: _json(entry) for key, entry in data["spaces"].items()}
            return {"type": kind, "subspaces": entries}
        case _:
            return {"type": kind, "subspaces": [_json(entry) for entry in data["spaces"]]}


def space_of(data: Mapping[str, Any]) -> gym.Space:
    """The space that Minari's JSON describes.

    Raises:
        KeyError: If the description is incomplete.
        ValueError: If there is no such kind of space.
    """
    s = gym.spaces
    match data["type"]:
        case "Box":
            low, high = (
                np.array(data[key], data["dtype"]).reshape(data["shape"]) for key in ("low", "high")
            )
            return s.Box(low, high, dtype=low.dtype.type)
        case "Discrete":
            return s.Discrete(data["n"], start=data["start"])
        case "MultiDiscrete":
            return s.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
        case "MultiBinary":
            return s.MultiBinary(data["n"])
        case "Text":
            lengths = {key: data[key] for key in ("max_length", "min_length")}
            return s.Text(**lengths, charset=data["charset"])
        case "Dict":
            return s.Dict({key: space_of(entry) for key, entry in data["subspaces"].items()})
        case "Tuple":
            return s.Tuple([space_of(entry) for entry in data["subspaces"]])
        case kind:
            raise ValueError(f"unknown kind of space: {kind!r}")


def form_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """A description without bounds and lengths, which leave rows what they are."""
    free = {"low", "high", "min_length", "max_length", "charset"}
    form = {key: value for key, value in data.items() if key not in free}
    match form.get("subspaces"):
        case dict(entries):
            form["subspaces"] = {key: form_of(entry) for key, entry in entries.items()}
        case list(entries):
            form["subspaces"] = [form_of(entry) for entry in entries]
    return form


def pixels(rows: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Images `[N, H, W, …]` from the bytes of JPEG files that Minari keeps in their place.

    Args:
        rows: Bytes, uint8 `[N, bytes]` or N arrays of differing lengths; anything else comes back
            as it is.
        shape: Of one row, where it is known: what has it already is not decoded.

    Raises:
        ConfigurationError: If Pillow is not installed.
    """
    if rows.dtype != object:
        encoded = rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1:] != shape
        if not encoded or rows[0, :3].tobytes() != _JPEG:
            return rows
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigurationError("Minari's images need Pillow: pip install pillow") from error
    return np.stack([np.asarray(Image.open(io.BytesIO(row.tobytes()))) for row in rows])
