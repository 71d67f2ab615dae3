"""The parser of the command line: what it takes for a number, and what it refuses."""

import inspect
import math
import os
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union

import torch
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from rl_lightning.agents import Agent, ReplayAgent
from rl_lightning.cli.config_file import check_config_file
from rl_lightning.cli.explain import class_names, import_class, one_sentence
from rl_lightning.core.errors import ConfigurationError, is_whole, whole_seed
from rl_lightning.core.signatures import hints_of
from rl_lightning.data import RLDataModule
from rl_lightning.data.prompts import Prompts
from rl_lightning.encoders import Encoder
from rl_lightning.exploration import ActionNoise, ValueExploration
from rl_lightning.llm.generators import Generator
from rl_lightning.llm.vllm_generator import VLLMGenerator
from rl_lightning.rewards import Labeller, Reward, StateReward
from rl_lightning.rewards.completions import CompletionReward

NAMED = (VLLMGenerator,)
"""Found by its short name because it is imported."""
_BASES = (
    Agent,
    Generator,
    ReplayAgent,
    RLDataModule,
    Encoder,
    ActionNoise,
    ValueExploration,
    Reward,
    StateReward,
    Labeller,
    CompletionReward,
    Prompts,
)
_CONTAINERS: Any = (list, tuple, set, Sequence, Iterable)
_NEGATIVE = re.compile(r"-(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|-\.?(inf|nan)", re.IGNORECASE)


class Parser(LightningArgumentParser):
    """Reports a mistake in one sentence instead of the whole usage, and reads whole numbers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A beginning of an option's name would be taken for the option.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser: the outermost one reports
            super().error(message, ex)
        fail(one_sentence(message, sys.argv[1:] if self.args is None else self.args))

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        if not self.exit_on_error and isinstance(args, list):
            # An argument of a class inside another one comes here as jsonargparse spells None.
            args = [re.sub(r"^(--[\w.]+)=None$", r"\1=null", str(arg)) for arg in args]
        return super().parse_args(args, *more, **kwargs)

    # jsonargparse gives its groups of arguments a copy of this method.
    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        take_whole_floats(action)
        return action

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(path).is_file():
            check_config_file(Path(path))
        return super().parse_path(path, *args, **kwargs)


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one sentence."""
    print(f"rl-lightning: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


# --- numbers ----------------------------------------------------------------------------------


class WholeNumber(int):
    """Stands for `int` in the parser's types: takes 1e5, 1.0e5 and 100000.0 as 100000."""


WholeNumber.__name__ = "int"  # which is what --help calls it


def _whole_number(value: Any) -> int:
    number: Any = value
    try:
        if isinstance(value, str):
            number = yaml.safe_load(value)
            number = float(number) if isinstance(number, str) else number
    except (ValueError, yaml.YAMLError):
        number = None
    if not is_whole(number):
        raise ValueError(f"Expected a <class 'int'>. Got value: {value}")
    return int(number)


register_type(
    WholeNumber,
    serializer=int,
    deserializer=_whole_number,
    type_check=lambda value, _: type(value) is int,
)


class LiteralInteger(int):
    """Stands for `int` beside `float`: 1 is an integer and 1.0 is none.

    Python keeps one of `int | float` and `float | int` for both, whichever a program names first;
    a parser that tries them in turn then reads `limit_val_batches: 1`, one batch, as 1.0, all.
    """


LiteralInteger.__name__ = "int"


def _literal_integer(value: Any) -> int:
    number = yaml.safe_load(value) if isinstance(value, str) else value
    if type(number) is not int:
        raise ValueError(f"Expected a <class 'int'>. Got value: {value}")
    return number


register_type(
    LiteralInteger,
    serializer=_literal_integer,
    deserializer=_literal_integer,
    type_check=lambda value, _: type(value) is int,
)


class ListAlone(list):
    """Stands for `list` beside classes: a list, and nothing that is only like one.

    A parser that cannot set an argument of a class, `--data.prompts.sise 9`, would otherwise take
    the argument's name and value for a list of two, and train on that.
    """


ListAlone.__name__ = "list"


def _list_alone(value: Any) -> list:
    if type(value) is not list:
        raise ValueError(f"Expected a <class 'list'>. Got value: {value}")
    return value


register_type(
    ListAlone,
    serializer=list,
    deserializer=_list_alone,
    type_check=lambda value, _: type(value) is list,
)


def take_whole_floats(action: Any) -> None:
    """Let an argument of the parser that is an int, or holds some, take whole floats for them."""
    hint = getattr(action, "_typehint", None)
    if hint is not None:
        action._typehint = _with_whole_numbers(hint)


def _with_whole_numbers(hint: Any) -> Any:
    if hint is int:
        return WholeNumber
    if hint is list:
        return ListAlone
    origin: Any = typing.get_origin(hint)
    inner = typing.get_args(hint)
    if not inner or origin is Literal:
        return hint
    if origin in (Union, UnionType):
        if {float, str} & set(inner):  # there 1.0 and 1 differ
            if not {float, int} <= set(inner):
                alone = (ListAlone if part is list else part for part in inner)
                return Union[tuple(alone)] if list in inner else hint  # noqa: UP007
            rest = [part for part in inner if part is not int]
            return Union[(LiteralInteger, *rest)]
        return Union[tuple(_with_whole_numbers(part) for part in inner)]  # noqa: UP007
    if origin in _CONTAINERS:
        return origin[tuple(_with_whole_numbers(part) for part in inner)]
    if origin is dict:
        return dict[inner[0], _with_whole_numbers(inner[1])]
    return hint


def join_negative_numbers(args: Sequence[str]) -> list[str]:
    """`--option -1e2` as `--option=-1e2`: argparse knows -1 and -0.5 for numbers, and takes -1e2,
    -1_000 or -inf for options."""
    joined: list[str] = []
    for arg in args:
        if joined and re.fullmatch(r"--[^=]+", joined[-1]) and _NEGATIVE.fullmatch(arg):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


# --- what the parser lets pass ----------------------------------------------------------------


def check_parsed(config: Any) -> None:
    """Refuse what jsonargparse accepts and nothing can be built from.

    Args:
        config: The parsed configuration of a subcommand.

    Raises:
        ConfigurationError: That names the argument.
    """
    for name in ("trainer", "checkpoint"):
        if not hasattr(config.get(name), "as_dict"):
            raise ConfigurationError(
                f"{name}: expected a mapping of its arguments, not {config.get(name)}"
            )
    seed = config.get("seed_everything")
    if not isinstance(seed, bool):
        whole_seed("seed_everything", seed)
    known = config.as_dict()
    for name in ("model", "data", "trainer", "checkpoint"):
        _check(known[name], name)


MONITORED = ("val/return", "max")
"""What makes a checkpoint the best one."""


def use_own_monitor(config: Any) -> None:
    """Let a model that plays no episodes say what its best checkpoint is judged by, or its data,
    unless the configuration does.

    Args:
        config: The parsed configuration of a subcommand.
    """
    made = import_class(config.model.class_path) if config.get("model.class_path") else None
    own = getattr(made, "monitored", MONITORED)
    data = import_class(config.data.class_path) if config.get("data.class_path") else None
    judged = getattr(data, "judged_by", lambda arguments: None)
    own = judged(config.get("data.init_args") or {}) or own
    checkpoint = config.checkpoint
    if (checkpoint.get("monitor"), checkpoint.get("mode")) == MONITORED:
        checkpoint["monitor"], checkpoint["mode"] = own


def check_devices(trainer: Any, precision: Any) -> None:
    """Refuse a precision or a number of processes that the machine at hand is not made for.

    Args:
        trainer: The trainer, which has replaced some of what it was given.
        precision: What it was given.

    Raises:
        ConfigurationError: That names the argument.
    """
    if trainer.strategy.root_device.type != "cpu":
        return
    if str(precision) in ("16", "16-mixed"):
        raise ConfigurationError(
            f"trainer.precision: {precision} computes in float16, which CPUs do not; use 32-true "
            "or bf16-mixed"
        )
    cores = os.cpu_count() or 1
    if trainer.num_devices > 8 * cores:
        raise ConfigurationError(
            f"trainer.devices: {trainer.num_devices} would start as many processes on {cores} "
            f"cores; choose at most {8 * cores}"
        )


def _check(value: Any, where: str) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise ConfigurationError(f"{where}: expected a number, not nan")
    if isinstance(value, list):
        for index, part in enumerate(value):
            _check(part, f"{where}[{index}]")
    if not isinstance(value, dict):
        return
    made = import_class(value["class_path"]) if "class_path" in value else None
    if made is None:
        for name, part in value.items():
            _check(part, f"{where}.{name}")
        return
    if made in _BASES or made is torch.optim.Optimizer:
        names = ", ".join(class_names(made, where.rpartition(".")[2]))
        raise ConfigurationError(
            f"{where}: {made.__name__} is what others are derived from; choose one of {names}"
        )
    inner = value.get("init_args") or {}
    for name in _nulls(made, inner):
        raise ConfigurationError(f"{where}.{name}: null is no value; leave it out for its default")
    for name, part in inner.items():
        if not name.endswith("env_kwargs"):  # the environment's own business
            _check(part, f"{where}.{name}")


def _nulls(made: Any, given: dict[str, Any]) -> Iterator[str]:
    """Arguments that are None although neither their type nor their default says so."""
    try:
        hints = hints_of(made) if inspect.isclass(made) else typing.get_type_hints(made)
        parameters = inspect.signature(made).parameters
    except (NameError, TypeError, ValueError, AttributeError):
        return  # a stranger's annotations
    for name, value in given.items():
        hint = hints.get(name)
        if value is None and name in parameters and hint not in (None, Any, object):
            default = parameters[name].default  # none: jsonargparse asks for it, or it is linked
            if type(None) not in typing.get_args(hint) and default not in (
                None,
                inspect.Parameter.empty,
            ):
                yield name
