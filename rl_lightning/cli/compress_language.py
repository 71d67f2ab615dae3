"""`rl-lightning compress` of the language model inside a policy."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl_lightning.agents import Agent
from rl_lightning.agents.compressed import PolicyCall
from rl_lightning.agents.language_parts import ModelCall, language_models
from rl_lightning.agents.load import build_agent
from rl_lightning.agents.owned import own_language_model, the_language_model
from rl_lightning.compress import (
    attention_heads,
    fake_quantise,
    layer_lists,
    prune_heads,
    prune_layers,
    prune_nodes,
    prune_weights,
    quantise,
)
from rl_lightning.compress.weights import maskable
from rl_lightning.core.errors import ConfigurationError, nearest, shortened
from rl_lightning.encoders import TextActionEncoder
from rl_lightning.llm.backbone import Backbone
from rl_lightning.policies.generating import GeneratingPolicy

LANGUAGE_MODEL = "language-model"
CUT = "cut-vocabulary"
MODEL_METHODS = {
    CUT: "keep the tokens that occur while watching, and those of --texts",
    "prune-heads": "take attention heads out of the language model; --share says how many",
    "prune-layers": "keep the language model's layers of --keep_layers alone",
}
EITHER = ("prune-weights", "prune-nodes", "quantise", "quantise-aware")
"""Methods for the language model or for what is around it, as --part says."""
Operator = Callable[[PolicyCall, Any, Any], dict[str, Any]]


def is_of_language_model(given: Any) -> bool:
    """Whether the command line is about the language model, and makes sense of it.

    Raises:
        ConfigurationError: If an option is missing, or is of another method.
    """
    method, part = given.method, given.part
    own = method in MODEL_METHODS
    if own and part not in (None, LANGUAGE_MODEL):
        raise ConfigurationError(f"--part: {method} is of the language model; leave it out")
    if part == LANGUAGE_MODEL and not own and method not in EITHER:
        raise ConfigurationError(
            f"--part: {method} takes no language model by itself; leave it out"
        )
    about = own or part == LANGUAGE_MODEL
    for name, value, fits in (
        ("texts", given.texts, method == CUT),
        ("keep_layers", given.keep_layers, method == "prune-layers"),
        ("model_out", given.model_out, about),
    ):
        if value is not None and not fits:
            raise ConfigurationError(f"--{name}: {method} has no use for it; leave it out")
    if own and given.layers is not None:
        raise ConfigurationError(
            f"--layers: {method} has no use for it"
            f"{'; --keep_layers lists those that stay' if method == 'prune-layers' else ''}"
        )
    if method == "prune-layers" and given.keep_layers is None:
        raise ConfigurationError("--keep_layers: prune-layers needs it, such as 0,1,2")
    return about


def check_language_model(agent: Any, given: Any) -> Backbone:
    """The language model, if the method can be used on it.

    Raises:
        ConfigurationError: If it cannot.
    """
    backbone = the_language_model(agent)
    method, tune = given.method, backbone.tune
    if method == CUT and isinstance(agent.policy, GeneratingPolicy):
        raise ConfigurationError(
            f"{CUT}: a GeneratingPolicy writes freely, with any token; quantise it, or let it "
            "choose among texts (ScoringPolicy)"
        )
    if method in ("prune-heads", "prune-layers", "prune-nodes") and tune == "lora":
        raise ConfigurationError(
            f"{method}: adapters are around the layers (tune: lora); merge them first: rl-lightning"
            " export --format huggingface writes a model to train with"
        )
    if method == "quantise-aware" and tune != "full":
        raise ConfigurationError(
            f"quantise-aware: training does not change the weights of this language model (tune: "
            f"{tune}); use quantise"
        )
    return backbone


def read_texts(path: str | None) -> list[str]:
    """A text a line; those that are blank are left out.

    Raises:
        ConfigurationError: If the file cannot be read, or holds none.
    """
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--texts: {path} cannot be read: {shortened(error)}") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ConfigurationError(f"--texts: {path} holds no text; write one in each line")
    return texts


def folder_for(given: Any) -> Path:
    """Where config and tokenizer go: `small-model` beside `small.ckpt`.

    Raises:
        ConfigurationError: If something is there.
    """
    out = Path(given.out)
    folder = Path(given.model_out) if given.model_out else out.with_name(f"{out.stem}-model")
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.is_symlink() or (folder.exists() and not empty):
        raise ConfigurationError(f"--model_out: {folder} is there already; take another name")
    return folder


@contextlib.contextmanager
def listening(agent: Any) -> Iterator[set[int]]:
    """The ids of tokens that an agent's language models read inside, of texts that are new to it,
    and those that they put into every text."""
    heard: set[int] = set()
    with contextlib.ExitStack() as stack:
        own = [
            stack.enter_context(part.tokens.heard())
            for part in agent.modules()
            if isinstance(part, Backbone)
        ]
        yield heard
    heard.update(*own)
    for part in agent.modules():
        if isinstance(part, TextActionEncoder):
            heard |= part.choices.prompter.own_ids()


def needs_own(agent: Any, given: Any) -> bool:
    """Whether the checkpoint has to be given the weights of its language model first."""
    by_name = any(part.reloadable for part in agent.modules() if isinstance(part, Backbone))
    return by_name or given.method == CUT or given.model_out is not None


def with_own_model(
    agent: Any,
    checkpoint: Mapping[str, Any],
    folder: Path,
    used: Sequence[str | int] | None,
    trusted: Sequence[str],
) -> tuple[Any, dict[str, Any]]:
    """An agent like another, and its checkpoint, which holds the weights of the language model.

    Args:
        agent: Of the checkpoint.
        checkpoint: As it was read.
        folder: Where to write the model's config and tokenizer.
        used: See `own_language_model`.
        trusted: Packages that the checkpoint may name.

    Raises:
        ConfigurationError: If there is no such agent.
    """
    owned = own_language_model(agent, checkpoint, folder, used)
    new = build_agent(Agent, owned, None, trusted, {}).eval()
    if any(part.reloadable for part in new.modules() if isinstance(part, Backbone)):
        raise ConfigurationError(
            f"the checkpoint's {type(agent).__name__} has an encoder that it does not describe: "
            "its language model cannot be changed"
        )
    return new, owned


def operators(agent: Any, given: Any) -> list[Operator]:
    """What is to be done to a policy, one after the other."""
    policy, method = PolicyCall(agent), given.method
    if method == CUT:
        return []
    if method == "prune-heads":
        inside = _inside(policy, attention_heads(policy))
        shares = dict.fromkeys(inside, float(given.share))
        return [lambda part, x, optimizer: prune_heads(part, shares, _list(optimizer))]
    if method == "prune-layers":
        lists = layer_lists(policy)
        inside = _inside(policy, lists)
        keep = _numbers(given.keep_layers, min((len(lists[name]) for name in inside), default=0))
        return [partial(_keep_layers, keep=keep, layers=name) for name in inside]
    # Of models that several encoders share, names lead to the first alone.
    every = [name for name, _ in policy.named_modules()]
    models = [m for m in language_models(policy) if any(n.startswith(f"{m}.") for n in every)]
    adapters = [n for n in every if n.rpartition(".")[2].startswith("lora_")]
    layers = given.layers.split(",") if given.layers else models
    if outside := [name for name in layers if name not in models and not _inside(policy, [name])]:
        raise ConfigurationError(
            f"--layers: {shortened(outside[0])} is not inside {', '.join(models)}; near it are "
            f"{', '.join(nearest(outside[0], _inside(policy, every))[:3])}"
        )
    if method == "prune-nodes":
        parts = {m: [n for n in layers if f"{n}.".startswith(f"{m}.")] for m in models}
        return [
            partial(_prune_nodes, share=given.share, name=m, layers=named if given.layers else None)
            for m, named in parts.items()
            if named
        ]
    if method == "prune-weights":
        every = _inside(policy, maskable(policy, None))
        named = [n for n in every if any(f"{n}.".startswith(f"{name}.") for name in layers)]
        chosen = [n for n in named if not n.startswith(tuple(f"{a}." for a in adapters))]
        scope = given.scope or "global"
        return [lambda part, x, optimizer: prune_weights(part, given.share, scope, chosen)]
    apply = quantise if method == "quantise" else fake_quantise
    return [lambda part, x, optimizer: apply(part, given.bits, layers, given.group_size, adapters)]


def _keep_layers(
    policy: PolicyCall, x: Any, optimizer: Any, *, keep: list[int], layers: str
) -> dict[str, Any]:
    return prune_layers(policy, keep, layers, _list(optimizer))


def _prune_nodes(
    policy: PolicyCall,
    x: Any,
    optimizer: Any,
    *,
    share: float,
    name: str,
    layers: list[str] | None,
) -> dict[str, Any]:
    """Nodes of the feed-forward layers of a language model: others are its output, or its heads'.

    Args:
        policy: Changed.
        x: The policy's observations, not read: a language model is followed on ids of its own.
        optimizer: Cut along, if any.
        share: Of nodes to take out.
        name: Of the `Backbone`.
        layers: Names of the layers, in the policy; None for all that can be pruned.
    """
    call = ModelCall(policy.policy, name)
    ids = torch.arange(8).view(2, 4) % call.backbone.model.get_input_embeddings().weight.shape[0]
    return prune_nodes(call, share, ids, layers=layers, optimizers=_list(optimizer))


def _list(optimizer: Any) -> list[Any]:
    return [] if optimizer is None else [optimizer]


def _inside(policy: nn.Module, names: Any) -> list[str]:
    """Those of some names that are of parts of a language model."""
    models = tuple(f"{name}." for name in language_models(policy))
    return [name for name in names if name.startswith(models)]


def _numbers(text: str, layers: int) -> list[int]:
    """Numbers of layers to keep, of so many."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or numbers != sorted({*numbers}) or not 0 <= numbers[0] <= numbers[-1] < layers:
        raise ConfigurationError(
            f"--keep_layers: {shortened(text)!r} must be rising numbers of layers from 0 to "
            f"{layers - 1}, such as 0,1"
        )
    return numbers
