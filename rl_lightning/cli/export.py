"""`rl-lightning export`: an agent's language model, as a folder that others load."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_lightning.agents import Agent
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.export import save_merged


def export(args: Sequence[str], trusted: Sequence[str]) -> None:
    """Write the language model of a checkpoint, adapters merged, with its tokenizer.

    Args:
        args: Of the command line, behind `export`.
        trusted: Packages outside this library that the checkpoint may name.

    Raises:
        ConfigurationError: If the checkpoint cannot be read, holds no language model or several,
            or the folder is there already.
    """
    parser = argparse.ArgumentParser(
        prog="rl-lightning export",
        description="Write an agent's language model, adapters merged, with its tokenizer: a folder"
        " that AutoModelForCausalLM.from_pretrained loads, and model: FOLDER in a configuration.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the agent")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--trust", metavar="PACKAGE", help="import classes from it, too")
    given = parser.parse_args(args)
    folder = Path(given.out)
    if folder.resolve().exists():
        raise ConfigurationError(f"--out: {folder} is there already; take another name")
    agent: Any = Agent.load_from_checkpoint(given.ckpt_path, trusted=trusted)
    save_merged(language_model(agent), folder)
    print(f"wrote {folder}")


def language_model(agent: Any) -> Backbone:
    """The one language model that an agent trains, or else the one it has.

    Raises:
        ConfigurationError: If there is none, or no telling which.
    """
    models = [part for part in agent.modules() if isinstance(part, Backbone)]
    trained = [model for model in models if model.tune != "frozen"] or models
    own = getattr(agent, "backbone", None)
    if own is not None:
        return own
    if len(trained) != 1:
        raise ConfigurationError(
            f"the checkpoint's {type(agent).__name__} has {len(trained) or 'no'} language models"
            f"{', and there is no telling which is meant' if trained else ''}"
        )
    return trained[0]
