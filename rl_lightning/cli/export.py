"""`rl-lightning export`: a policy as a file that runs by itself, or its language model."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_lightning.agents import Agent
from rl_lightning.agents.compressed import CompressedModule, changed_layers
from rl_lightning.agents.language_parts import language_models
from rl_lightning.core.errors import ConfigurationError, check_one_of
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.export import save_merged

HUGGINGFACE = "huggingface"


def export(args: Sequence[str], trusted: Sequence[str]) -> None:
    """Write the policy of a checkpoint as a graph, or its language model.

    Args:
        args: Of the command line, behind `export`.
        trusted: Packages outside this library that the checkpoint may name.

    Raises:
        ConfigurationError: If the checkpoint cannot be read, if what is asked for is not in it or
            cannot be exported, or if the folder is there already.
        RunError: If the folder cannot be written, or if what was written does not act as the
            checkpoint does.
    """
    from rl_lightning.export import FORMATS, export_policy  # torch.export takes a while to import

    parser = argparse.ArgumentParser(
        prog="rl-lightning export",
        description="Write a policy, with the preprocessing of raw observations inside, as a folder"
        " that runs without this library (run_exported.py in it), or an agent's language model.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the agent")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--format",
        help="onnx: policy.onnx, for onnxruntime; torch: policy.pt2, of torch.export; huggingface: "
        "the language model, adapters merged, with its tokenizer, which "
        "AutoModelForCausalLM.from_pretrained and model: FOLDER in a configuration load. Left out: "
        "huggingface for an agent that tunes a language model, onnx for any other.",
    )
    parser.add_argument("--trust", metavar="PACKAGE", help="import classes from it, too")
    given = parser.parse_args(args)
    if given.format is not None:
        check_one_of("--format", given.format, [*FORMATS, HUGGINGFACE])
    folder = Path(given.out)
    if folder.resolve().exists():
        raise ConfigurationError(f"--out: {folder} is there already; take another name")
    agent: Any = Agent.load_from_checkpoint(given.ckpt_path, trusted=trusted)
    form = given.format or (HUGGINGFACE if tunes_language_model(agent) else "onnx")
    if form == HUGGINGFACE:
        _check_plain(agent)
        save_merged(language_model(agent), folder)
        print(f"wrote {folder}")
        return
    parity = export_policy(agent, folder, form)
    print(
        f"wrote {folder}: on {parity.observations} sampled observations its numbers are the "
        f"agent's to {parity.error:.1g}, relatively, and {parity.agreement:.2%} of the greedy "
        f"actions are equal; python {folder}/run_exported.py says what it takes"
    )


def _check_plain(agent: Any) -> None:
    """Refuse a language model that has layers of which a model's config says nothing.

    Raises:
        ConfigurationError: That names what was done to it.
    """
    records = agent.compression if isinstance(agent, CompressedModule) else []
    names = language_models(agent)
    for record in records:
        changed = [str(name) for name in changed_layers(record)]
        inside = any(name.startswith(f"{model}.") for name in changed for model in names)
        if inside and record["operator"] != "prune_layers":
            raise ConfigurationError(
                f"--format {HUGGINGFACE}: {record['operator']} has changed layers of the language "
                "model, and that format cannot say how; export the policy (onnx, torch), or the "
                "language model of the checkpoint before"
            )


def tunes_language_model(agent: Any) -> bool:
    """Whether training changes a language model inside an agent."""
    models = [part for part in agent.modules() if isinstance(part, Backbone)]
    return any(model.tune != "frozen" for model in models)


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
