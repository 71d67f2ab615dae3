"""Turning jsonargparse's nested reports into one sentence about the user's mistake."""

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence
from typing import Any

import rl_lightning
from rl_lightning.core.errors import nearest
from rl_lightning.envs.failures import told

# What to write where a type alone says too little, by argument.
_HINTS = {"wrappers": "; write Name, or {Name: {argument: value}} for one with arguments"}
# What stands where, by the argument's name: what it is, and what it is derived from.
_ROLES = {
    "model": ("agent", "rl_lightning.agents.Agent"),
    "data": ("data module", "rl_lightning.data.RLDataModule"),
    "encoder": ("encoder", "rl_lightning.encoders.Encoder"),
    "network": ("network for this agent", ""),
    "optimizer": ("optimizer", "torch.optim.Optimizer"),
    "exploration": ("exploration", "rl_lightning.exploration.ValueExploration"),
    "noise": ("action noise", "rl_lightning.exploration.ActionNoise"),
    "rewards": ("reward", "rl_lightning.rewards.Reward"),
    "completions": ("reward of completions", "rl_lightning.rewards.completions.CompletionReward"),
    "prompts": ("source of prompts", "rl_lightning.data.prompts.Prompts"),
    "val_prompts": ("source of prompts", "rl_lightning.data.prompts.Prompts"),
    "labeller": ("labeller", "rl_lightning.rewards.Labeller"),
    "generator": (
        "generator: an object called with backbone, prompts, samples, sampling and version",
        "rl_lightning.llm.generators.Generator",
    ),
    "logger": ("logger", "lightning.pytorch.loggers.Logger"),
    "callbacks": ("callback", "lightning.pytorch.callbacks.Callback"),
}
_SPELLING = "a class is written as NAME, or {class_path: NAME, init_args: {argument: value}}"
_ABSTRACT = (
    "ActionValues",
    "RecordedDataModule",
    "ReplayAgent",
    "ReplayContents",
    "StateReward",
    "TextPolicy",
)
_MANY = 12  # names are more than a reader looks through
_HELP = "; --help lists the arguments"
_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
_HOMES = ("rl_lightning.", "torch.optim", "lightning.pytorch.")
_TOP = ("model", "data", "trainer", "checkpoint", "seed_everything", "ckpt_path", "config")
_WRAPPING = ("Does not validate against", "Parser key", "Problem with given class_path")


def root_message(error: BaseException) -> str:
    """The message of what was raised first, below the layers that only report where it happened."""
    current: BaseException | None = error
    while current is not None:
        message = str(current)
        if message and not any(mark in message for mark in _WRAPPING):
            return message
        current = current.__cause__ or current.__context__
    return one_sentence(str(error))


def one_sentence(report: str, args: Sequence[str] = ()) -> str:
    """What is wrong with which argument, and what would be right.

    Args:
        report: The message of a jsonargparse error.
        args: The command line.
    """
    simple = _of_the_command_line(report, args)
    if simple:
        return simple
    keys = [k for k in re.findall(r'Parser key "([^"]+)"', report) if k]
    nested = re.search(r"NestedArg\(key='([^']+)', val=", report)
    where = ".".join(dict.fromkeys(keys))
    if nested and len(keys) < 2:
        where = f"{keys[0]}.{nested[1]}" if keys else nested[1]
    prefix = f"{where}: " if where else ""

    undecodable = re.search(r"codec can't decode byte (0x\w+)", report)
    if undecodable:
        return f"{prefix}the file is no text in UTF-8 (byte {undecodable[1]}); save it as UTF-8"
    twice = re.search(r"\S+ stands there twice \(lines? [\d, ]+\); leave one out", report)
    if twice:
        return prefix + twice[0]
    owners = re.findall(r"Problem with given class_path '([^']+)'", report)
    refused = re.search(r"Option '([^']+)' is not accepted", report)
    unknown = re.search(r"unrecognized arguments: --([^\s=]+)", report)
    if refused or unknown:
        # A callable's report names the class last, behind the refused option.
        owners += re.findall(
            r"is not accepted\. Got value: Namespace\(class_path='([^']+)'", report
        )
        option = (refused or unknown or [""])[1]
        direct = re.search(r"class_path '([^']+)':\s+(?:Option|unrecognized)", report)
        owner = direct[1] if direct else owners[-1] if owners else ""
        return _unknown_option(keys, option, owner)
    missing = re.search(r'(Key|Option) "?([\w.]+)"? is required', report)
    if missing:
        return f"{prefix}{missing[2]} is required"
    missing = re.search(r"the following arguments are required: ([\w., ]+)", report)
    if missing and owners:
        owner = owners[-1].rpartition(".")[2] if len(keys) == 1 else "this class"
        return f"{'.'.join(dict.fromkeys(keys))}: {owner} needs {missing[1].strip()}"
    if "object has no attribute 'keys'" in report and owners:
        owner = owners[-1].rpartition(".")[2]
        return f"{prefix}init_args must be a mapping of {owner}'s arguments, or be left out"
    stranger = re.search(r"Import path does not correspond to a subclass of \w+", report)
    stranger = stranger or re.search(r"Expected '[^']+' to be a subclass of \w+", report)
    given = re.findall(r"(?:Got value|Given value): (.+?)(?:\. Got value.*)?$", report, re.M)
    given = [g for g in given if not g.startswith(("NestedArg", "Namespace"))]
    value = given[0] if given else (nested and _value(report)) or "something else"
    if stranger:
        return _wrong_class(where, str(value).strip("'"), report)
    unspelt = ("Not a valid subclass of", "Key must be a string", "argument of type 'int' is not")
    if any(mark in report for mark in unspelt):
        return f"{prefix}{_SPELLING}, not {value}"
    name = re.search(r"Expected a dot import path string: ?(\S*)", report)
    expected = _expected(_innermost(report)) if nested else []
    expected = expected or _expected(report)
    containers = {"null", "list", "Iterable", "bool"}
    if name and not set(expected) - containers and not _looks_plain(name[1]):
        return _wrong_class(where, name[1], report)
    if expected == ["null"] and re.fullmatch(r"\w+(\.\w+)+", str(value)):
        return _wrong_class(where, str(value), report)
    listed = re.findall(r"'class_path': '([^']+)'", str(value))
    if expected == ["null"] and where.endswith(".generator") and listed:
        return _wrong_class(where, listed[0], report)
    if unknown_ones := [name for name in listed if not _exists(name)]:
        return _wrong_class(where, unknown_ones[0], report)
    if expected:
        hint = _HINTS.get(where.rpartition(".")[2], "")
        return f"{prefix}expected {' or '.join(expected)}, not {value}{hint}"
    return " ".join(re.sub(r'Parser key "([^"]*)":', r"\1:", report).split())


def _expected(report: str) -> list[str]:
    """What would have been right, in words, each once."""
    found = [_readable(e) for e in re.findall(r"Expected (?:an? )?(.+?)(?:\. Got|$)", report, re.M)]
    noise = ("dot import", "path but", "instantiatable class")
    found = [e for e in dict.fromkeys(found) if e and not e.startswith(noise)]
    return [e for e in found if e != "null"] or found


def _innermost(report: str) -> str:
    """What is said of the argument that was meant, without what else its owner could have been."""
    lines = report.split("\n")
    starts = [index for index, line in enumerate(lines) if "Parser key" in line]
    if len(starts) < 2:
        return report
    depth = len(lines[starts[-1]]) - len(lines[starts[-1]].lstrip())
    own = [lines[starts[-1]]]
    for line in lines[starts[-1] + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        own.append(line)
    return "\n".join(own)


def _exists(path: str) -> bool:
    """Whether one of our own classes is called so; of others nothing is said."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] not in ("", "rl_lightning"):
        return True
    try:
        return hasattr(importlib.import_module(module or "rl_lightning"), name)
    except ImportError:
        return False


def _of_the_command_line(report: str, args: Sequence[str]) -> str | None:
    """Reports about options and files, without the nesting of classes."""
    if report.startswith("unrecognized arguments: "):
        words = report.removeprefix("unrecognized arguments: ")
        option = words.split()[0].partition("=")[0].lstrip("-")
        return f"unrecognized arguments: {words}{_near_option(option)}"
    if found := re.match(r"Subcommand '(\w+)' does not accept option '([^']+)'", report):
        return f"{found[2]}: there is no such argument{_near_option(found[2])}"
    if found := re.match(r"Option '([^']+)' is not accepted before subcommand '(\w+)'", report):
        return f"{found[1]}: write arguments and --config behind {found[2]}, not before it"
    if report.startswith("Unexpected config:"):
        content = " ".join(report.removeprefix("Unexpected config:").split())
        what = f"{content[:60]!r}" if content else "nothing"
        return f"config: expected a file, or a mapping with model, data and trainer, not {what}"
    if found := re.match(r"the following arguments are required: (.+)", report):
        names = ", ".join(re.sub(r"^\w+\.", "", name) for name in found[1].split(", "))
        return f"the following arguments are required: {names}; give --config FILE, or name classes"
    if found := re.match(r"argument (\S+): expected one argument", report):
        # argparse names what `data.num_envs` is nested in.
        name = found[1].split("/")[-1]
        for word, following in zip(args, [*args[1:], "-"], strict=True):
            if word.startswith(name) and "=" not in word and following.startswith("-"):
                return f"{word} needs a value behind it"
    return None


def _near_option(option: str) -> str:
    """What a misspelt option may have meant."""
    group, dot, _ = option.partition(".")
    homes = {"trainer": "lightning.Trainer", "checkpoint": _CHECKPOINT}
    known = list(_TOP)
    if dot and group in homes:
        known = [f"{group}.{p}" for p in inspect.signature(import_class(homes[group])).parameters]
    elif dot:
        option = group
    near = difflib.get_close_matches(option, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near and near[0] != option else _HELP


def import_class(path: str) -> Any:
    """What a dotted path names; None if there is nothing."""
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def class_names(base: Any, name: str) -> list[str]:
    """Classes that may stand where one derived from `base` must, those most like `name` first."""
    found, todo = [], [base]
    while todo:
        todo += (children := todo.pop().__subclasses__())
        # Classes that others are derived from are choices too, unless they are bases alone.
        found += [c.__name__ for c in children if c.__module__.startswith(_HOMES)]
    abstract = (
        "_",
        "Abstract",
        "Dummy",
        "Lightning",
        "ReplayAgent",
        "ReplayContents",
        "StateReward",
    )
    return nearest(name, sorted(f for f in found if not f.startswith(abstract)))


def _wrong_class(where: str, name: str, report: str) -> str:
    """A class that does not exist, or exists and is of another kind."""
    argument = where.removesuffix(".class_path").rpartition(".")[2]
    if argument == "rewards" and "CompletionReward" in report:
        argument = "completions"
    role, base = _ROLES.get(argument, ("", ""))
    short = name.rpartition(".")[2]
    exists = short in rl_lightning.__all__ or import_class(name) is not None
    if exists and role:
        said = f"{where}: {name} is no {role}"
    elif "." in name:
        return f"{where}: {_why_not_there(name)}"
    else:
        said = f"{where}: no class {name!r} can be imported; give its name or its dotted path"
    names = class_names(import_class(base), short) if base else []
    if len(names) > _MANY:
        return f"{said}; nearest are {', '.join(names[:5])}"
    return f"{said}; there are {', '.join(names)}" if names else said


def _why_not_there(path: str) -> str:
    """Why a dotted path leads to nothing."""
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return f"{path} cannot be imported: {told(error)}"
    near = difflib.get_close_matches(name, vars(found), 1, 0.6)
    return f"{module} has no {name}" + (f"; did you mean {module}.{near[0]}?" if near else "")


def _looks_plain(name: str) -> bool:
    """Whether a word is a value rather than the name of a class."""
    return name in ("true", "false", "yes", "no")


def _unknown_option(keys: list[str], option: str, owner: str) -> str:
    name = owner.rpartition(".")[2]
    where = f"{'.'.join(dict.fromkeys(keys))}: " if keys else ""
    try:
        known = [p for p in inspect.signature(import_class(owner)).parameters if p != "spec"]
    except (TypeError, ValueError):
        return f"{where}{owner} has no argument {option!r}"
    if option.startswith(("class_path", "init_arg")):
        return f"{where}{name} has no argument {option!r}; {_SPELLING}"
    near = difflib.get_close_matches(option, known, 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
    return f"{where}{name} has no argument {option!r}; {hint}"


def _readable(kind: str) -> str:
    kind = kind.strip().rstrip(".")
    literal = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    if literal:
        return " or ".join(part.strip().strip("'") for part in literal[1].split(","))
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    return {"NoneType": "null", "Sequence": "list", "Iterable": "list"}.get(kind, kind)


def _value(report: str) -> str:
    found = re.search(r"NestedArg\(key='[^']+', val=(.+)\)\s*$", report)
    return found[1] if found else ""
