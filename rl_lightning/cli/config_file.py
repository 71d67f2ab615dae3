"""Configuration files: text in UTF-8, a mapping, and every key once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from rl_lightning.core.errors import ConfigurationError

_SECTIONS = ("model", "data", "trainer", "checkpoint")
_MODE = "omegaconf+"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_config_file(path: Path) -> None:
    """Refuse a file that is no configuration, before its contents are looked at.

    Raises:
        ConfigurationError: That names the file, and the line where there is one.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: this is no text in UTF-8 (byte {error.start} is "
            f"0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from error
    try:
        node = yaml.compose(text, Loader=_LOADER)
        yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}{_yaml_error(error)}") from error
    if node is None:
        raise ConfigurationError(
            f"{path}: the configuration is empty; it needs at least model and data"
        )
    if not isinstance(node, yaml.MappingNode):
        what = (
            "a list" if isinstance(node, yaml.SequenceNode) else f"the text {text.strip()[:60]!r}"
        )
        raise ConfigurationError(
            f"{path}: a configuration is a mapping with model, data and trainer, not {what}"
        )
    for key, value in node.value:
        if not key.tag.endswith((":str", ":merge")):
            raise ConfigurationError(
                f"{path}: {key.value} (line {key.start_mark.line + 1}) names no argument"
            )
        if not value.value and value.tag.endswith("null") and key.value in _SECTIONS:
            raise ConfigurationError(
                f"{path}: {key.value} (line {key.start_mark.line + 1}) is empty; indent its "
                "arguments below it, or leave it out"
            )
    _check_keys(node, f"{path}: ")


def check_keys(text: str, where: str = "") -> None:
    """Refuse a mapping that says something twice: the last would win in silence.

    Args:
        text: YAML; what cannot be read is left to the reader.
        where: What stands before the message.

    Raises:
        ConfigurationError: That names the key and the lines.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError:
        return
    _check_keys(node, where)


def refuse_repeated_keys() -> None:
    """Have every piece of YAML that the command line reads, files included by other arguments
    among them, checked by `check_keys`."""
    parser = ArgumentParser(parser_mode=_MODE)
    parser.add_argument("--any", type=Any)
    parser.parse_args(["--any=[]"])  # jsonargparse makes the loader when it is first needed
    loader = get_loader(_MODE)
    if not isinstance(loader, _CheckedLoader):
        set_loader(_MODE, _CheckedLoader(loader), (yaml.YAMLError,))


class _CheckedLoader:
    def __init__(self, load: Callable[[str], Any]) -> None:
        self.load = load

    def __call__(self, text: str) -> Any:
        if ":" in text:
            check_keys(text)
        return self.load(text)


def _check_keys(root: Any, where: str) -> None:
    todo: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
    done: set[int] = set()  # anchors make one node of several places
    while todo:
        node, path = todo.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += [(child, (*path, str(i))) for i, child in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            todo += [(child, (*path, str(key.value))) for key, child in node.value]
            twice = _twice(node)
            if twice is not None:
                name, lines = twice
                at = f"line {lines[0]}" if lines[0] == lines[1] else f"lines {lines[0]}, {lines[1]}"
                key = ".".join((*path, name))
                raise ConfigurationError(f"{where}{key} stands there twice ({at}); leave one out")


def _twice(node: yaml.MappingNode) -> tuple[str, tuple[int, int]] | None:
    """A key of a mapping that stands there twice, and its lines; `a.b` is `b` below `a`."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name == "<<":  # what is merged in may be said again: that is what it is for
            continue
        if name in seen:
            return name, (seen[name], line)
        seen[name] = line
    for name, line in seen.items():
        first, dot, rest = name.partition(".")
        if dot and first in seen and (other := _find(node, [first, *rest.split(".")])):
            lines = sorted((line, other))
            return name, (lines[0], lines[1])
    return None


def _find(node: Any, path: list[str]) -> int:
    """The line of a key below a mapping; 0 if there is none."""
    line = 0
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            return 0
        found = [(k, child) for k, child in node.value if str(k.value) == name]
        if not found:
            return 0
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line


def _yaml_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f": this is no YAML ({problem})"
    hint = ""
    if "cannot start any token" in problem:
        hint = " (YAML is indented with spaces, not with tabs)"
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"
