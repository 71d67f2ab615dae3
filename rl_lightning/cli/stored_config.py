"""`rl-lightning validate --ckpt_path FILE` alone: the configuration that the file itself holds."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl_lightning.agents import Agent
from rl_lightning.agents.owned import with_moved_models
from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.names import public_path
from rl_lightning.core.trust import loading_stranger
from rl_lightning.data import RLDataModule
from rl_lightning.data.resume.arguments import stored_arguments
from rl_lightning.hyperparameters import check_described, check_hyperparameters, stored_class

_EVALUATE = ("validate", "test", "predict")
_OWN = ("--config", "-c", "--model", "--data")


def take_trust(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--trust PACKAGE`, and the packages.

    Raises:
        ConfigurationError: If no package follows.
    """
    rest, trusted, words = [], [], iter(args)
    for word in words:
        name, _, value = word.partition("=")
        if name != "--trust":
            rest.append(word)
            continue
        value = value or next(words, "")
        if not value or value.startswith("-"):
            raise ConfigurationError("--trust: name a package, --trust my_package")
        trusted += value.split(",")
    return rest, trusted


@contextmanager
def stored_configuration(args: Sequence[str], trusted: Sequence[str]) -> Iterator[list[str]]:
    """The arguments, with a configuration out of the checkpoint where they give none.

    While inside, what is built may import what is known or trusted only, if it is built from the
    checkpoint.

    Args:
        args: Of the command line.
        trusted: Packages that the user trusts.

    Raises:
        ConfigurationError: If the file holds no configuration, or one that names what it may not.
    """
    path = lone_checkpoint(args)
    if path is None:
        yield list(args)
        return
    with tempfile.TemporaryDirectory(prefix="rl-lightning-") as folder:
        file = Path(folder) / "stored.json"
        file.write_text(json.dumps(_configuration(path, trusted)))
        with loading_stranger(trusted):
            yield [args[0], "--config", str(file), *args[1:]]


def lone_checkpoint(args: Sequence[str]) -> str | None:
    """The file to take the configuration from, if it is to come from one."""
    if not args or args[0] not in _EVALUATE:
        return None
    names = [word.partition("=")[0] for word in args]
    if any(name in _OWN for name in names) or "--ckpt_path" not in names:
        return None
    at = names.index("--ckpt_path")
    value = args[at].partition("=")[2] or (args[at + 1] if at + 1 < len(args) else "")
    return None if value in ("", "last", "best", "hpc", "null") else value


def _configuration(path: str, trusted: Sequence[str]) -> dict[str, Any]:
    checkpoint = with_moved_models(read_checkpoint(path), path)
    hyper = checkpoint.get("hyper_parameters") or {}
    if "_class_path" not in hyper:
        raise ConfigurationError(
            f"checkpoint {path} does not say what agent it holds: give --config"
        )
    stored = checkpoint.get(RLDataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    data, data_args = stored_arguments(stored, RLDataModule, path, trusted, {})
    with loading_stranger(trusted):
        agent = stored_class(hyper, Agent)
        agent_args = check_hyperparameters(hyper)
    agent_args.pop("spec", None)  # the environment says it anew
    check_described(agent_args)
    return {"model": _class(agent, agent_args), "data": _class(data, data_args)}


def _class(cls: type, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": public_path(cls), "init_args": init_args}
