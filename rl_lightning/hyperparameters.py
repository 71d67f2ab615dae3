"""What an object was built with: as plain data in a checkpoint, and from there an object again."""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import lightning as L
import numpy as np
import torch
from torch import nn

from rl_lightning.errors import ConfigurationError
from rl_lightning.exploration import ActionNoise, ValueExploration
from rl_lightning.trust import check_import, find_named
from rl_lightning.types import EnvSpec

# What a checkpoint may name: parts of agents, and wrappers of environments.
_ROLES = (
    nn.Module,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    L.LightningDataModule,
    gym.Wrapper,
    ActionNoise,
    ValueExploration,
)
# Their functions do anything; the parts of agents that a checkpoint names are classes.
_NO_FUNCTIONS = {
    *sys.stdlib_module_names,
    *("torch", "lightning", "gymnasium", "numpy", "tensordict", "jsonargparse", "omegaconf"),
    *("transformers", "peft", "tokenizers", "safetensors", "huggingface_hub", "yaml", "h5py"),
}
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_CODE_SWITCH = "trust_remote_code"
_PLACES = ("model", "dataset", "record", "storage_dir")
_UNKNOWN = "<"  # begins what stands for an argument that could not be described


def describe_call(cls: type, instance: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Hyper-parameters of a constructor's call, that `load_from_checkpoint` builds it from."""
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
        return {str(k): _describe(name, v) for k, v in value.items() if k != _CODE_SWITCH}
    if isinstance(value, Sequence):
        return [_describe(name, v) for v in value]
    if isinstance(value, partial):
        made, args = value.func, value.args
        if made.__module__.startswith("jsonargparse"):  # what a loaded agent was built with
            made, args = args[-1], ()
        if isinstance(made, type) and not args:
            init = _describe(name, value.keywords)
            return {"class_path": _path(made), "init_args": init}
    if isinstance(value, Callable) and "<" not in getattr(value, "__qualname__", "<"):  # type: ignore
        return _path(value)
    # A list, because jsonargparse reports it whole; a text it would try to import.
    return [
        f"{_UNKNOWN}{name} was a {type(value).__name__} that a checkpoint cannot describe: "
        f"give it again, load_from_checkpoint(path, {name}=...)>"
    ]


def without_code_switch(value: Any) -> Any:
    """Hyper-parameters without `trust_remote_code`, at any depth: only the user may say that."""
    if isinstance(value, Mapping):
        return {k: without_code_switch(v) for k, v in value.items() if k != _CODE_SWITCH}
    return [without_code_switch(v) for v in value] if isinstance(value, list) else value


def stored_class(hyper: Mapping[str, Any], role: type) -> Any:
    """The class that hyper-parameters of a checkpoint were those of.

    Call it inside `trust.loading_stranger`.

    Args:
        hyper: From the checkpoint.
        role: What it must be a subclass of.

    Raises:
        ConfigurationError: If it is something else, or would have to be imported.
    """
    path = hyper.get("_class_path")
    if path is None:
        return role
    if not isinstance(path, str) or not _DOTTED.fullmatch(path):
        raise ConfigurationError(f"the checkpoint names {path!r} as the class of its agent or data")
    found = find_named(path, f"the class {path}")
    if not (isinstance(found, type) and issubclass(found, role)):
        raise ConfigurationError(f"the checkpoint holds a {path}, which is no {role.__name__}")
    return found


def check_hyperparameters(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint, if nothing they name is more than its role allows.

    Call it inside `trust.loading_stranger`, before anything is built of them.

    Returns:
        Them, without what must not come from a file, and without the class's name.

    Raises:
        ConfigurationError: If they name a class that is no part of an agent or environment, a
            function of a general package, or what would have to be imported first.
    """
    plain = without_code_switch(dict(hyper))
    plain = {k: v for k, v in plain.items() if k not in ("_class_path", "_instantiator")}
    for text in _texts(plain):
        if _DOTTED.fullmatch(text) and _leads_somewhere(text):
            _check_role(text)
    module, colon, _ = str(plain.get("env", "")).rpartition(":")
    if colon:
        check_import(module, f"the environment {plain['env']}")
    return plain


def check_described(hyper: Mapping[str, Any]) -> None:
    """Refuse arguments that the checkpoint could not describe.

    Raises:
        ConfigurationError: That names the first of them.
    """
    for text in _texts(hyper):
        if text.startswith(_UNKNOWN) and text.endswith(">"):
            raise ConfigurationError(text.strip("<>"))


def _texts(value: Any) -> Iterator[str]:
    """All texts in hyper-parameters, but names of files and of language models."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(key)
            if key not in _PLACES:
                yield from _texts(entry)
    elif isinstance(value, Sequence):
        for entry in value:
            yield from _texts(entry)


def _leads_somewhere(path: str) -> bool:
    """Whether a text that looks like a dotted path begins with a package that there is."""
    root = path.partition(".")[0]
    try:
        return root in sys.modules or importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return False


def _check_role(path: str) -> None:
    found = find_named(path, path)
    if isinstance(found, type) and issubclass(found, _ROLES):
        return
    home = (getattr(found, "__module__", None) or path).partition(".")[0]
    own = home not in _NO_FUNCTIONS and path.partition(".")[0] not in _NO_FUNCTIONS
    if inspect.isfunction(found) and own:
        return
    raise ConfigurationError(
        f"the checkpoint names {path}, which is no part of an agent or environment; nothing was "
        "loaded"
    )
