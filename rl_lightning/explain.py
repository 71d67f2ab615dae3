"""Turning jsonargparse's nested reports into one sentence about the user's mistake."""

import difflib
import importlib
import inspect
import re

# What to write where a type alone says too little, by argument.
_HINTS = {"wrappers": "; write Name, or {Name: {argument: value}} for one with arguments"}
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


def one_sentence(report: str) -> str:
    """What is wrong with which argument, and what would be right.

    Args:
        report: The message of a jsonargparse error.
    """
    if report.startswith("unrecognized arguments"):
        return report + "; --help lists the arguments"
    keys = [k for k in re.findall(r'Parser key "([^"]+)"', report) if k]
    nested = re.search(r"NestedArg\(key='([^']+)', val=", report)
    where = ".".join(dict.fromkeys(keys))
    if nested and len(keys) < 2:
        where = f"{keys[0]}.{nested[1]}" if keys else nested[1]
    prefix = f"{where}: " if where else ""

    refused = re.search(r"Option '([^']+)' is not accepted", report)
    if refused:
        owners = re.findall(r"Problem with given class_path '([^']+)'", report)
        # A callable's report names the class last, behind the refused option.
        owners += re.findall(
            r"is not accepted\. Got value: Namespace\(class_path='([^']+)'", report
        )
        return _unknown_option(keys, refused[1], owners[-1] if owners else "")
    missing = re.search(r'(Key|Option) "?([\w.]+)"? is required', report)
    if missing:
        return f"{prefix}{missing[2]} is required"
    name = re.search(r"Expected a dot import path string: (\S+)", report)
    expected = [
        _readable(e) for e in re.findall(r"Expected (?:an? )?(.+?)(?:\. Got|$)", report, re.M)
    ]
    noise = ("dot import", "path but")
    expected = [e for e in dict.fromkeys(expected) if e and not e.startswith(noise)]
    expected = [e for e in expected if e != "null"] or expected
    given = re.findall(r"(?:Got value|Given value): (.+?)(?:\. Got value.*)?$", report, re.M)
    given = [g for g in given if not g.startswith(("NestedArg", "Namespace"))]
    if name and not [e for e in expected if e not in ("null", "list")]:
        return f"{prefix}no class {name[1]!r} can be imported; give its name or its dotted path"
    if expected:
        value = given[0] if given else (nested and _value(report)) or "something else"
        hint = _HINTS.get(where.rpartition(".")[2], "")
        return f"{prefix}expected {' or '.join(expected)}, not {value}{hint}"
    return " ".join(report.replace("Parser key", "").split())


def _unknown_option(keys: list[str], option: str, owner: str) -> str:
    module, _, name = owner.rpartition(".")
    where = f"{'.'.join(dict.fromkeys(keys))}: " if keys else ""
    try:
        cls = getattr(importlib.import_module(module), name)
        known = [p for p in inspect.signature(cls).parameters if p != "spec"]
    except (ImportError, AttributeError, ValueError):
        return f"{where}{owner} has no argument {option!r}"
    near = difflib.get_close_matches(option, known, 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
    return f"{where}{name} has no argument {option!r}; {hint}"


def _readable(kind: str) -> str:
    kind = kind.strip().rstrip(".")
    literal = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    if literal:
        return " or ".join(part.strip().strip("'") for part in literal[1].split(","))
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    return "null" if kind == "NoneType" else kind


def _value(report: str) -> str:
    found = re.search(r"NestedArg\(key='[^']+', val=(.+)\)\s*$", report)
    return found[1] if found else ""
