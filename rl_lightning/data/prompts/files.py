"""Prompts out of files, Hugging Face datasets, and whatever else a source may be."""

import difflib
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.data.prompts.table import Prompts, RowPrompts
from rl_lightning.rewards.labels.rule import once, read_rows

_KINDS = "JSONL (.jsonl, .ndjson), JSON (.json), Parquet (.parquet), a folder or a hub name"


class FilePrompts(Described, RowPrompts):
    """Prompts out of a file, a saved Hugging Face dataset, or one of the hub.

    A checkpoint that holds one keeps its name, never its content.

    Args:
        dataset: A file of rows, each with a prompt: JSONL, a JSON array, or Parquet (needs
            pyarrow); a folder that `datasets` has saved; or else its name on the hub.
        column: Which entry of a row is the prompt, a text or a list of messages with `role` and
            `content`; all others are columns.
        split: Of a data set in several, which.
        subset: Of one of the hub that has them, which.

    Raises:
        ConfigurationError: If there is no such file, if it cannot be read, if a row has no prompt,
            or if a package is missing.
    """

    def __init__(
        self,
        dataset: str,
        column: str = "prompt",
        split: str = "train",
        subset: str | None = None,
    ) -> None:
        super().__init__(_rows(os.fspath(dataset), split, subset), column, str(dataset))


def as_prompts(source: Any, column: str = "prompt") -> Prompts:
    """The prompts of whatever a source is.

    Args:
        source: `Prompts`, a file, folder or hub name, see `FilePrompts`, a dataset of `datasets`,
            or a list of texts, chats or mappings.
        column: Of rows that are mappings, which entry is the prompt.

    Raises:
        ConfigurationError: If it is none of these, or holds no prompts.
    """
    if isinstance(source, Prompts):
        return source
    if isinstance(source, str | os.PathLike):
        return FilePrompts(os.fspath(source), column)
    if isinstance(source, Sequence) or _is_dataset(source):
        return RowPrompts(source, column)
    named = f"; choose one of its splits, {', '.join(source)}" if isinstance(source, dict) else ""
    raise ConfigurationError(
        "data.prompts must be a file, the name of a data set, a list of texts, chats or rows, a "
        f"dataset with a length, or an object of Prompts, not {shortened(repr(source), 80)}{named}"
    )


def _is_dataset(source: Any) -> bool:
    """Whether it has columns, a length and rows by number."""
    there = hasattr(source, "column_names") and hasattr(source, "__getitem__")
    return there and hasattr(source, "__len__") and not isinstance(source, Mapping)


def _rows(name: str, split: str, subset: str | None) -> Any:
    path, suffix = Path(name).expanduser(), Path(name).suffix.lower()
    if path.is_dir():
        return _saved(path, split)
    if suffix in (".jsonl", ".ndjson"):
        return read_rows(name)
    if suffix == ".json":
        return _array(path)
    if suffix == ".parquet":
        return _parquet(path)
    if path.exists():
        raise ConfigurationError(f"{name}: prompts are read from {_KINDS}, not from {suffix} files")
    meant = _meant(name)
    datasets = _package("datasets", f"{name} is no file{meant}, and the hub's data sets need")
    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # of many kinds: the network, the name, the split
        raise ConfigurationError(
            f"{name} is no file and no folder{meant}, and as a data set of the hub it cannot be "
            f"loaded: {shortened(error)}"
        ) from error


def _meant(name: str) -> str:
    """Which class a name without dots may be a slip of."""
    found, todo = [], [Prompts]
    while todo:
        todo += (children := todo.pop().__subclasses__())
        found += [child.__name__ for child in children if issubclass(child, Described)]
    near = difflib.get_close_matches(name, found, 1, 0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def _array(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text, object_pairs_hook=partial(once, str(path)))
    except ConfigurationError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no JSON: {shortened(error)}") from error
    if not isinstance(rows, list):
        raise ConfigurationError(f"{path} must hold a list of rows, not {shortened(rows, 80)}")
    return rows


def _parquet(path: Path) -> list[Any]:
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file")
    parquet = _package("pyarrow.parquet", f"{path}: Parquet needs")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigurationError(f"{path}: {twice[0]!r} stands there twice; leave one out")
        return file.read().to_pylist()
    except ConfigurationError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{path} is no Parquet: {shortened(error)}") from error


def _saved(path: Path, split: str) -> Any:
    datasets = _package("datasets", f"{path} is a folder, and saved data sets need")
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds
        raise ConfigurationError(
            f"{path} is no folder that datasets has saved (save_to_disk): {shortened(error)}"
        ) from error
    if isinstance(saved, Mapping):
        if split not in saved:
            raise ConfigurationError(f"{path} has no split {split!r}; there are {', '.join(saved)}")
        return saved[split]
    return saved


def _package(name: str, why: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigurationError(
            f"{why} the package {package} ({error}): pip install {package}, or rl-lightning[tokens]"
        ) from error
