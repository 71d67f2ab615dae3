"""Which spaces a file of episodes says it was recorded with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.recordings.minari import describe, form_of, same_rows, space_of

SPACES = ("observation_space", "action_space")
_LARGEST = 64 * 2**20  # bytes of a `metadata.json`


def spec_of(file: Any, path: Path) -> EnvSpec | None:
    """What the file's attributes say of the environment, or else the `metadata.json` beside it.

    Raises:
        ConfigurationError: If they are there, but no spaces.
    """
    said: Mapping[str, Any] = file.attrs
    beside = path.with_name("metadata.json")
    try:
        if SPACES[0] not in said and beside.is_file():
            said = json.loads(_text(beside))
        if any(name not in said for name in SPACES):
            return None
        spaces = [space_of(json.loads(said[name])) for name in SPACES]
        made = json.loads(said["env_spec"])["id"] if "env_spec" in said else "environment"
        return EnvSpec(*spaces, id=shortened(said.get("env_id", made), 100))
    except ConfigurationError:
        raise
    except Exception as error:  # a stranger's JSON can be wrong in any way there is
        raise ConfigurationError(
            f"the spaces that belong to {path} cannot be read: {type(error).__name__}: "
            f"{shortened(error)}"
        ) from error


def _text(path: Path) -> str:
    if path.is_symlink():
        raise ConfigurationError(
            f"{path} is a link to another file of this machine; if you trust the folder, put the "
            "file itself in its place"
        )
    if path.stat().st_size > _LARGEST:
        raise ConfigurationError(f"{path} is larger than {_LARGEST:,} bytes, so no description")
    return path.read_text(encoding="utf-8")


def check_spaces(path: Path, known: EnvSpec, spec: EnvSpec) -> None:
    """Refuse to take the rows of one environment for those of another.

    Raises:
        ConfigurationError: If the spaces differ in more than observations' bounds and lengths.
    """
    for name in SPACES:
        own, other = getattr(known, name), getattr(spec, name)
        described = [same_rows(describe(space, name)) for space in (own, other)]
        if name == "observation_space":
            described = [form_of(data) for data in described]
        if described[0] != described[1]:
            raise ConfigurationError(
                f"{path} was recorded with the {name} {shortened(own)}, but {spec.id!r} has "
                f"{shortened(other)}; use another file, or the environment and wrappers it was "
                "recorded with"
            )
