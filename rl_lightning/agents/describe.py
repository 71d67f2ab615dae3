"""What an object was built with, as plain data that a checkpoint can hold and build it from."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rl_lightning.types import EnvSpec


def describe_call(cls: type, instance: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Hyper-parameters of a constructor's call, for Lightning's `load_from_checkpoint`."""
    bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs).arguments
    described = {name: _describe(name, value) for name, value in list(bound.items())[1:]}
    described["_class_path"] = _path(cls)
    described["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    return described


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _describe(name: str, value: Any) -> Any:
    """An argument as plain data that jsonargparse can build again and `weights_only` can load."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str | EnvSpec):
        return value
    if isinstance(value, Mapping):
        return {str(k): _describe(name, v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_describe(name, v) for v in value]
    if isinstance(value, partial):
        made, args = value.func, value.args
        if made.__module__.startswith("jsonargparse"):  # what a loaded agent was built with
            made, args = args[-1], ()
        if isinstance(made, type) and not args:
            init = {k: _describe(name, v) for k, v in value.keywords.items()}
            return {"class_path": _path(made), "init_args": init}
    if isinstance(value, Callable) and "<" not in getattr(value, "__qualname__", "<"):  # type: ignore
        return _path(value)
    # A list, because jsonargparse reports it whole; a text it would try to import.
    return [
        f"<{name} was a {type(value).__name__} that a checkpoint cannot describe: "
        f"give it again, load_from_checkpoint(path, {name}=...)>"
    ]
