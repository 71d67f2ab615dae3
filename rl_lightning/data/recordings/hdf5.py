"""Reading a stranger's HDF5: nothing that lies outside the file, nothing larger than what is in it.

HDF5 can name other files of the reader's machine in links, in external storage and in virtual data
sets, can hold groups within themselves, and can claim rows without end that no byte stands behind.
So data are looked up link by link, and measured before they are read.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_lightning.core.errors import ConfigurationError, shortened

DEEPEST = 32  # groups, and spaces, within each other
SMALL_BYTES = 64 * 2**20  # whatever a file says, this much may be allocated
# Built into HDF5 and h5py: deflate, shuffle, fletcher32, szip, nbit, scale-offset and lzf.
FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
MOST_EXPANSION = 1100  # bytes out of one: what gzip, the densest filter in use, can reach is 1032


class Rows(NamedTuple):
    """A data set that may be read; what h5py takes its time to tell is asked once."""

    data: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    text: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


Node = Rows | dict[str, Any]  # or a group: a dict of nodes


def import_h5py() -> Any:
    """h5py, or a sentence on how to install it."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigurationError(
            'recorded episodes need h5py: pip install "rl-lightning[offline]"'
        ) from error
    return h5py


def part_of(path: Path) -> Path:
    """Where an interrupted recording leaves its episodes."""
    return path.with_name(f"{path.name}.part")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, open for reading; whatever is wrong with it becomes one sentence.

    Raises:
        ConfigurationError: If there is no such file, if it is no HDF5, or if reading it fails.
    """
    h5py = import_h5py()
    if not path.is_file():
        part = part_of(path)
        hint = f"; {part} is what an interrupted recording left" if part.exists() else ""
        raise ConfigurationError(f"there is no file {path}{hint}")
    try:
        if not h5py.is_hdf5(path):
            raise ConfigurationError(f"{path} is no HDF5 file")
        with h5py.File(path, "r") as file:
            yield file
    except ConfigurationError:
        raise
    except Exception as error:  # a damaged file fails in h5py in any way there is
        raise ConfigurationError(
            f"{path} cannot be read, it may be incomplete or damaged: {type(error).__name__}: "
            f"{shortened(error)}"
        ) from error


def find(group: Any, name: str, where: str, seen: set[int], apart: str = ": ") -> Node:
    """What a group holds under a name: a data set that can be read, or a dict of such.

    Args:
        group: An open h5py group.
        name: Of its entry; no path.
        where: The group, for messages.
        seen: Groups that were found already, each by its address in the file; added to.
        apart: What stands between `where` and a name.

    Raises:
        ConfigurationError: If there is no such entry, if something of it may lie in another file,
            or if it is neither numbers nor text that the file could hold.
    """
    h5py = import_h5py()
    node = entry(group, name, where)
    where = f"{where}{apart}{shortened(name, 60)}"
    if isinstance(node, h5py.Dataset):
        return _rows(node, where)
    address = h5py.h5o.get_info(node.id).addr
    if address in seen or len(seen) > 10_000 or node.name.count("/") > DEEPEST:
        raise ConfigurationError(
            f"{where}: the group holds itself, stands in two places, or lies more than {DEEPEST} "
            "groups deep, which no recording does"
        )
    seen.add(address)
    return {key: find(node, key, where, seen, "/") for key in node}


def entry(group: Any, name: str, where: str) -> Any:
    """A group or data set that lies in this file under a name, not yet looked into.

    Raises:
        ConfigurationError: If there is no such entry, or if it is a link or a data type.
    """
    h5py = import_h5py()
    try:
        kind = group.id.links.get_info(name.encode(errors="surrogateescape")).type
    except (KeyError, RuntimeError) as error:
        if holds(group, name):
            raise
        raise ConfigurationError(f"{where} has no {name!r}; it has {listed(group)}") from error
    if kind != h5py.h5l.TYPE_HARD:
        kinds = {h5py.h5l.TYPE_SOFT: "a soft", h5py.h5l.TYPE_EXTERNAL: "an external"}
        raise ConfigurationError(
            f"{where}: {shortened(name, 60)!r} is {kinds.get(kind, 'a user-defined')} link, and "
            "links can lead to other files of this machine; if you trust the file, put what it "
            "leads to in its place (h5py's Group.copy with expand_soft and expand_external)"
        )
    node = group[name]
    if not isinstance(node, h5py.Group | h5py.Dataset):
        raise ConfigurationError(f"{where}: {shortened(name, 60)!r} is a data type, not data")
    return node


def holds(group: Any, name: str) -> bool:
    """Whether there is something under a name; a link is not followed, as `name in group` would."""
    return group.id.links.exists(name.encode(errors="surrogateescape"))


def listed(names: Iterable[str]) -> str:
    """The first few names of many."""
    few = [shortened(name, 40) for name, _ in zip(names, range(9), strict=False)]
    return ", ".join(few[:8] + ["…"] * (len(few) > 8)) or "nothing"


def load(node: Node, where: str, rows: int | None = None) -> Any:
    """What was found, read: arrays, lists of texts, dicts and tuples of these.

    Args:
        node: From `find`.
        where: What it is, for messages.
        rows: What a data set may have at most; None if that is not known.

    Raises:
        ConfigurationError: If it needs more memory than there is, or is large and has more rows.
    """
    claimed = _size(node, rows, where)
    if claimed > memory():
        raise ConfigurationError(
            f"{where} claims {claimed / 2**30:,.1f} GiB, more than this machine's memory: the file "
            "is damaged or forged, or its episodes are too long for this machine"
        )
    return _loaded(node, where)


def check_all(file: Any, path: Path) -> None:
    """Refuse a file of which any part may lie in another file.

    Raises:
        ConfigurationError: As `find`.
    """
    for name in file:
        find(file, name, str(path), set())


def memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _rows(data: Any, where: str) -> Rows:
    h5py = import_h5py()
    if data.is_virtual or data.external:  # first: a virtual one's very shape is read elsewhere
        kind = "a virtual data set" if data.is_virtual else "external storage"
        raise ConfigurationError(
            f"{where} is {kind}, which takes its numbers from other files of this machine; if you "
            "trust the file, write the numbers themselves into it"
        )
    shape, dtype = data.shape, data.dtype
    number = dtype.kind in "biuf"
    text = not number and h5py.check_string_dtype(dtype) is not None
    if shape is None or not (number or text or h5py.check_vlen_dtype(dtype) == "uint8"):
        kind = "nothing" if shape is None else shortened(dtype, 60)
        raise ConfigurationError(f"{where} holds {kind}, neither real numbers nor text")
    rows = Rows(data, shape, dtype, text)
    _check_storage(rows, where)
    if rows.size > SMALL_BYTES and rows.size > MOST_EXPANSION * data.id.get_storage_size():
        raise ConfigurationError(
            f"{where} claims the shape {list(shape)}, {rows.size / 2**30:,.1f} GiB, but the file "
            f"holds only {data.id.get_storage_size():,} bytes of it: it is damaged or forged"
        )
    return rows


def _check_storage(rows: Rows, where: str) -> None:
    """Refuse what makes HDF5 read more than a data set holds, or load code to read it."""
    plan = rows.data.id.get_create_plist()
    chunk = math.prod(rows.data.chunks) * rows.dtype.itemsize if rows.data.chunks else 0
    if chunk > SMALL_BYTES and chunk > rows.size:
        raise ConfigurationError(
            f"{where} lies in chunks of {chunk / 2**30:,.1f} GiB, more than its "
            f"{rows.size:,} bytes: the file is damaged or forged"
        )
    for index in range(plan.get_nfilters()):
        number = plan.get_filter(index)[0]
        if number not in FILTERS:
            raise ConfigurationError(
                f"{where} is packed by the HDF5 filter {number}, for which HDF5 would load a "
                "plugin; write it with gzip or lzf (h5py's compression) instead"
            )


def _size(node: Node, rows: int | None, where: str) -> int:
    if isinstance(node, dict):
        return sum(_size(child, rows, f"{where}/{key}") for key, child in node.items())
    if node.size > SMALL_BYTES and rows is not None and node.shape[:1] > (rows,):
        raise ConfigurationError(
            f"{where} claims {node.shape[0]:,} rows, but with {rows - 1:,} rewards there are "
            f"{rows:,} at most: the file is damaged or forged"
        )
    return node.size


def _loaded(node: Node, where: str) -> Any:
    if isinstance(node, dict):
        entries = {key: _loaded(child, f"{where}/{key}") for key, child in node.items()}
        if "_index_0" not in entries:
            return entries
        names = [f"_index_{i}" for i in range(len(entries))]
        if set(names) != set(entries):
            raise ConfigurationError(
                f"{where}: {listed(entries)} are no parts of a tuple, which are _index_0, …, "
                f"{names[-1]}"
            )
        return tuple(entries[name] for name in names)
    if node.dtype.kind == "O":
        return _varying(node, where)
    return node.data.asstr()[()].tolist() if node.text else node.data[()]


def _varying(node: Rows, where: str) -> Any:
    """Texts, or rows of bytes, of different lengths.

    Each lies in the file as it is, but several rows may claim the same one. So they are read a few
    at a time, and counted.
    """
    if len(node.shape) != 1:
        raise ConfigurationError(
            f"{where} has the shape {list(node.shape)}, but texts and images must have the shape "
            "[T], one a step"
        )
    most, read, step = node.data.file.id.get_filesize(), 0, 1
    found: list[Any] = []
    while len(found) < len(node.data):
        part = node.data[len(found) : len(found) + step]
        size = sum(map(len, part))
        read += size
        if read > most:
            raise ConfigurationError(
                f"{where} claims more than the {most:,} bytes that the whole file has: it is "
                "damaged or forged"
            )
        found.extend(part)  # and not +=, which NumPy would take for a sum
        step = max(1, min(2 * step, SMALL_BYTES * len(part) // max(size, 1)))
    if node.text:
        return [text.decode() for text in found]
    rows = np.empty(len(found), object)
    for index, row in enumerate(found):
        rows[index] = row
    return rows
