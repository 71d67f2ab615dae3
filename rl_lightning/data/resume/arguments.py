"""A data module's arguments, out of a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from jsonargparse import ArgumentError, ArgumentParser

import rl_lightning.envs
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.signatures import hints_of, signature_of
from rl_lightning.core.trust import find_named, loading_stranger
from rl_lightning.hyperparameters import (
    check_asks_nobody,
    check_described,
    check_hyperparameters,
    stored_class,
)

# Where to write, and whom to ask (and with which key), is for whoever runs it to say.
_NOT_FROM_A_FILE = ("record", "storage", "storage_dir", "labeller")
_DESCRIBED = ("rewards", "prompts", "val_prompts")  # what is an object, and not plain data
# These write files, or open windows, where the checkpoint says.
_REFUSED_WRAPPERS = ("RecordVideo", "HumanRendering")


def stored_arguments(
    hyper: Mapping[str, Any] | None,
    role: type,
    where: str,
    trusted: Sequence[str],
    kwargs: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Class and arguments of the data module that a checkpoint describes.

    Args:
        hyper: The checkpoint's `datamodule_hyper_parameters`.
        role: What it must be.
        where: The file, for messages.
        trusted: Packages that it may name.
        kwargs: Arguments in the place of those in the checkpoint.

    Raises:
        ConfigurationError: If there are none, if they are of another class, or if they name what
            they may not.
    """
    if not hyper:
        raise ConfigurationError(
            f"checkpoint {where} does not say on what data its agent was trained, as those of an "
            "earlier version do not: give --config (in Python, build the data module)"
        )
    with loading_stranger(trusted):
        made = stored_class(hyper, role)
        if "rewards" not in kwargs:
            check_asks_nobody(hyper.get("rewards"))
        plain = check_hyperparameters(hyper)
        given = {k: v for k, v in plain.items() if k not in (*kwargs, *_NOT_FROM_A_FILE)}
        check_described(given)
        for wrapper in given.get("wrappers") or ():
            for name in [wrapper] if isinstance(wrapper, str) else wrapper:
                _check_wrapper(name)
    known = signature_of(made).parameters
    for name in [*given, *kwargs]:
        if name not in known:
            raise ConfigurationError(f"checkpoint {where}: {made.__name__} has no argument {name}")
    return made, {**given, **kwargs}


def built_arguments(made: type, given: Mapping[str, Any], trusted: Sequence[str]) -> dict[str, Any]:
    """Arguments with rewards and sources of prompts in the place of their descriptions.

    Args:
        made: The class of the data module that they are for.
        given: As `stored_arguments` returned them; what a caller gave as objects stays.
        trusted: Packages that the checkpoint may name.

    Raises:
        ConfigurationError: If a description leads to nothing of its kind.
    """
    hints = hints_of(made)
    built = {
        name: _built(name, hints[name], given[name], trusted)
        for name in _DESCRIBED
        if name in hints and _is_description(name, given.get(name))
    }
    return {**given, **built}


def _is_description(name: str, value: Any) -> bool:
    """Whether it says what is to be built, and is not that already; prompts may be plain data."""
    if name == "rewards":
        return bool(value) and not any(map(callable, value))
    return isinstance(value, Mapping) and "class_path" in value


def _built(name: str, hint: Any, described: Any, trusted: Sequence[str]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=hint)
    with loading_stranger(trusted):
        try:
            parsed = parser.parse_object({name: described})
            return parser.instantiate(parsed)[name]
        except ConfigurationError:
            raise
        except (ArgumentError, TypeError, ValueError, ImportError) as error:
            raise ConfigurationError(
                f"the checkpoint's data.{name} cannot be built: {error}; give others, "
                f"load_from_checkpoint(path, {name}=...)"
            ) from error


def _check_wrapper(name: str) -> None:
    last = name.rpartition(".")[2]
    if "." in name:
        found = find_named(name, f"the wrapper {name}")
    else:
        found = getattr(rl_lightning.envs, name, getattr(gym.wrappers, name, None))
    if not (isinstance(found, type) and issubclass(found, gym.Wrapper)):
        raise ConfigurationError(
            f"the checkpoint wraps its environment in {name!r}, which is no subclass of "
            "gymnasium.Wrapper: give --config of your own"
        )
    if last in _REFUSED_WRAPPERS:
        raise ConfigurationError(
            f"the checkpoint wraps its environment in {last}, which writes files or opens windows: "
            "give --config of your own"
        )
