"""What an object was built with: as plain data in a checkpoint, and from there an object again."""

import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import lightning as L
import numpy as np
import torch
import yaml
from torch import nn

from rl_lightning.core.arguments import check_arguments
from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.names import present_path, present_paths, public_path
from rl_lightning.core.signatures import signature_of
from rl_lightning.core.trust import check_import, find_named, is_trusted
from rl_lightning.core.types import EnvSpec
from rl_lightning.exploration import ActionNoise, ValueExploration
from rl_lightning.rewards import Labeller, Reward

# What a checkpoint may name: parts of agents, wrappers of environments, rewards.
_ROLES = (
    nn.Module,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    L.LightningDataModule,
    gym.Wrapper,
    ActionNoise,
    ValueExploration,
    Reward,
    Described,
)
# Functions do anything, and one may be given what another returned. So of this library's only those
# that describe observations may be named, of other installed packages those of trusted ones.
_DESCRIBERS = "rl_lightning.envs.describe"
_PYTHON = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
_PACKAGES = {"site-packages", "dist-packages"}  # folders of installed packages, whosever
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_CODE_SWITCH = "trust_remote_code"
_PLACES = (
    *("model", "teacher", "dataset", "prompts", "val_prompts"),
    *("record", "storage_dir", "ckpt_path"),
)
_FOREIGN = ("env_kwargs", "val_env_kwargs", "wrappers")  # whose texts are handed on as they are
# Of a text: a file or a language model, an argument that is handed on, or anything else.
Kind = Literal["place", "foreign", "value"]
_UNKNOWN = " that a checkpoint cannot describe: "  # of what stands for such an argument


def describe_call(cls: type, args: Any, kwargs: Any, prefix: str = "") -> dict[str, Any]:
    """Hyper-parameters of a constructor's call, that `load_from_checkpoint` builds it from.

    Raises:
        ConfigurationError: If one is not of its annotation's kind, or holds itself.
    """
    signature = signature_of(cls)
    bound = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
    check_arguments(cls, bound, prefix)
    described = {}
    for name, value in bound.items():
        try:
            described[name] = _describe(name, value)
        except RecursionError:
            raise ConfigurationError(
                f"{prefix}{name}: a value in it holds itself, or is nested too deeply; leave it out"
            ) from None
    described["_class_path"] = public_path(cls)
    described["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    return described


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
    if isinstance(value, Described) and "<" not in type(value).__qualname__:
        init = _describe(name, value.arguments)
        return {"class_path": public_path(type(value)), "init_args": init}
    if isinstance(value, partial):
        made, args = value.func, value.args
        if made.__module__.startswith("jsonargparse"):  # what a loaded agent was built with
            made, args = args[-1], ()
        if isinstance(made, type) and not args:
            init = _describe(name, value.keywords)
            return {"class_path": public_path(made), "init_args": init}
    if isinstance(value, Callable) and "<" not in getattr(value, "__qualname__", "<"):  # type: ignore
        return public_path(value)
    # A list, because jsonargparse reports it whole; a text it would try to import.
    return [
        f"<{name} was a {type(value).__name__}{_UNKNOWN}"
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
    path = present_path(path)
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
            function of an installed package that is not trusted, or what would have to be imported
            first.
    """
    plain = present_paths(without_code_switch(dict(hyper)))
    plain = {k: v for k, v in plain.items() if k not in ("_class_path", "_instantiator")}
    for text, kind in _texts(plain):
        _check_text(text, kind)
        if kind == "place" or "." not in text or not _leads_somewhere(text):
            continue
        if len(text.split()) == 1:
            _check_role(text)
        else:  # a sentence, most likely; no more than an import may come of it
            check_import(text.partition(".")[0], repr(text))
    module, colon, made = str(plain.get("env", "")).rpartition(":")
    if colon:
        check_import(module, f"the environment {plain['env']}")
    if colon and made.isidentifier() and made not in gym.registry and not is_trusted(module):
        raise ConfigurationError(
            f"the checkpoint makes its environment by calling {plain['env']}: if you trust that "
            f"package, say so with --trust {module.partition('.')[0]}, or give --config of your own"
        )
    return plain


def check_asks_nobody(described: Any) -> None:
    """Refuse descriptions of rewards that ask a labeller: it may be one at an address, with a key.

    Args:
        described: A checkpoint's `rewards`.

    Raises:
        ConfigurationError: That says who has to give them.
    """
    kinds = [Labeller]
    for kind in kinds:
        kinds += kind.__subclasses__()
    names = {"labeller", *(kind.__name__ for kind in kinds)}
    for text, _ in _texts(described, False):
        if not names.isdisjoint(text.split(".")):
            raise ConfigurationError(
                "the checkpoint's data.rewards ask a labeller, and whom to ask, with which key, is "
                "for whoever runs it to say: give --config of your own (in Python "
                "load_from_checkpoint(path, rewards=[...]))"
            )


def check_described(hyper: Mapping[str, Any]) -> None:
    """Refuse arguments that the checkpoint could not describe.

    Raises:
        ConfigurationError: That names the first of them.
    """
    for text, _ in _texts(hyper):
        if text.startswith("<") and _UNKNOWN in text and text.endswith(">"):
            raise ConfigurationError(text.strip("<>"))


def _check_text(text: str, kind: Kind) -> None:
    """Refuse a text that would be replaced by something else, or could switch code on."""
    if "${" in text:
        what = "would be replaced by something from here, such as a variable of the environment"
    elif _CODE_SWITCH in text or "class_path" in text:
        what = "hides arguments in a text"
    elif kind == "value" and _is_file(text):
        what = "is a file, and would be read in its place"
    else:
        return
    raise ConfigurationError(f"the checkpoint holds {text!r}, which {what}; nothing was loaded")


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or with a zero in it
        return False


def _texts(
    value: Any, are_arguments: bool = True, foreign: bool | None = None
) -> Iterator[tuple[str, Kind]]:
    """All texts in hyper-parameters, each with its kind.

    A text that is YAML or JSON would be parsed where an object is wanted, so what is in it is
    looked at as well.

    Args:
        value: Hyper-parameters, or a part of them.
        are_arguments: Whether keys are names of arguments, not of entries of observations.
        foreign: Whether it is an argument of somebody else's class; False on the way there.
    """
    if isinstance(value, str):
        yield value, "foreign" if foreign else "value"
        parsed = _parsed(value)
        if not isinstance(parsed, str):
            yield from _texts(parsed, are_arguments, foreign)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if isinstance(key, str) and key not in ("class_path", "init_args"):
                yield key, "value"
            if are_arguments and key in _PLACES and _is_plain(entry):
                for text in [entry] if isinstance(entry, str) else entry:
                    yield text, "place"
            else:
                below = True if foreign is not None else False if key in _FOREIGN else None
                yield from _texts(entry, key == "init_args", below)
    elif isinstance(value, Sequence):
        for entry in value:
            yield from _texts(entry, False, foreign)


def _is_plain(entry: Any) -> bool:
    return isinstance(entry, str) or (
        isinstance(entry, Sequence) and all(isinstance(one, str) for one in entry)
    )


def _parsed(text: str) -> Any:
    """What YAML makes of a text; the text itself if nothing with parts."""
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, Mapping | list) else text


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
    if inspect.isfunction(found) and _may_be_named(found):
        return
    raise ConfigurationError(
        f"the checkpoint names {path}, which is no part of an agent or environment; nothing was "
        f"loaded{_way_out(found)}"
    )


def _may_be_named(function: Any) -> bool:
    """Whether a checkpoint may name a function: the user's own, a trusted package's, ours of one
    kind."""
    home = function.__module__
    if f"{home}.".startswith(f"{_DESCRIBERS}.") or is_trusted(home):
        return True
    return not _installed(home)


def _installed(module: str) -> bool:
    """Whether a module comes from an installed package, this library and Python included."""
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.partition(".")[0] == "rl_lightning" or file is None:
        return True
    folders = Path(file).resolve().parents
    return any(folder.name in _PACKAGES or folder in _PYTHON for folder in folders)


def _way_out(found: Any) -> str:
    home = getattr(found, "__module__", None)
    if not inspect.isfunction(found) or home is None or home.startswith("rl_lightning"):
        return ""
    package = home.partition(".")[0]
    return f"; if you trust all that {package!r} can do, say so with --trust {package}"
